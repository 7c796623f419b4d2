"""How fast the training loop is on the card, beside a plain one and beside what the card can do."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.card import Card, Row, failed
from domains.domain import Domain
from domains.synthetic import make_domain
from reid.batches.loader import CropStore
from reid.config import Config, build_config, read_method
from reid.network.build import build_model
from reid.network.runtime import Runtime
from reid.step.learner import Learner
from reid.terms import Step, build_terms, losses

TRAINED = (
    ("resnet50", (256, 128), 64),
    ("resnet50", (256, 128), 128),
    ("vit_base_patch16_224", (256, 128), 64),
    ("vit_base_patch16_224", (256, 128), 128),
    ("mobilenetv2_100", (128, 64), 64),
)


def train(card: Card) -> Iterator[Row]:
    """One row per network, batch and precision."""
    cases = (("mobilenetv2_100", (128, 64), 16),) if card.small else TRAINED
    iterations, warm = (2, 1) if card.small else (30, 6)
    peak = matrix_rate(card)
    yield {"about": "bf16 matrix product 8192³", "tflops": round(peak / 1e12, 1)}
    with tempfile.TemporaryDirectory() as folder:
        people = 16 if card.small else 128
        domain = make_domain(Path(folder) / "plaza", "plaza", identities=people, cameras=2, per_camera=3)
        stores: dict[tuple[int, int], CropStore] = {}
        for backbone, size, batch in cases:
            for precision in ("fp32",) if card.small else ("bf16", "fp32"):
                if precision == "fp32" and batch == 128:
                    continue
                config = build_config(
                    {
                        "device": card.device,
                        "model": {"backbone": backbone, "weights": "none"},
                        "crop": {"height": size[0], "width": size[1]},
                        "train": {"identities": batch // 4, "instances": 4, "precision": precision},
                    }
                )
                if size not in stores:
                    stores[size] = CropStore.decode(domain, domain.train, config.crop.spec())
                about = {"backbone": backbone, "crop": f"{size[0]}x{size[1]}", "batch": batch, "precision": precision}
                try:
                    bare = plain(card, config, iterations, warm)
                    mine = ours(card, config, domain, stores[size], iterations, warm)
                    ratio = round(mine["crops_per_second"] / bare["crops_per_second"], 3)
                    work = bare.pop("flops_per_crop")
                    share = {
                        "share_of_matrix_rate": round(mine["crops_per_second"] * work / peak, 3),
                        "share_of_matrix_rate_plain": round(bare["crops_per_second"] * work / peak, 3),
                    }
                    yield {**about, **mine, "plain": bare["crops_per_second"], "ratio": ratio, **share}
                except Exception as error:
                    yield failed(error, **about)


def matrix_rate(card: Card) -> float:
    """Floating-point operations a second in a large bf16 matrix product: what the card reaches at best."""
    side = 512 if card.small else 8192
    left = torch.randn(side, side, device=card.device).bfloat16()
    for _ in range(3):
        left @ left
    card.wait()
    start = time.perf_counter()
    for _ in range(10):
        left @ left
    card.wait()
    return 10 * 2 * side**3 / (time.perf_counter() - start)


def ours(card: Card, config: Config, domain: Domain, store: CropStore, iterations: int, warm: int) -> Row:
    """Crops a second of the training loop after warming up, share of time waiting for crops, and peak memory."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"iterations": warm + iterations + 1})})
    model = build_model(config.model, config.crop.spec(), classes=len(np.unique(domain.train.pids)))
    runtime = Runtime.choose(config.device, config.train.precision, model)
    ends: list[float] = []
    if card.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as work:
        step = Step(1, domain, config, runtime, model.to(runtime.device), {}, 0)
        learner = Learner(step, build_terms(read_method("fine_tune").terms), store, {}, Path(work))

        def tick(done: int, values: object) -> None:
            if done in (warm, warm + iterations):
                card.wait()
            ends.append(time.perf_counter())

        trained = learner.train(tick)
    took = ends[warm + iterations - 1] - ends[warm - 1]
    return {
        "crops_per_second": round(iterations * config.train.identities * config.train.instances / took, 1),
        "waiting": round(trained.waiting / trained.seconds, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if card.on_gpu else None,
    }


def plain(card: Card, config: Config, iterations: int, warm: int) -> Row:
    """Crops a second of a loop that any code base has, with its crops on the card already: what decoding, sampling and
    augmenting can only slow down.
    """
    from torch.utils.flop_counter import FlopCounterMode

    batch, spec = config.train.identities * config.train.instances, config.crop.spec()
    model = build_model(config.model, spec, classes=64).to(card.device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3.5e-4)
    crops = torch.randint(0, 256, (batch, spec.height, spec.width, 3), dtype=torch.uint8, device=card.device)
    labels = torch.arange(config.train.identities, device=card.device).repeat_interleave(config.train.instances)

    def once() -> None:
        with torch.autocast(card.device.partition(":")[0], torch.bfloat16, enabled=config.train.precision == "bf16"):
            out = model(crops)
        loss = losses.cross_entropy(out.logits, labels, 0.1) + losses.batch_hard_triplet(out.embedding, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    counter = FlopCounterMode(display=False)
    with counter:
        once()
    for _ in range(warm):
        once()
    card.wait()
    start = time.perf_counter()
    for _ in range(iterations):
        once()
    card.wait()
    rate = iterations * batch / (time.perf_counter() - start)
    return {"crops_per_second": round(rate, 1), "flops_per_crop": counter.get_total_flops() / batch}
