"""The training step of instance-level distribution modelling, as its authors' formulas read and as it is here.

    python -m benchmarks.distributions    # ResNet-50 to its third stage, 8x8 variance convolution, 256x128, batches
                                          # of 64
    python -m benchmarks.distributions --save

The reference follows DKP's description to the letter: a full-covariance Gaussian object per crop (B x D x D floats),
float32, plain layout. Here a draw is c + v*e. Both compute the same two losses over the same layers; each case runs in
a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from benchmarks.results_file import record
from domains.synthetic import make_domain
from reid.batches.loader import CropStore
from reid.config import Config, build_config, read_method
from reid.network.build import build_model
from reid.network.distribution import unit
from reid.network.recompute import recomputing
from reid.network.runtime import Runtime
from reid.step.optim import build_optimiser
from reid.terms import Batch, Step, build_terms, losses

SAMPLES, CLASSES = 6, 500
CASES = ("reference", "fp32", "bf16", "bf16 recomputed", "whole fp32", "whole bf16")
BLOCKS = 13
"""All that there are, computed again in the recomputed case."""


def reference(config: Config, crops: Tensor, labels: Tensor, steps: int) -> list[float]:
    """Seconds of each step of the formulas taken literally."""
    model = build_model(config.model, config.crop.spec(), classes=CLASSES)
    model.add_distribution("convolution")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.008, momentum=0.9, weight_decay=1e-4)
    model.train()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        features = model.backbone(model.normalise(crops).contiguous())
        centre = unit(model.embedding(model.pool(features).flatten(1)))
        spread = model.spread(features)
        drawn = unit(MultivariateNormal(centre, scale_tril=torch.diag_embed(spread)).rsample((SAMPLES,)))
        logits = model.classify(torch.cat([centre[None], drawn]).flatten(0, 1))
        loss = losses.cross_entropy(logits, labels.repeat(SAMPLES + 1))
        loss = loss + 1.5 * losses.set_triplet(drawn.flatten(0, 1), labels.repeat(SAMPLES), centre, labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def ours(config: Config, crops: Tensor, labels: Tensor, steps: int, precision: str, method: str) -> list[float]:
    """Seconds of each step here: one view without a teacher, or the whole of DKP++ with both views and the old
    model.
    """
    model = build_model(config.model, config.crop.spec(), classes=CLASSES)
    model.add_distribution("convolution")
    runtime = Runtime.choose("cpu", precision, model)
    entries = read_method(method).terms
    terms = {
        name: term
        for name, term in build_terms(entries).items()
        if method != "dkp-published" or name.startswith("distribution")
    }
    terms = {name: term for name, term in terms.items() if not term.keeps and not term.reads}
    old = build_model(config.model, config.crop.spec(), classes=CLASSES)
    step = Step(2, None, config, runtime, model, {"old": old.eval().requires_grad_(False)}, 0)  # type: ignore[arg-type]
    step.views["aligned"] = lambda plain, generator: 255 - plain.float()
    optimiser = build_optimiser(model, config.train)
    for network in (model, old):
        network.to(memory_format=torch.channels_last)
    model.train()
    seconds = []
    with recomputing(model.backbone, config.train.recompute):
        for iteration in range(steps):
            began = time.perf_counter()
            batch = Batch(crops, labels, torch.zeros_like(labels), step, iteration)
            values = [term.weight * value for term in terms.values() if (value := term.loss(batch)) is not None]
            optimiser.zero_grad(set_to_none=True)
            torch.stack(values).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seconds.append(time.perf_counter() - began)
    return seconds


def measure(case: str, batch: int, steps: int) -> dict[str, Any]:
    """Run one case in this process."""
    model = {"backbone": "resnet50", "stages": 3, "weights": "none", "dim": 2048}
    train = {"optimiser": "sgd", "lr": 0.008, "weight_decay": 1e-4, "recompute": BLOCKS * case.endswith("recomputed")}
    config = build_config({"model": model, "train": train})
    with tempfile.TemporaryDirectory() as folder:
        domain = make_domain(
            Path(folder) / "plaza", "plaza", identities=2 * (batch // 4), cameras=2, per_camera=2, size=(256, 128)
        )
        store = CropStore.decode(domain, domain.train, config.crop.spec())
    crops = torch.from_numpy(store.crops[:batch].copy())
    labels = torch.arange(len(crops)) // 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if case == "reference":
            seconds = reference(config, crops, labels, steps)
        else:
            whole, precision = case.startswith("whole"), "bf16" if "bf16" in case else "fp32"
            seconds = ours(config, crops, labels, steps, precision, "dkp++-published" if whole else "dkp-published")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "crops_per_second": round(len(crops) / statistics.median(seconds[1:]), 2),
        "peak_gib": round(peak, 2),
        "seconds": [round(s, 2) for s in seconds],
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="the first warms up; the median of the rest counts")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/distributions.json")
    options = parser.parse_args()
    if options.case:
        sys.stdout.write(json.dumps(measure(options.case, options.batch, options.steps)))
        return
    rows: dict[str, Any] = {}
    for case in CASES:
        command = [
            sys.executable,
            "-m",
            "benchmarks.distributions",
            "--case",
            case,
            "--batch",
            str(options.batch),
            "--steps",
            str(options.steps),
        ]
        rows[case] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        ratio = rows[case]["crops_per_second"] / rows["reference"]["crops_per_second"]
        share = rows[case]["peak_gib"] / rows["reference"]["peak_gib"]
        print(
            f"{case:15} {rows[case]['crops_per_second']:6.2f} crops/s ({ratio:.2f}x)  peak "
            f"{rows[case]['peak_gib']:.2f} GiB ({share:.2f}x)",
            flush=True,
        )
    if options.save:
        record(
            "distributions",
            {
                "command": "python -m benchmarks.distributions --save",
                "batch": options.batch,
                "torch": torch.__version__,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
