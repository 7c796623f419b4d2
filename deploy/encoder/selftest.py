"""Does this machine do what the bundle promises, and how fast? Run once after installing and again after every driver
update.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deploy.encoder import gpu
from deploy.encoder.encoder import ON_PROCESSOR, Encoder, default_batch
from deploy.encoder.engine import Target
from domains.errors import ReidError
from domains.synthetic.scene import golden_crops

BATCHES = (1, 2, 7, 32)
"""Batch sizes compared with the golden embeddings, the same ones that an export is checked at."""
SECONDS = 2.0
RUNS = 200


@dataclass(frozen=True)
class Check:
    """One check: what was found, whether it is right, what to do if it is not, and the figures behind it."""

    what: str
    found: str
    ok: bool = True
    remedy: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def self_test(
    bundle: str | PathLike[str],
    provider: str = "cpu",
    *,
    batch: int | None = None,
    threads: int | None = None,
    seconds: float = SECONDS,
) -> list[Check]:
    """Start the engine, compare it with the golden embeddings at several batch sizes, and time it.

    Args:
        bundle: a bundle folder.
        provider: as for :meth:`deploy.Encoder.load`.
        batch: crops per inference, as when serving. On a GPU, larger golden batches are skipped, because the engine
            tested is the one that will serve.
        threads: threads of a CPU engine; by default all cores.
        seconds: approximate duration of each of the three measurements.

    Returns:
        The checks, in order. Speed and memory are measured only if everything before them is right.

    Raises:
        UsageError: unknown provider, or a batch or thread count below 1.
    """
    target = Target.parse(provider)
    try:
        began = time.perf_counter()
        served = default_batch(provider) if batch is None else batch
        largest = max(served, *BATCHES) if target.name in ON_PROCESSOR and served > 0 else served
        encoder = Encoder.load(bundle, provider, batch=largest, threads=threads)
        start_seconds = time.perf_counter() - began
        checks = [
            Check(
                "bundle",
                f"{encoder.bundle.manifest['backbone']}, {encoder.bundle.manifest['precision']}, "
                f"{encoder.bundle.id[:12]}",
            )
        ]
        checks.append(_engine(encoder, target, start_seconds))
        checks += _golden(encoder)
        if all(check.ok for check in checks):
            encoder.batch = served
            checks += [*_speed(encoder, seconds), _files(encoder, seconds), _memory()]
    except ReidError as error:
        if error.exit_code == 2:
            raise
        return [Check(f"bundle on {provider}", "does not serve", False, str(error))]
    return checks


def _engine(encoder: Encoder, target: Target, start_seconds: float) -> Check:
    import onnxruntime

    words = [f"ONNX Runtime {onnxruntime.__version__} on {encoder.provider}"]
    if target.name in ("cuda", "tensorrt"):
        card = gpu.describe(int(target.device))
        words.append(f"{card.name} (compute capability {card.capability}, {card.driver})")
    if encoder.elsewhere:
        words.append(
            "run elsewhere: "
            + ", ".join(f"{operator} ({engine})" for operator, engine in sorted(encoder.elsewhere.items()))
        )
    return Check("engine", "; ".join(words), figures={"start_s": round(start_seconds, 3)})


def _golden(encoder: Encoder) -> list[Check]:
    needed = encoder.bundle.golden_cosine(Target.parse(encoder.provider).name)
    checks = []
    for batch in (size for size in BATCHES if size <= encoder.batch):
        smallest = float(encoder.golden_cosines(batch).min())
        remedy = (
            "" if smallest >= needed else f"at least {needed} is needed; update the engine, or export again in fp32"
        )
        checks.append(
            Check(
                f"golden embeddings, batch {batch}",
                f"smallest cosine {smallest:.6f}",
                not remedy,
                remedy,
                {"cosine": smallest},
            )
        )
    return checks


def _speed(encoder: Encoder, seconds: float) -> list[Check]:
    crops = encoder.bundle.golden().crops
    full = np.resize(crops, (encoder.batch, *crops.shape[1:]))
    alone = _timed(lambda: encoder(crops[:1]), seconds)
    p50, p95 = (float(np.percentile(alone, share)) * 1000 for share in (50, 95))
    rate = encoder.batch / float(np.median(_timed(lambda: encoder(full), seconds)))
    return [
        Check(
            "latency of one crop",
            f"p50 {p50:.1f} ms, p95 {p95:.1f} ms",
            figures={"p50_ms": p50, "p95_ms": p95, "runs": len(alone)},
        ),
        Check(f"throughput, batches of {encoder.batch}", f"{rate:.1f} crops/s", figures={"crops_per_second": rate}),
    ]


def _files(encoder: Encoder, seconds: float) -> Check:
    """Throughput from JPEG files at twice the model's input size, decoded and resized while the engine computes. The
    pictures are drawn: nothing of the bundle is written to the temporary folder.
    """
    crops = golden_crops(height=min(encoder.crop.height, 1024), width=min(encoder.crop.width, 1024))
    with tempfile.TemporaryDirectory(prefix="reid-") as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(len(crops))]
        for path, crop in zip(paths, crops, strict=True):
            data = cv2.imencode(".jpg", cv2.resize(crop[..., ::-1], None, fx=2, fy=2))[1]
            path.write_bytes(data.tobytes())
        many = [paths[number % len(paths)] for number in range(4 * encoder.batch)]
        rate = len(many) / float(np.median(_timed(lambda: encoder.files(many), seconds)))
    return Check("from JPEG files, decoding included", f"{rate:.1f} crops/s", figures={"crops_per_second": rate})


def _memory() -> Check:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Check(
        "memory", f"peak {peak / 2**20:.0f} MiB in this process, without GPU memory", figures={"peak_bytes": peak}
    )


def _timed(run: Callable[[], object], seconds: float) -> list[float]:
    """Time 3 to 200 runs within about ``seconds``, after one warm-up run; returns the seconds of each."""
    run()
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while len(durations) < 3 or (time.perf_counter() < end and len(durations) < RUNS):
        began = time.perf_counter()
        run()
        durations.append(time.perf_counter() - began)
    return durations
