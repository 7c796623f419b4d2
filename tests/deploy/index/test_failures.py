"""Too little memory, a full disk and whatever FAISS raises, wherever it happens: one line of ours, and nothing lost."""

import errno
import io
import json
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny import SPACE, unit

from deploy import Gallery
from deploy.gallery import gallery as gallery_module
from deploy.gallery import upgrade
from deploy.gallery.upgrade import Plan, carry
from deploy.index import files, index
from deploy.index.codes import Codes, Truth
from deploy.store.store import Facts, Store
from domains import artefact
from domains.errors import GalleryError
from prototypes.passage import Passage

faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
DIM = 16
FAISS = RuntimeError(
    "Error in void faiss::write_index(...) at /project/faiss/impl/index_write.cpp:590: Error: 'f' failed: could not "
    "open x for writing: No space left on device\nmore"
)
ERRORS = {"memory": MemoryError(), "bad_alloc": MemoryError("std::bad_alloc"), "faiss": FAISS}


@pytest.fixture(params=["flat", "lists"])
def gallery(request, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "EXACT_BELOW", 600 if request.param == "lists" else 10_000)
    monkeypatch.setattr(index, "_QUERIES", 40)
    monkeypatch.setattr(index, "_SAMPLE", 10)
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        made.add(unit(np.random.default_rng(1), 1000, DIM), "c", [str(number) for number in range(1000)])
        yield made


def failing(error):
    def fail(*arguments, **options):
        raise error

    return fail


VECTOR = unit(np.random.default_rng(1), 1, DIM)[0]
PLACES = [
    ("a search", (Codes, "search"), lambda gallery: gallery.search(VECTOR)),
    ("a search, exact", (Codes, "pick"), lambda gallery: gallery.search(VECTOR, exact=True)),
    ("building", (Codes, "add"), lambda gallery: gallery.search(VECTOR)),
    ("building", (Store, "columns"), lambda gallery: gallery.search(VECTOR)),
    ("building", (Store, "vectors"), lambda gallery: gallery.search(VECTOR)),
    ("training", (Codes, "trained"), lambda gallery: gallery.prepare()),
    ("training", (Truth, "see"), lambda gallery: gallery.prepare()),
    ("training", (Codes, "reserve"), lambda gallery: gallery.prepare()),
    ("training", (Codes, "measure"), lambda gallery: gallery.prepare()),
    ("a filter", (np, "packbits"), lambda gallery: gallery.search(VECTOR, camera="c")),
    ("checking", (Codes, "vectors"), lambda gallery: (gallery.prepare(), gallery._save_index(), gallery.verify())),
    ("checking", (Store, "rows"), lambda gallery: gallery.verify()),
    ("adding", (gallery_module, "unit_vectors"), lambda gallery: gallery.add(VECTOR, "c", "new")),
    ("adding", (Store, "append"), lambda gallery: gallery.add(VECTOR, "c", "new")),
    ("the ids", (np, "sort"), lambda gallery: gallery.ids()),
    ("vectors", (np.linalg, "norm"), lambda gallery: gallery.vectors([1])),
    ("writing", (faiss, "write_index"), lambda gallery: (gallery.prepare(), gallery._save_index())),
    ("writing", (np, "savez"), lambda gallery: (gallery.prepare(), gallery._save_index())),
]


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize(("what", "place", "deed"), PLACES, ids=[f"{place[0]}-{place[1][1]}" for place in PLACES])
def test_it_is_one_line_and_afterwards_all_is_well(gallery, monkeypatch, what, place, deed, error):
    if error is FAISS and place[0] not in (Codes, faiss):
        pytest.skip("FAISS is not called there")
    with monkeypatch.context() as patch:
        patch.setattr(*place, failing(error))
        try:
            deed(gallery)
        except GalleryError as caught:
            said = str(caught)
            assert "\n" not in said
            assert "/project/" not in said
            assert ("not enough memory" if isinstance(error, MemoryError) else "No space left on device") in said
    with Gallery.open(gallery.path) as again:
        assert len(again) == 1000
        assert again.search(VECTOR, k=1)[0][0].source == "0"
    assert gallery.search(VECTOR, k=1)[0][0].source == "0"
    assert len(gallery.verify()) == 3


