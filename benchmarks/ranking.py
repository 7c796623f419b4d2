"""Time and memory of ranking scores: Market-1501's size with similarities given, MSMT17's size from features, and
k-reciprocal re-ranking.

Run with ``OMP_NUM_THREADS=1 python benchmarks/ranking.py [--rerank]``. The data are random, with labels distributed as
in those sets. Each part has a process of its own, so that its peak memory is its own. torchreid's compiled ranker is
not run here: its time is the one given on the command line, to be measured on the same machine.
"""

import argparse
import multiprocessing
import resource
import sys
import time

import numpy as np

from domains.reranking import k_reciprocal
from domains.scoring import Labels, score_domain, score_similarities

MARKET = {"queries": 3368, "gallery": 15913, "people": 750, "cameras": 6, "strangers": 2798}
MSMT17 = {"queries": 11659, "gallery": 82161, "people": 3060, "cameras": 15, "strangers": 0}


def labels(rng, queries, gallery, people, cameras, strangers):
    """Query and gallery labels: people at random in cameras at random, and strangers that match no query."""
    pids = np.concatenate([rng.integers(0, people, gallery - strangers), np.full(strangers, people)])
    query = Labels(rng.integers(0, people, queries), rng.integers(0, cameras, queries))
    return query, Labels(rng.permutation(pids), rng.integers(0, cameras, gallery))


def features(rng, pids, dim):
    """Unit vectors near one centre per identity, made in pieces so that nothing but the result is ever large."""
    values = np.empty((len(pids), dim), np.float32)
    centres = 0.4 * np.random.default_rng(1).standard_normal((pids.max() + 1, dim), dtype=np.float32)
    for start in range(0, len(pids), 1024):
        part = values[start : start + 1024]
        part[...] = centres[pids[start : start + 1024]] + rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return values


def argsort_map(similarity, query, gallery):
    """Plain NumPy baseline, as most Python evaluators do it: sort every row whole. Returns mAP in percent."""
    precisions = []
    for row, pid, camid in zip(similarity, query.pids, query.camids, strict=True):
        order = np.argsort(-row, kind="stable")
        listed = order[~((gallery.pids[order] == pid) & (gallery.camids[order] == camid))]
        ranks = np.flatnonzero(gallery.pids[listed] == pid) + 1
        if len(ranks):
            precisions.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return 100 * float(np.mean(precisions))


def best(function, repeats):
    """Shortest wall time of several calls, in seconds, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def peak_mb():
    """Highest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def msmt17():
    """Score from 512-d features; the growth of resident memory includes both feature matrices."""
    before = peak_mb()
    rng = np.random.default_rng(0)
    query, gallery = labels(rng, **MSMT17)
    left, right = features(rng, query.pids, 512), features(rng, gallery.pids, 512)
    held = peak_mb()
    seconds, scores = best(lambda: score_domain(left, right, query, gallery), 1)
    print(f"\nMSMT17's size, {len(query)} × {len(gallery)}, 512-d features: {seconds:.1f} s, mAP {scores.mAP:.2f}")
    print(
        f"  peak memory above the start: {peak_mb() - before:.0f} MB, of which scoring itself {peak_mb() - held:.0f} "
        "MB (allowed: 1000 MB)"
    )


def market(repeats, torchreid):
    """Rank given similarities."""
    rng = np.random.default_rng(0)
    query, gallery = labels(rng, **MARKET)
    similarity = rng.standard_normal((len(query), len(gallery)), dtype=np.float32)
    similarity += 2.5 * (query.pids[:, None] == gallery.pids)
    slow, expected = best(lambda: argsort_map(similarity, query, gallery), 1)
    fast, scores = best(lambda: score_similarities(similarity, query, gallery), repeats)
    if abs(scores.mAP - expected) > 1e-9:
        raise SystemExit(f"the two rankers disagree: {scores.mAP} and {expected}")
    print(f"\nMarket-1501's size, {len(query)} × {len(gallery)}, similarities given, mAP {expected:.2f} from both")
    print(f"  {'ranker':44} {'seconds':>8} {'times':>6}")
    for name, seconds in (
        ("torchreid, Cython (given)", torchreid),
        ("NumPy, every row sorted", slow),
        (f"domains.scoring, best of {repeats}", fast),
    ):
        print(f"  {name:44} {seconds:8.3f} {seconds / fast:6.1f}")


def rerank():
    """Re-rank at Market-1501's size."""
    rng = np.random.default_rng(0)
    query, gallery = labels(rng, **MARKET)
    left, right = features(rng, query.pids, 512), features(rng, gallery.pids, 512)
    before = peak_mb()
    seconds, result = best(lambda: k_reciprocal(left, right), 1)
    used = peak_mb() - before
    plain, better = score_domain(left, right, query, gallery), score_similarities(result, query, gallery)
    print(f"\nk-reciprocal re-ranking at Market-1501's size: {seconds:.1f} s, mAP {plain.mAP:.2f} → {better.mAP:.2f}")
    print(f"  peak memory above the features: {used:.0f} MB, of which the result {result.nbytes / 2**20:.0f} MB")


def alone(part, *arguments):
    """Run one part in a fresh process."""
    process = multiprocessing.get_context("spawn").Process(target=part, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of the fast ranker (default 5)")
    parser.add_argument(
        "--torchreid", type=float, default=3.5, help="seconds torchreid's Cython ranker takes here (default 3.5)"
    )
    parser.add_argument("--rerank", action="store_true", help="time re-ranking too")
    options = parser.parse_args()
    alone(market, options.repeats, options.torchreid)
    alone(msmt17)
    if options.rerank:
        alone(rerank)
