"""Index files that lie about themselves, sealed again by somebody who knows how: they are made again, and no memory is
taken for what they claim.
"""

import io
import json
import logging
import resource
import struct

import numpy as np
import pytest
from tiny import SPACE, unit

from deploy import Gallery
from deploy.index import index
from domains.artefact import content_id, sha256_file

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


@pytest.mark.slow
def test_an_index_whose_header_claims_more_than_its_file_takes_no_memory(folder):
    data = (folder / "index.faiss").read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for position in range(0, 160, 8):
        for claim in (2**33, 2**62):
            resealed(folder, "index.faiss", data[:position] + struct.pack("<Q", claim) + data[position + 8 :])
            assert len(answers(folder)) == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19, "KiB"
