"""The nearest of many vectors on the card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.gpu.card import Card, Row, rate


def search(card: Card) -> Iterator[Row]:
    """The ten nearest of many 512-d fp16 unit vectors: milliseconds on the card, and FAISS on the CPU."""
    count, dim = (20_000 if card.small else 1_000_000), 512
    generator = torch.Generator(card.device).manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, device=card.device), dim=1).half()
    nearby = torch.randn(64, dim, generator=generator, device=card.device) / dim**0.5
    asked = torch.nn.functional.normalize(base[:64].float() + nearby, dim=1).half()
    for queries in (1, 64):
        some = asked[:queries]
        times = []
        for _ in range(12):
            start = time.perf_counter()
            found = (some.float() @ base.float().T if not card.on_gpu else (some @ base.T).float()).topk(10)
            found.indices.cpu()
            times.append(time.perf_counter() - start)
        yield {
            "engine": f"torch on {card.device}",
            "vectors": count,
            "queries": queries,
            "milliseconds": round(1e3 * statistics.median(times[2:]), 2),
        }
    import faiss

    index = faiss.IndexFlatIP(dim)
    index.add(base.float().cpu().numpy())
    for queries in (1, 64):
        some = asked[:queries].float().cpu().numpy()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            _, exact = index.search(some, 10)
            times.append(time.perf_counter() - start)
        yield {
            "engine": "FAISS flat, float32, CPU",
            "vectors": count,
            "queries": queries,
            "milliseconds": round(1e3 * statistics.median(times), 2),
        }
    found = (asked.float() @ base.float().T).topk(10).indices.cpu().numpy()
    agree = float(np.mean([len(set(left) & set(right)) / 10 for left, right in zip(found, exact, strict=True)]))
    yield {"about": "share of the ten nearest that both find", "agree": round(agree, 4), "ok": agree > 0.99}
    if not hasattr(faiss, "StandardGpuResources"):
        yield {"engine": "FAISS on the card", "not_run": "this build of faiss has no GPU part"}
        return
    card_index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    for queries in (1, 64):
        some = asked[:queries].float().cpu().numpy()
        pace = rate(partial(card_index.search, some, 10), queries, card)
        yield {"engine": "FAISS on the card", "queries": queries, "milliseconds": round(1e3 * queries / pace, 2)}