@pytest.mark.parametrize("error", [*ERRORS.values(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=str)
@pytest.mark.parametrize("deed", ["close", "verify", "upgrade", "forget"])
def test_an_index_that_cannot_be_saved_only_costs_time(gallery, monkeypatch, caplog, error, deed):
    gallery.search(VECTOR)
    gallery._save_index()
    with monkeypatch.context() as patch:
        patch.setattr(files, "_write", failing(error))
        if deed == "close":
            gallery.add(unit(np.random.default_rng(2), 200, DIM), "c", [f"new {number}" for number in range(200)])
            gallery.search(VECTOR)
            gallery.close()
        elif deed == "verify":
            (gallery.path / "index.npz").write_bytes(b"x")
            assert "rebuilt" in gallery.verify()[1]
        elif deed == "upgrade":
            carry(
                gallery._store,
                Plan(Facts(DIM, "cd" * 32, None), Passage(matrix=np.eye(DIM, dtype=np.float32)), ((0.9, 0.1),)),
            )
            gallery._renew_index()
        else:
            assert gallery.forget([5]) == 1
    with Gallery.open(gallery.path) as again:
        assert again.search(VECTOR, k=1)[0][0].source == "0"
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        assert "\n" not in record.getMessage()


def bomb(**claims):
    """An npz whose arrays claim more than they hold."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, shape in claims.items():
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", head.getvalue())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"x" * 100, bomb(ids=(2**40,)), bomb(ids=(3,), utc=(3,)), bomb(ids=(2**62, 2**62)), bomb()],
    ids=["empty", "cut", "no zip", "huge", "short", "overflow", "nothing"],
)
@pytest.mark.parametrize("name", ["index.npz", "index.faiss"])
def test_files_that_lie_although_their_hashes_are_right_are_built_anew(gallery, data, name):
    gallery.search(VECTOR)
    gallery.close()
    (gallery.path / name).write_bytes(data)
    body = json.loads((gallery.path / "index.json").read_text())
    del body["id"]
    body["files"][name] = artefact.sha256_file(gallery.path / name)
    (gallery.path / "index.json").write_text(json.dumps({"id": artefact.content_id(body), **body}))
    with Gallery.open(gallery.path) as again:
        assert again.search(VECTOR, k=1)[0][0].source == "0"
        assert len(again.verify()) == 3


class _Stored:
    """A gallery's database that holds one map."""

    file = Path("gallery/gallery.db")

    def __init__(self, data, before=DIM, after=DIM):
        self.row = (data, after, before)

    def ask(self, query, values):
        return [self.row]


def bare_map(matrix):
    """As earlier versions stored a map."""
    stored = io.BytesIO()
    np.save(stored, matrix.astype(np.float16))
    return stored.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-2],
        lambda data: data + b"xx",
        lambda data: b"",
        lambda data: b"x" * 40,
        lambda data: data.replace(b"(16, 16)", b"(1<<50,)"),
        lambda data: data.replace(b"(16, 16)", b"(16, 99)"),
        lambda data: data.replace(b"<f2", b"<f8"),
        lambda data: data.replace(b"<f2", b"|O "),
        lambda data: None,
        lambda data: "text",
    ],
)
def test_a_stored_map_that_lies_is_one_line(change):
    data = bare_map(np.eye(DIM))
    assert np.array_equal(upgrade._passage(_Stored(data), 2).matrix, np.eye(DIM))
    with pytest.raises(GalleryError, match="map stored in the gallery is damaged") as caught:
        upgrade._passage(_Stored(change(data)), 2)
    assert "\n" not in str(caught.value)


def test_a_map_is_read_in_whichever_order_it_was_written():
    matrix = np.asfortranarray(np.random.default_rng(1).normal(size=(4, 6)).astype(np.float16).astype(np.float32))
    assert np.array_equal(upgrade._passage(_Stored(bare_map(matrix), 4, 6), 2).matrix, matrix)
