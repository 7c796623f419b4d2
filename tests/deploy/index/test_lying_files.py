"""Index files that lie about themselves, sealed again by somebody who knows how: they are made again, and no memory is
taken for what they claim.
"""

import io
import json
import logging
import resource
import shutil
import struct

import numpy as np
import pytest
from tiny import SPACE, unit

from deploy import Gallery
from deploy.index import index
from deploy.index.codes import Codes
from domains.artefact import content_id, sha256_file
from domains.errors import GalleryError

pytest.importorskip("faiss", reason="FAISS is not installed")
DIM, COUNT = 16, 1000


@pytest.fixture(params=["flat", "lists"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "EXACT_BELOW", 600 if request.param == "lists" else 10_000)
    monkeypatch.setattr(index, "_QUERIES", 40)
    monkeypatch.setattr(index, "_SAMPLE", 10)
    with Gallery.create(tmp_path / "gallery", DIM, SPACE) as made:
        made.add(unit(np.random.default_rng(1), COUNT, DIM), "c", [str(number) for number in range(COUNT)])
        made.prepare()
    assert (tmp_path / "gallery" / "index.faiss").is_file()
    return tmp_path / "gallery"


def resealed(folder, name, data):
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "index.json").read_text())
    manifest.pop("id")
    manifest["files"] = {file: sha256_file(folder / file) for file in manifest["files"]}
    (folder / "index.json").write_text(json.dumps({"id": content_id(manifest), **manifest}))


def answers(folder):
    with Gallery.open(folder) as gallery:
        return [match.source for match in gallery.search(unit(np.random.default_rng(1), 1, DIM)[0], 3)[0]]


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def claiming(shape):
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 8


def zipped(members):
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


FILTERS = {
    "empty": b"",
    "text": b"hello",
    "huge": zipped(dict.fromkeys(("ids", "utc", "camera", "cameras"), claiming("(1099511627776,)"))),
    "negative": zipped(dict.fromkeys(("ids", "utc", "camera", "cameras"), claiming("(-2,)"))),
    "none": archive(),
    "points": archive(ids=np.int64(1), utc=np.int64(1), camera=np.int64(1), cameras=np.str_("x")),
    "short": archive(ids=np.arange(3), utc=np.arange(3), camera=np.arange(3), cameras=np.array(["c"])),
}


@pytest.mark.parametrize("how", FILTERS)
def test_filters_that_lie_are_made_again(how, folder, caplog):
    expected = answers(folder)
    resealed(folder, "index.npz", FILTERS[how])
    with caplog.at_level(logging.INFO):
        assert answers(folder) == expected


def everything(folder):
    """What a gallery says in answer to searches, and after additions and erasures."""
    queries = unit(np.random.default_rng(1), 2, DIM)
    with Gallery.open(folder) as gallery:
        said = [gallery.search(queries, 3), gallery.search(queries, 900)]
        said.append(gallery.search(queries, 3, camera="d", after="2025-01-01T00:00:00Z"))
        gallery.info()
        gallery.add(unit(np.random.default_rng(3), 1, DIM), "z", ["new"])
        gallery.forget([1, 2, 3])
        said.append(gallery.search(queries, 3))
        assert "differ" not in gallery.verify()[1]
    return [[[(match.id, match.source) for match in matches] for matches in answer] for answer in said]


