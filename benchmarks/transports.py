"""Which map carries old embeddings best: every form of transport on one run over small-5-dev, without storing an old
image.

    python -m benchmarks.transports    # learns the stream with `default` first (kept in the temporary folder), then
                                       # compares
    python -m benchmarks.transports --method fusion --save

Each gallery is embedded by the model that learned its domain and carried, step by step, to the last; queries are the
last model's. A map is fitted at its own step, on the crops that are named; ``probes`` are all three kinds
(``reid/step/probe.py``). ``the old crops`` breaks the rule: what could be had if they were kept. ``drift`` adds the
mean drift of the step's crops near a vector (Yu et al., CVPR 2020), for which they must be kept as embeddings;
``residual`` is a small network, x + f(x); ``rank`` keeps the largest singular values of what a ridge changes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console

from benchmarks.results_file import record
from benchmarks.small5 import dev_domain, start_of
from domains.arrays import Float32s
from domains.domain import Domain
from domains.scoring import Labels, score_domain
from prototypes.transport import fit_transport
from reid.config import build_config, read_method, read_stream
from reid.progress import Progress
from reid.run import Run
from reid.run.stream import learn_stream, open_stream
from reid.step.probe import DRAWN, Probes
from reid.terms.survey import Survey

Map = Callable[[Float32s], Float32s]
Fit = Callable[[Float32s, Float32s], tuple[Map, int]]
"""Embeddings of the same crops before and after a step → the map, and its bytes in fp16."""

HIDDEN, RESIDUAL_ITERATIONS, RESIDUAL_DECAY = 64, 300, 1e-2


def unit(vectors: Float32s) -> Float32s:
    """Rows at unit length."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def linear(kind: str, shrinkage: float) -> Fit:
    """What is shipped, at some shrinkage."""

    def fit(old: Float32s, new: Float32s) -> tuple[Map, int]:
        transport = fit_transport(old, new, kind=kind, shrinkage=shrinkage)  # type: ignore[arg-type]
        return transport, 2 * transport.matrix.size

    return fit


def low_rank(rank: int, shrinkage: float) -> Fit:
    """A ridge whose change is cut to a rank."""

    def fit(old: Float32s, new: Float32s) -> tuple[Map, int]:
        change = fit_transport(old, new, shrinkage=shrinkage).matrix - np.eye(old.shape[1], dtype=np.float32)
        left, values, right = np.linalg.svd(change)
        down, up = (left[:, :rank] * values[:rank]).astype(np.float16), right[:rank].astype(np.float16)
        return (lambda x: unit(x + x @ down.astype(np.float32) @ up.astype(np.float32))), 2 * (down.size + up.size)

    return fit


def drift(width: float) -> Fit:
    """Semantic drift compensation."""

    def fit(old: Float32s, new: Float32s) -> tuple[Map, int]:
        def carry(x: Float32s) -> Float32s:
            weight = np.exp((x @ old.T - 1) / width)
            return unit(x + weight @ (new - old) / weight.sum(1, keepdims=True))

        return carry, 2 * (old.size + new.size)

    return fit


