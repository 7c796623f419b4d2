"""The gallery beside bare FAISS on the same index, and beside milvus-lite, LanceDB and Chroma on the same vectors.

Run with ``OMP_NUM_THREADS=1 python -m benchmarks.gallery [--sizes 100000,1000000] [--peers milvus,lancedb,chroma] [--minutes 15]``; the peers need
``pip install 'lifelong-reid[bench]'``. Every part has a process of its own, so that its memory is its own. Figures go to
``benchmarks/results/gallery.json``.

Vectors are drawn: people are clusters in 512 dimensions, with the share of variance between and within people, the common part and the effective
number of dimensions (about 25 and 90) that embeddings of some 6,500 real crops have by a person-trained network. Queries are further crops of stored
people.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import record, recorded

DIM, PER_PERSON, CAMERAS, BATCH, K = 512, 20, 64, 256, 10
QUERIES = 200
SPACE = "bench" * 12
DAY = "2026-03-{:02d}T00:00:00Z"


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
    return {name: np.load(folder / f"{count}-{name}.npy", mmap_mode="r") for name in ("vectors", "who", "camera", "queries")}


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


def side_by_side(bare: Callable[[int], Any], ours: Callable[[int], Any], repeats: int = QUERIES) -> dict[str, float]:
    """Both for the same queries, in turns: median ms and ratio, of the time on the wall and of this thread's own, which other work disturbs less."""
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
        found |= {f"{kind}faiss_ms": round(one, 3), f"{kind}gallery_ms": round(two, 3), f"{kind}ratio": round(two / one, 3)}
    return found


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def remains(folder: Path, vector: np.ndarray) -> bool:
    """Whether 16 values in a row of a vector lie in any file below a folder, as fp32 or fp16, up to the rounding of a store that rescales them."""
    wanted = vector[32:48].astype(np.float32)
    allowed = 2e-3 * np.abs(wanted) + 1e-7
    for file in folder.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        for kind in (np.dtype(np.float32), np.dtype(np.float16)):
            for offset in range(kind.itemsize):
                values = np.frombuffer(data, kind, (len(data) - offset) // kind.itemsize, offset) if len(data) > offset + 64 else np.empty(0, kind)
                with np.errstate(all="ignore"):
                    places = np.flatnonzero(np.abs(values[: len(values) - 15] - wanted[0].astype(kind)) <= allowed[0])
                    for step in range(1, 16):
                        places = places[np.abs(values[places + step].astype(np.float32) - wanted[step]) <= allowed[step]]
                if places.size:
                    return True
    return False


# ------------------------------------------------------------------------------------------------------------------------- ours and bare FAISS


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
    from deploy.codes import load_faiss
    from deploy.selection import Selection

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
                index.codes.index.search(queries[number : number + 1], K, params=faiss.SearchParameters(sel=chosen) if chosen else None)
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
            row["recall"] = round(overlap(gallery.search(some, k=K, **options), gallery.search(some, k=K, exact=True, **filters)), 4)
        found.setdefault("searches", {})[name] = row
        print(f"  {name}: {row}", flush=True)
    found["disk_bytes"] = folder_bytes(place)
    start = time.perf_counter()
    erased = gallery.ids()[count // 2]
    gallery.forget([erased])
    found["forget_s"] = round(time.perf_counter() - start, 2)
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
    return statistics.mean(len({match.id for match in one} & {match.id for match in two}) / max(1, len(two)) for one, two in pairs)


# ------------------------------------------------------------------------------------------------------------------------------------- peers


class Milvus:
    """milvus-lite: one file, HNSW or what it offers."""

    name = "milvus-lite"

    def __init__(self, folder: Path) -> None:
        from pymilvus import DataType, MilvusClient

        self.client = MilvusClient(str(folder / "milvus.db"))
        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
        schema.add_field("camera", DataType.VARCHAR, max_length=64)
        self.client.create_collection("people", schema=schema)
        self.effort = 32

    def add(self, ids: list[int], vectors: np.ndarray, cameras: list[str]) -> None:
        rows = zip(ids, vectors.tolist(), cameras, strict=True)
        self.client.insert("people", [{"id": number, "vector": vector, "camera": camera} for number, vector, camera in rows])

    def finish(self) -> None:
        self.client.flush("people")
        parameters = self.client.prepare_index_params()
        parameters.add_index("vector", index_type="IVF_FLAT", metric_type="COSINE", params={"nlist": 256})
        self.client.create_index("people", parameters)
        self.client.load_collection("people")

    def search(self, query: np.ndarray, camera: str | None) -> list[int]:
        extra = {} if camera is None else {"filter": f'camera == "{camera}"'}
        found = self.client.search(
            "people", data=[query.tolist()], limit=K, search_params={"metric_type": "COSINE", "params": {"nprobe": self.effort}}, **extra
        )
        return [hit["id"] for hit in found[0]]

    def erase(self, number: int) -> None:
        self.client.delete("people", ids=[number])

    def clean(self) -> None:
        self.client.flush("people")
        with contextlib.suppress(Exception):  # milvus-lite may not offer it
            self.client.compact("people")

    def close(self) -> None:
        self.client.close()


class Lance:
    """LanceDB: IVF_FLAT on cosine."""

    name = "LanceDB"

    def __init__(self, folder: Path) -> None:
        import lancedb
        import pyarrow as arrow

        self.arrow = arrow
        self.db = lancedb.connect(str(folder / "lance"))
        fields = [("id", arrow.int64()), ("vector", arrow.list_(arrow.float32(), DIM)), ("camera", arrow.string())]
        self.schema = arrow.schema(fields)
        self.table = self.db.create_table("people", schema=self.schema)
        self.effort = 20

    def add(self, ids: list[int], vectors: np.ndarray, cameras: list[str]) -> None:
        flat = self.arrow.FixedSizeListArray.from_arrays(self.arrow.array(vectors.ravel()), DIM)
        self.table.add(self.arrow.Table.from_arrays([self.arrow.array(ids), flat, self.arrow.array(cameras)], schema=self.schema))

    def finish(self) -> None:
        self.table.optimize()
        self.table.create_index(metric="cosine", vector_column_name="vector", index_type="IVF_FLAT", num_partitions=256)

    def search(self, query: np.ndarray, camera: str | None) -> list[int]:
        asked = self.table.search(query).distance_type("cosine").nprobes(self.effort).limit(K).select(["id", "_distance"])
        if camera is not None:
            asked = asked.where(f"camera = '{camera}'", prefilter=True)
        return [row["id"] for row in asked.to_list()]

    def erase(self, number: int) -> None:
        self.table.delete(f"id = {number}")

    def clean(self) -> None:
        from datetime import timedelta

        self.table.optimize(cleanup_older_than=timedelta(0))

    def close(self) -> None:
        pass


class Chroma:
    """Chroma: HNSW on cosine, persistent client."""

    name = "Chroma"

    def __init__(self, folder: Path) -> None:
        import chromadb
        from chromadb.config import Settings

        self.client = chromadb.PersistentClient(str(folder / "chroma"), settings=Settings(anonymized_telemetry=False))
        self.collection = self.client.create_collection("people", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None)
        self.effort = 100

    def add(self, ids: list[int], vectors: np.ndarray, cameras: list[str]) -> None:
        self.collection.add(ids=[str(number) for number in ids], embeddings=vectors, metadatas=[{"camera": camera} for camera in cameras])

    def finish(self) -> None:
        pass

    def search(self, query: np.ndarray, camera: str | None) -> list[int]:
        where = {} if camera is None else {"where": {"camera": camera}}
        return [int(number) for number in self.collection.query(query_embeddings=query[None], n_results=K, include=[], **where)["ids"][0]]

    def erase(self, number: int) -> None:
        self.collection.delete(ids=[str(number)])

    def clean(self) -> None:
        pass

    def close(self) -> None:
        pass


class Ours:
    """This gallery, in the same frame."""

    name = "lifelong-reid"

    def __init__(self, folder: Path) -> None:
        from deploy import Gallery

        self.gallery = Gallery.create(folder / "gallery", DIM, SPACE)

    def add(self, ids: list[int], vectors: np.ndarray, cameras: list[str]) -> None:
        self.gallery.add(vectors, camera=cameras, source=[str(number) for number in ids])

    def finish(self) -> None:
        self.gallery.prepare()
        self.gallery._save_index()

    def search(self, query: np.ndarray, camera: str | None) -> list[int]:
        return [int(match.source) for match in self.gallery.search(query, k=K, camera=camera)[0]]

    def erase(self, number: int) -> None:
        self.gallery.forget([number + 1])

    def clean(self) -> None:
        pass

    def close(self) -> None:
        self.gallery.close()


PEERS: dict[str, Any] = {"ours": Ours, "milvus": Milvus, "lancedb": Lance, "chroma": Chroma}


def truth(data: dict[str, np.ndarray], camera: int | None) -> np.ndarray:
    """Numbers of the nearest ``K`` of each query by exact search."""
    queries = np.array(data["queries"])
    best = np.full((len(queries), K), -np.inf, np.float32)
    which = np.full((len(queries), K), -1, np.int64)
    for start in range(0, len(data["vectors"]), 8192):
        part = data["vectors"][start : start + 8192].astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        scores = queries @ part.T
        if camera is not None:
            scores[:, data["camera"][start : start + 8192] != camera] = -np.inf
        scores, numbers = (
            np.concatenate([best, scores], 1),
            np.concatenate([which, np.tile(np.arange(start, start + len(part)), (len(queries), 1))], 1),
        )
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        best, which = np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
    return which


def peer(folder: Path, which: str, count: int, minutes: float, report: Any) -> None:
    """Load, search, erase; a peer that takes too long to load is given up."""
    data = drawn(folder, count)
    place = folder / f"{which}-{count}"
    place.mkdir()
    queries = np.array(data["queries"])
    wanted, wanted_camera = truth(data, None), truth(data, 7)
    gc.collect()
    before = memory_mb()
    store = PEERS[which](place)
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        part = slice(first, min(first + BATCH, count))
        cameras = [f"c{camera}" for camera in data["camera"][part]]
        store.add(list(range(part.start, part.stop)), data["vectors"][part].astype(np.float32), cameras)
        if time.perf_counter() - start > 60 * minutes:
            report.put({"name": store.name, "gave_up": f"{part.stop} of {count} loaded after {minutes:g} minutes"})
            store.close()
            return
    loaded = time.perf_counter() - start
    store.finish()
    found: dict[str, Any] = {"name": store.name, "load_s": round(loaded, 1), "index_s": round(time.perf_counter() - start - loaded, 1)}

    def recall(camera: str | None, right: np.ndarray) -> float:
        return statistics.mean(
            len(set(store.search(query, camera)) & set(row.tolist())) / K for query, row in zip(queries[:100], right[:100], strict=True)
        )

    found["recall"] = round(recall(None, wanted), 4)
    while found["recall"] < 0.98 and which in ("milvus", "lancedb") and store.effort < 256:
        store.effort = round(store.effort * 1.5)
        found["recall"] = round(recall(None, wanted), 4)
    found["effort"] = getattr(store, "effort", None)
    found["recall_filtered"] = round(recall("c7", wanted_camera), 4)
    found["search_ms"] = round(milliseconds(lambda number: store.search(queries[number], None), 100), 2)
    found["filtered_ms"] = round(milliseconds(lambda number: store.search(queries[number], "c7"), 100), 2)
    found["memory_mb"] = round(memory_mb() - before)
    found["disk_mb"] = round(folder_bytes(place) / 2**20)
    vector = np.array(data["vectors"][count // 2]).astype(np.float32)
    found["there_before_erasing"] = remains(place, vector)
    start = time.perf_counter()
    store.erase(count // 2)
    found["erase_s"] = round(time.perf_counter() - start, 3)
    found["remains_after_erasing"] = remains(place, vector)
    store.clean()
    found["remains_after_cleaning"] = remains(place, vector)
    store.close()
    report.put(found)


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


def main(arguments: list[str]) -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100000,1000000", help="entries, separated by commas; none with an empty text")
    parser.add_argument("--peers", default="ours,milvus,lancedb,chroma", help="which stores to compare; none with an empty text")
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
