"""The gallery beside bare FAISS on the same index, and beside milvus-lite, LanceDB and Chroma on the same vectors.

Run with ``OMP_NUM_THREADS=1 python -m benchmarks.gallery [--sizes 100000,1000000] [--peers milvus,lancedb,chroma]
[--minutes 15]``; the peers need ``pip install 'lifelong-reid[bench]'``. Every part has a process of its own, so that
its memory is its own. Figures go to ``benchmarks/results/gallery.json``.

Vectors are drawn: people are clusters in 512 dimensions, with the share of variance between and within people, the
common part and the effective number of dimensions (about 25 and 90) that embeddings of some 6,500 real crops have by a
person-trained network. Queries are further crops of stored people.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gallery_frame import BATCH, DIM, QUERIES, SPACE, K, alone, drawn, folder_bytes, memory_mb
from benchmarks.gallery_peers import peer
from benchmarks.results_file import record, recorded

DAY = "2026-03-{:02d}T00:00:00Z"


def side_by_side(bare: Callable[[int], Any], ours: Callable[[int], Any], repeats: int = QUERIES) -> dict[str, float]:
    """Both for the same queries, in turns: median ms and ratio, of the time on the wall and of this thread's own, which
    other work disturbs less.
    """
    wall: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    for number in range(-3, repeats):
        for place, ask in enumerate((bare, ours)):
            start, used = time.perf_counter(), time.thread_time()
            ask(max(number, 0))
            if number >= 0:
                wall[place].append(time.perf_counter() - start)
                cpu[place].append(time.thread_time() - used)
    found: dict[str, float] = {}
    for kind, times in (("", wall), ("cpu_", cpu)):
        one, two = (1000 * statistics.median(part) for part in times)
        found |= {
            f"{kind}faiss_ms": round(one, 3),
            f"{kind}gallery_ms": round(two, 3),
            f"{kind}ratio": round(two / one, 3),
        }
    return found


def ours(folder: Path, count: int, report: Any) -> None:
    """Load a gallery, then measure it; a second process opens it again."""
    from deploy import Gallery

    data = drawn(folder, count)
    place = folder / f"gallery-{count}"
    gallery = Gallery.create(place, DIM, SPACE)
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        part = slice(first, min(first + BATCH, count))
        numbers = range(part.start, part.stop)
        gallery.add(
            data["vectors"][part].astype(np.float32),
            camera=[f"c{camera}" for camera in data["camera"][part]],
            source=[f"/crops/{number // 1000:05d}/{number:08d}.jpg" for number in numbers],
            time=[f"2026-03-{1 + number * 28 // count:02d}T12:{number % 60:02d}:00Z" for number in numbers],
            label=[f"p{who}" for who in data["who"][part]],
        )
    load = time.perf_counter() - start
    before = memory_mb()
    start = time.perf_counter()
    gallery.prepare()
    build = time.perf_counter() - start
    held = memory_mb() - before
    start = time.perf_counter()
    gallery.close()
    report.put(
        {
            "load_s": round(load, 2),
            "added_per_s": round(count / load),
            "index_s": round(build, 2),
            "close_s": round(time.perf_counter() - start, 2),
            "made_memory_mb": round(held),
        }
    )


def opened(folder: Path, count: int, report: Any) -> None:
    """Open the gallery from its files, and search it and the FAISS index inside it in turns."""
    from deploy import Gallery
    from deploy.index.codes import load_faiss
    from deploy.store.selection import Selection

    data = drawn(folder, count)
    place = folder / f"gallery-{count}"
    faiss = load_faiss()
    queries = np.array(data["queries"])
    before = memory_mb()
    start = time.perf_counter()
    gallery = Gallery.open(place)
    gallery.search(queries[0], k=K)
    found: dict[str, Any] = {"open_s": round(time.perf_counter() - start, 2)}
    found["memory_mb"] = round(memory_mb() - before)
    found["memory_allowed_mb"] = round(1.2 * count * DIM * 2 / 2**20 + 200)
    store, index = gallery._store, gallery._keeper.index
    assert index is not None
    lists = index.codes.lists
    found["lists"] = None if lists is None else lists.to_dict()
    some = queries[: 60 if count > 300_000 else QUERIES]
    exact = gallery.search(some, k=K, exact=True)
    answer = gallery.search(some, k=K)
    found["recall_of_new_queries"] = round(overlap(answer, exact), 4)
    cases: dict[str, tuple[dict[str, Any], bool]] = {
        "all": ({}, True),
        "all, exact": ({"exact": True}, True),
        "one camera of 64": ({"camera": "c7"}, True),
        "one day of 28": ({"after": DAY.format(7), "before": DAY.format(8)}, True),
        "half of the time": ({"after": DAY.format(14)}, True),
        "one label": ({"label": "p77"}, True),
        "one source folder": ({"source": "/crops/00042/"}, True),
        "one camera, new filter each time": ({"camera": "c7"}, False),
        "half of the time, new filter each time": ({"after": DAY.format(14)}, False),
    }
    for name, (options, remembered) in cases.items():
        filters = {key: value for key, value in options.items() if key != "exact"}
        with store.reading():
            allowed = index.allowed(Selection(**filters), store)
        probes = index._probes(K, allowed.size, exact=bool(options.get("exact")))

        def bare(number: int, allowed: Any = allowed, probes: int | None = probes) -> None:
            chosen = None if allowed.bits is None else faiss.IDSelectorBitmap(allowed.bits)
            if lists is None:
                index.codes.index.search(
                    queries[number : number + 1], K, params=faiss.SearchParameters(sel=chosen) if chosen else None
                )
            else:
                parameters = faiss.SearchParametersIVF(nprobe=probes or lists.lists, sel=chosen)
                index.codes.index.search(queries[number : number + 1], K, params=parameters)

        def gallery_search(number: int, options: dict[str, Any] = options, remembered: bool = remembered) -> None:
            if not remembered:
                index._allowed.clear()
            gallery.search(queries[number], k=K, **options)

        row: dict[str, Any] = side_by_side(bare, gallery_search, 60 if count > 300_000 else QUERIES)
        row |= {"candidates": allowed.size, "exact": probes is None}
        if filters and remembered:
            row["recall"] = round(
                overlap(gallery.search(some, k=K, **options), gallery.search(some, k=K, exact=True, **filters)), 4
            )
        found.setdefault("searches", {})[name] = row
        print(f"  {name}: {row}", flush=True)
    found["disk_bytes"] = folder_bytes(place)
    eraser = threading.Thread(target=gallery.forget, args=([gallery.ids()[count // 2]],))
    start = time.perf_counter()
    eraser.start()
    waits = []
    while eraser.is_alive():
        asked = time.perf_counter()
        gallery.search(queries[len(waits) % len(queries)], k=K)
        waits.append(1000 * (time.perf_counter() - asked))
        time.sleep(0.02)  # else there are always readers, and one core for all
    found["forget_s"] = round(time.perf_counter() - start, 2)
    found["search_while_forgetting_ms"] = [round(statistics.median(waits), 1), round(max(waits), 1)]
    needle = np.array(data["vectors"][count // 2]).tobytes()[64:96]
    found["erased_remains"] = any(needle in file.read_bytes() for file in place.rglob("*") if file.is_file())
    start = time.perf_counter()
    gallery.search(queries[0], k=K)
    found["search_after_forget_s"] = round(time.perf_counter() - start, 2)
    gallery.close()
    report.put(found)


def overlap(found: list[Any], wanted: list[Any]) -> float:
    """Mean share of the wanted ids that were found."""
    pairs = zip(found, wanted, strict=True)
    return statistics.mean(
        len({match.id for match in one} & {match.id for match in two}) / max(1, len(two)) for one, two in pairs
    )


def main(arguments: list[str]) -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", default="100000,1000000", help="entries, separated by commas; none with an empty text"
    )
    parser.add_argument(
        "--peers", default="ours,milvus,lancedb,chroma", help="which stores to compare; none with an empty text"
    )
    parser.add_argument("--peer-sizes", default="100000", help="entries of the comparison")
    parser.add_argument("--minutes", type=float, default=15, help="a peer that loads for longer is given up")
    parser.add_argument("--folder", type=Path, help="where to work, some GB free; a temporary folder by default")
    parser.add_argument("--dry", action="store_true", help="keep no figures")
    options = parser.parse_args(arguments)
    kept = recorded("gallery")
    body: dict[str, Any] = {"faiss": kept.get("faiss", {}), "peers": kept.get("peers", {})}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for count in [int(size) for size in options.sizes.split(",") if size]:
            print(f"{count} entries", flush=True)
            found = alone(ours, folder, count)
            print(json.dumps(found), flush=True)
            found |= alone(opened, folder, count)
            print(json.dumps(found, indent=1), flush=True)
            body["faiss"][str(count)] = found
            shutil.rmtree(folder / f"gallery-{count}")
            if not options.dry:
                record("gallery", body)
        for count in [int(size) for size in options.peer_sizes.split(",") if size]:
            for which in [word for word in options.peers.split(",") if word]:
                found = alone(peer, folder, which, count, options.minutes)
                print(which, json.dumps(found), flush=True)
                body["peers"].setdefault(str(count), {})[which] = found
                shutil.rmtree(folder / f"{which}-{count}", ignore_errors=True)
                if not options.dry:
                    record("gallery", body)


if __name__ == "__main__":
    main(sys.argv[1:])