def residual(old: Float32s, new: Float32s) -> tuple[Map, int]:
    """A network of one hidden layer beside the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = torch.nn.Linear(old.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, old.shape[1])
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    net = torch.nn.Sequential(first, torch.nn.GELU(), last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=RESIDUAL_DECAY)
    given, wanted = torch.from_numpy(old), torch.from_numpy(new)
    for _ in range(RESIDUAL_ITERATIONS):
        loss = (1 - F.cosine_similarity(given + net(given), wanted)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def carry(x: Float32s) -> Float32s:
        with torch.no_grad():
            return unit((torch.from_numpy(x) + net(torch.from_numpy(x))).numpy())

    return carry, 2 * sum(parameter.numel() for parameter in net.parameters())


FORMS: dict[str, Fit] = {
    **{f"ridge, shrinkage {value}": linear("ridge", value) for value in (0.03, 0.1, 0.3, 1.0, 3.0)},
    **{f"rank 31 of ridge, shrinkage {value}": low_rank(31, value) for value in (0.1, 1.0)},
    **{f"procrustes, shrinkage {value}": linear("procrustes", value) for value in (0.03, 0.1, 1.0)},
    **{f"drift, width {value}": drift(value) for value in (0.02, 0.05, 0.2)},
    "residual network": residual,
}
CROPS = {"own crops": (0, 0), "own, recoloured": (5, 0), "own and drawn": (0, DRAWN), "probes": (5, DRAWN)}
"""What a map is fitted on: exchanges of channels, drawn people."""


def compare(run: Run, domains: list[Domain]) -> list[dict[str, Any]]:
    """Mean percent mAP over the domains learned, and bytes of a step's map, by form."""
    embedders = [run.embedder(step) for step in range(len(run.steps))]
    surveys = []
    for domain in domains:
        store = run.stores.get(domain, domain.train)
        surveys.append(Survey(store, np.arange(len(store)), store.split.pids, torch.device("cpu")))

    def pairs(
        surveyed: list[Survey], recoloured: int, drawn: int, steps: Iterable[int]
    ) -> list[tuple[Float32s, Float32s]]:
        probes = [Probes(survey, run.config.crop.spec(), recoloured=recoloured, drawn=drawn) for survey in surveyed]
        return [
            tuple(np.concatenate([embedders[step + late](batch.numpy()) for batch in probes[at]]) for late in (0, 1))
            for at, step in enumerate(steps)
        ]  # type: ignore[misc]

    later = range(1, len(domains))
    queries, galleries = (
        [run.stores.get(domain, getattr(domain, split)) for domain in domains] for split in ("query", "gallery")
    )
    asked = [embedders[-1](query.crops) for query in queries]
    held = [embedders[step](gallery.crops) for step, gallery in enumerate(galleries, 1)]

    def scores(vectors: list[Float32s]) -> list[float]:
        people = [
            (Labels.from_split(query.split), Labels.from_split(gallery.split))
            for query, gallery in zip(queries, galleries, strict=True)
        ]
        return [
            score_domain(ask, hold, *who, same_camera=domain.same_camera).mAP
            for ask, hold, who, domain in zip(asked, vectors, people, domains, strict=True)
        ]

    again = scores([embedders[-1](gallery.crops) for gallery in galleries])
    rows = [
        {"transport": "embedded again", "crops": "", "bytes": 0, "mAP": again},
        {"transport": "none", "crops": "", "bytes": 0, "mAP": scores(held)},
    ]

    def row(name: str, crops: str, fit: Fit, found: list[tuple[Float32s, Float32s]]) -> None:
        maps = [fit(*pair) for pair in found]
        carried = []
        for step, vectors in enumerate(held):
            carried.append(vectors)
            for carry, _ in maps[step:]:
                carried[-1] = carry(carried[-1])
        rows.append({"transport": name, "crops": crops, "bytes": maps[0][1], "mAP": scores(carried)})

    for crops, (recoloured, drawn) in CROPS.items():
        found = pairs(surveys[1:], recoloured, drawn, later)
        for name, fit in FORMS.items():
            if crops == "probes" or name.startswith("ridge"):
                row(name, crops, fit, found)
    everything = [
        (np.concatenate([old for old, _ in found]), np.concatenate([new for _, new in found]))
        for step in later
        for found in [pairs(surveys, 0, 0, [step] * len(surveys))]
    ]
    row("ridge, shrinkage 0.1", "the old crops", linear("ridge", 0.1), everything)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    best = np.mean(rows[0]["mAP"])
    lines = ["| transport | fitted on | KB a step | Seen mAP | lost | by domain |", "|---" * 6 + "|"]
    for row in rows:
        mean, each = np.mean(row["mAP"]), " ".join(f"{score:.1f}" for score in row["mAP"])
        lines.append(
            f"| {row['transport']} | {row['crops']} | {row['bytes'] / 1e3:.0f} | {mean:.1f} | {best - mean:.1f} | "
            f"{each} |"
        )
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--order", type=int, choices=(1, 2), default=1, help="of the domains; 2 is the reverse")
    parser.add_argument("--strong", action="store_true", help="from the person-trained start")
    parser.add_argument("--run", type=Path, help="a run over small-5-dev that is there already")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results/transports.json")
    options = parser.parse_args()
    stream = read_stream("small5")
    domains = [dev_domain(domain) for domain in open_stream(stream)[0]][:: 1 if options.order == 1 else -1]
    if options.run:
        run = Run.open(options.run)
    else:
        started = start_of("strong") if options.strong else []
        config = build_config(stream.config, {"seed": options.seed, "method": options.method}, overrides=started)
        folder = (
            Path(tempfile.gettempdir())
            / f"lifelong-reid-transports-{options.method}-{options.seed}-{options.order}{'-strong' * options.strong}"
        )
        run, config = Run.open_or_create(folder, [config.model_dump(mode="json")])
        learn_stream(
            run, domains, [], method=read_method(options.method), config=config, progress=Progress(Console(stderr=True))
        )
    rows = compare(run, domains)
    start = "person-trained" if options.strong else "ImageNet"
    print(f"{options.method}, small-5-dev, {start} start, order {options.order}, seed {options.seed}\n\n{table(rows)}")
    if options.save:
        name = f"transports{'_reverse' * (options.order == 2)}{'_strong' * options.strong}"
        record(
            name, {"method": options.method, "seed": options.seed, "order": options.order, "start": start, "rows": rows}
        )


if __name__ == "__main__":
    main()
