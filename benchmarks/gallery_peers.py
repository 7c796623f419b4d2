"""milvus-lite, LanceDB, Chroma and this gallery in one frame: loading, searching, filters, and whether the bytes of
what was erased are gone.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gallery_frame import BATCH, DIM, SPACE, K, drawn, folder_bytes, memory_mb, milliseconds


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
        self.client.insert(
            "people", [{"id": number, "vector": vector, "camera": camera} for number, vector, camera in rows]
        )

    def finish(self) -> None:
        self.client.flush("people")
        parameters = self.client.prepare_index_params()
        parameters.add_index("vector", index_type="IVF_FLAT", metric_type="COSINE", params={"nlist": 256})
        self.client.create_index("people", parameters)
        self.client.load_collection("people")

    def search(self, query: np.ndarray, camera: str | None) -> list[int]:
        extra = {} if camera is None else {"filter": f'camera == "{camera}"'}
        found = self.client.search(
            "people",
            data=[query.tolist()],
            limit=K,
            search_params={"metric_type": "COSINE", "params": {"nprobe": self.effort}},
            **extra,
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
        self.table.add(
            self.arrow.Table.from_arrays([self.arrow.array(ids), flat, self.arrow.array(cameras)], schema=self.schema)
        )

    def finish(self) -> None:
        self.table.optimize()
        self.table.create_index(metric="cosine", vector_column_name="vector", index_type="IVF_FLAT", num_partitions=256)

    def search(self, query: np.ndarray, camera: str | None) -> list[int]:
        asked = (
            self.table.search(query).distance_type("cosine").nprobes(self.effort).limit(K).select(["id", "_distance"])
        )
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
        self.collection = self.client.create_collection(
            "people", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )
        self.effort = 100

    def add(self, ids: list[int], vectors: np.ndarray, cameras: list[str]) -> None:
        self.collection.add(
            ids=[str(number) for number in ids],
            embeddings=vectors,
            metadatas=[{"camera": camera} for camera in cameras],
        )

    def finish(self) -> None:
        pass

    def search(self, query: np.ndarray, camera: str | None) -> list[int]:
        where = {} if camera is None else {"where": {"camera": camera}}
        return [
            int(number)
            for number in self.collection.query(query_embeddings=query[None], n_results=K, include=[], **where)["ids"][
                0
            ]
        ]

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
    found: dict[str, Any] = {
        "name": store.name,
        "load_s": round(loaded, 1),
        "index_s": round(time.perf_counter() - start - loaded, 1),
    }

    def recall(camera: str | None, right: np.ndarray) -> float:
        return statistics.mean(
            len(set(store.search(query, camera)) & set(row.tolist())) / K
            for query, row in zip(queries[:100], right[:100], strict=True)
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


def remains(folder: Path, vector: np.ndarray) -> bool:
    """Whether 16 values in a row of a vector lie in any file below a folder, as fp32 or fp16, up to the rounding of a
    store that rescales them.
    """
    wanted = vector[32:48].astype(np.float32)
    allowed = 2e-3 * np.abs(wanted) + 1e-7
    for file in folder.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        for kind in (np.dtype(np.float32), np.dtype(np.float16)):
            for offset in range(kind.itemsize):
                values = (
                    np.frombuffer(data, kind, (len(data) - offset) // kind.itemsize, offset)
                    if len(data) > offset + 64
                    else np.empty(0, kind)
                )
                with np.errstate(all="ignore"):
                    places = np.flatnonzero(np.abs(values[: len(values) - 15] - wanted[0].astype(kind)) <= allowed[0])
                    for step in range(1, 16):
                        places = places[
                            np.abs(values[places + step].astype(np.float32) - wanted[step]) <= allowed[step]
                        ]
                if places.size:
                    return True
    return False