@pytest.fixture
def twice(folder, tmp_path):
    """The folder with two cameras and times, and what it says when nothing was changed."""
    shutil.rmtree(folder)
    with Gallery.create(folder, DIM, SPACE) as made:
        vectors = unit(np.random.default_rng(1), COUNT, DIM)
        made.add(vectors, ["c", "d"] * (COUNT // 2), [str(row) for row in range(COUNT)], time="2026-01-01T00:00:00Z")
        made.prepare()
    shutil.copytree(folder, tmp_path / "other")
    return folder, everything(tmp_path / "other")


ARRAYS = {
    "ids shuffled": {"ids": lambda ids: ids[::-1].copy()},
    "ids twice": {"ids": np.ones_like},
    "ids in a table": {"ids": lambda ids: np.stack([ids, ids], 1)},
    "ids text": {"ids": lambda ids: ids.astype(str)},
    "ids truth": {"ids": lambda ids: ids > 3},
    "ids short": {"ids": lambda ids: ids.astype(np.uint8)},
    "ids floats": {"ids": lambda ids: ids.astype(float)},
    "ids negative": {"ids": lambda ids: -ids[::-1]},
    "ids from 0": {"ids": lambda ids: ids - 1},
    "ids beyond": {"ids": lambda ids: ids + 10**6},
    "times text": {"utc": lambda utc: utc.astype(str)},
    "times no numbers": {"utc": lambda utc: utc * np.nan},
    "times in a table": {"utc": lambda utc: np.stack([utc, utc], 1)},
    "cameras negative": {"camera": lambda codes: codes * 0 - 5},
    "cameras out of range": {"camera": lambda codes: codes + 99},
    "cameras text": {"camera": lambda codes: codes.astype(str)},
    "cameras floats": {"camera": lambda codes: codes.astype(float)},
    "names numbers": {"cameras": lambda _: np.arange(2)},
    "names in a table": {"cameras": lambda _: np.array([["c", "d"]])},
    "one name": {"cameras": lambda _: np.array("c")},
    "names twice": {"cameras": lambda _: np.array(["c", "c"])},
    "no names": {"cameras": lambda _: np.array([], "U1")},
}


@pytest.mark.parametrize("how", ARRAYS)
def test_filters_that_are_well_formed_and_wrong_are_made_again(how, twice):
    folder, said = twice
    arrays = dict(np.load(folder / "index.npz"))
    arrays |= {name: change(arrays[name]) for name, change in ARRAYS[how].items()}
    resealed(folder, "index.npz", archive(**arrays))
    assert everything(folder) == said


STATED = {
    "no lists searched": {"probes": 0},
    "recall text": {"recall": "x\x1b[2J"},
    "recall beyond": {"recall": 2},
    "truth": {"queries": True},
    "deeper text": {"deeper": "ab"},
    "deeper nothing": {"deeper": [{"top": 0, "probes": 0, "recall": 1}, {"top": 0, "probes": 0, "recall": 1}]},
    "deeper out of order": {"deeper": [{"top": 9, "probes": 1, "recall": 1}]},
}


@pytest.mark.parametrize("folder", ["lists"], indirect=True)
@pytest.mark.parametrize("how", STATED)
def test_lists_that_state_what_can_t_be_are_made_again(how, twice):
    folder, said = twice
    manifest = json.loads((folder / "index.json").read_text())
    manifest["lists"] |= STATED[how]
    (folder / "index.json").write_text(json.dumps(manifest))
    resealed(folder, "index.npz", (folder / "index.npz").read_bytes())
    with Gallery.open(folder, read_only=True) as gallery:
        assert gallery.info()["search"] == "exact"
    assert everything(folder) == said


def every_row(number):
    def change(faiss, made):
        for which in range(made.nlist):
            if size := made.invlists.list_size(which):
                faiss.rev_swig_ptr(made.invlists.get_ids(which), size)[:] = number

    return change


def mapped(change):
    def changed(faiss, made):
        where = faiss.vector_to_array(made.direct_map.array)
        faiss.copy_array_to_vector(np.ascontiguousarray(change(where)), made.direct_map.array)

    return changed


def other_centres(count, dim):
    def change(faiss, made):
        made.own_fields, centres = False, faiss.IndexFlatIP(dim)
        centres.add(np.ones((count or made.nlist, dim), np.float32))
        made.quantizer = centres
        return centres

    return change


def no_map(faiss, made):
    made.make_direct_map(False)


def untrained(faiss, made):
    made.is_trained = False


LISTS = {
    "rows out of range": every_row(10**6),
    "rows negative": every_row(-5),
    "rows the same": every_row(3),
    "a map far away": mapped(lambda where: where * 0 + 2**40),
    "a map to nowhere": mapped(lambda where: where * 0 - 1),
    "a map beyond": mapped(lambda where: where * 0 + 10**6),
    "a map shuffled": mapped(lambda where: where[::-1]),
    "a short map": mapped(lambda where: where[:3]),
    "no map": no_map,
    "centres of another length": other_centres(None, 8),
    "one centre": other_centres(1, DIM),
    "untrained": untrained,
}


@pytest.mark.parametrize("folder", ["lists"], indirect=True)
@pytest.mark.parametrize("how", LISTS)
def test_lists_that_lie_are_made_again(how, twice):
    import faiss

    folder, said = twice
    made = faiss.read_index(str(folder / "index.faiss"))
    kept = LISTS[how](faiss, made)
    faiss.write_index(made, str(folder / "changed"))
    resealed(folder, "index.faiss", (folder / "changed").read_bytes())
    (folder / "changed").unlink()
    del kept  # FAISS does not own it
    assert everything(folder) == said


@pytest.mark.parametrize(
    "error", [IndexError("out of range"), KeyError(5), RuntimeError("Error: 'no' failed")], ids=repr
)
def test_an_index_that_fails_in_a_search_is_built_anew_once(error, folder, monkeypatch, caplog):
    expected, real, failures = answers(folder), Codes.search, [error]

    def failing(self, *args):
        if failures:
            raise failures.pop()
        return real(self, *args)

    monkeypatch.setattr(Codes, "search", failing)
    assert answers(folder) == expected
    assert "is built anew from the database" in caplog.text
    failures += [error, error]
    with pytest.raises((IndexError, KeyError, GalleryError)):
        answers(folder)


@pytest.mark.slow
def test_an_index_whose_header_claims_more_than_its_file_takes_no_memory(folder):
    data = (folder / "index.faiss").read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for position in range(0, 160, 8):
        for claim in (2**33, 2**62):
            resealed(folder, "index.faiss", data[:position] + struct.pack("<Q", claim) + data[position + 8 :])
            assert len(answers(folder)) == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19, "KiB"
