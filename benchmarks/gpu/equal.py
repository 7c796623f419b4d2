"""Every method learns the same on the card as on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.card import Card, Row, failed
from domains.domain import Domain
from domains.synthetic import golden_crops, make_domain
from reid.config import Method, build_config, read_method, shipped
from reid.run import Run

LOSS, COSINE = 1e-3, 0.9999
"""How far a loss may be from the CPU's, relative to it or to 1 where it is smaller, and how near embeddings must be
afterwards.
"""


def equal(card: Card) -> Iterator[Row]:
    """One row per method: the greatest difference of a loss, the smallest cosine of an embedding."""
    methods = ("fine_tune", "default") if card.small else tuple(sorted(shipped("methods")))
    workers = 1 if card.small else max(1, min(8, (os.cpu_count() or 2) // 2))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {name: pool.submit(compared, name, card.device) for name in methods}
        for name, future in futures.items():
            try:
                yield {"method": name, **future.result()}
            except Exception as error:
                yield failed(error, method=name)


def compared(name: str, device: str) -> Row:
    """Learn two drawn domains with a method, on the CPU and on the card; in a process of its own."""
    torch.set_num_threads(2)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    method = quick(read_method(name))
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            make_domain(Path(folder) / style, style, identities=12, cameras=2, per_camera=2)
            for style in ("plaza", "station")
        ]
        cpu, other = (
            learned(method, sites, Path(folder) / f"run{number}", at) for number, at in enumerate(("cpu", device))
        )
    differences = {
        f"{step}: {term}": abs(other[0][step][term] - value) / max(abs(value), 1.0)
        for step, values in cpu[0].items()
        for term, value in values.items()
    }
    loss = max(differences.values(), default=0.0)
    cosine = float((cpu[1] * other[1]).sum(1).min())
    return {
        "loss_difference": loss,
        "cosine": cosine,
        "largest_at": max(differences, key=lambda key: differences[key], default=""),
        "ok": loss <= LOSS and cosine >= COSINE,
        "seconds_cpu": round(cpu[2], 2),
        "seconds": round(other[2], 2),
    }


def quick(method: Method) -> Method:
    """Return the method with a style network of two iterations."""

    def shorter(entry: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: {**given, "iterations": 2, "batch": 8} if name == "style_network" else given
            for name, given in entry.items()
        }

    return method.model_copy(update={"terms": tuple(shorter(entry) for entry in method.terms)})


def learned(
    method: Method, sites: list[Domain], folder: Path, device: str
) -> tuple[dict[str, dict[str, float]], np.ndarray, float]:
    """Return the first losses of each step by term, the golden embeddings afterwards, and the seconds."""
    wide = method.name.endswith("-published")  # its head needs maps of 8×8
    height, width = (256, 256) if wide else (128, 64)
    config = build_config(
        {
            "device": device,
            "model": {"backbone": "mobilenetv2_100", "weights": "none", "dim": 64},
            "crop": {"height": height, "width": width},
            "train": {
                "iterations": 1,
                "identities": 4,
                "instances": 2,
                "precision": "fp32",
                "optimiser": "sgd",
                "lr": 0.01,
            },
        }
    )
    began = time.perf_counter()
    run = Run.create(folder, config)
    for part in [sites] if method.needs_all_images else [[site] for site in sites]:
        run.learn(part, method=method)
    first = {}
    for step in run.steps[1:]:
        log = (step.folder / "log.jsonl").read_text("utf-8") if (step.folder / "log.jsonl").is_file() else ""
        first[step.folder.name] = json.loads(log.splitlines()[0])["losses"] if log else {}
    found = run.embedder(-1)(golden_crops(16, height=height, width=width))
    return first, found, time.perf_counter() - began
