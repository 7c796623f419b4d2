"""What the gallery's benchmarks share: drawn people, clocks, memory, and a process for each part."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIM, PER_PERSON, CAMERAS, BATCH, K = 512, 20, 64, 256, 10
QUERIES = 200
SPACE = "bench" * 12


def draw(count: int, queries: int = QUERIES) -> dict[str, np.ndarray]:
    """Seeded clusters: fp16 unit vectors, the person and camera of each, and float32 queries."""
    rng = np.random.default_rng(0)

    def spread(effective: float, power: float) -> np.ndarray:
        scale = 1 / (1 + np.arange(DIM) / effective)
        return (scale * np.sqrt(power / (scale**2).sum())).astype(np.float32)

    turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
    common = np.zeros(DIM, np.float32)
    common[-1] = np.sqrt(0.42)
    people = rng.standard_normal((max(1, count // PER_PERSON), DIM), dtype=np.float32) * spread(9, 0.33)
    cameras = rng.standard_normal((CAMERAS, DIM), dtype=np.float32) * spread(9, 0.04)
    within = spread(30, 0.21)[:, None] * turn

    def crops(who: np.ndarray, camera: np.ndarray) -> np.ndarray:
        made = common + people[who] + cameras[camera] + rng.standard_normal((len(who), DIM), dtype=np.float32) @ within
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    who, camera = rng.integers(0, len(people), count), rng.integers(0, CAMERAS, count)
    vectors = np.empty((count, DIM), np.float16)
    for start in range(0, count, 8192):
        vectors[start : start + 8192] = crops(who[start : start + 8192], camera[start : start + 8192])
    asked = crops(rng.integers(0, len(people), queries), rng.integers(0, CAMERAS, queries))
    return {"vectors": vectors, "who": who, "camera": camera, "queries": asked.astype(np.float32)}


def drawn(folder: Path, count: int) -> dict[str, np.ndarray]:
    """The same, drawn once and mapped from files, so that they do not count as memory of what is measured."""
    file = folder / f"{count}.done"
    if not file.exists():
        for name, values in draw(count).items():
            np.save(folder / f"{count}-{name}.npy", values)
        file.touch()
    return {
        name: np.load(folder / f"{count}-{name}.npy", mmap_mode="r") for name in ("vectors", "who", "camera", "queries")
    }


def memory_mb() -> float:
    """Resident memory of this process now, in MB, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def milliseconds(ask: Callable[[int], Any], repeats: int = QUERIES) -> float:
    """Median time of a call, in ms."""
    times = []
    for number in range(repeats):
        start = time.perf_counter()
        ask(number)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def alone(part: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """Run one part in a fresh process; returns what it reports, or why it did not."""
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    process = context.Process(target=part, args=(*arguments, report))
    process.start()
    while process.is_alive() and report.empty():
        time.sleep(0.2)
    found = report.get(timeout=5) if not report.empty() else {"failed": f"exit code {process.exitcode}"}
    process.join(60)
    if process.is_alive():
        process.kill()
    return dict(found)
