"""The files that save a gallery from rereading its vectors from SQLite: ``index.faiss``, ``index.npz`` (filters) and
their manifest ``index.json``.

They are a cache. They are used only if the sha256 of each, the manifest's own id and the feature space match, and if
they were built from the store's current state or from one since which entries were only added; otherwise they are
discarded and rebuilt.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import time
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from deploy.index.codes import Codes, Lists, load_faiss, naming_faiss
from deploy.index.index import Index
from deploy.store import Store
from deploy.store.store import DATABASE, Facts, State
from domains.artefact import fsync_folder, private_file, read_manifest, take_access, write_manifest
from domains.errors import ArtefactError, GalleryError
from domains.npz import read_npz

VECTORS = "index.faiss"
FILTERS = "index.npz"
HEADER = "index.json"
KIND = "gallery index"
SCHEMA = 2
FILES = (HEADER, VECTORS, FILTERS)
ABANDONED = 60.0
"""Seconds without a change after which a file that was being written is looked at."""

REWRITE = 1 / 64
"""The files are rewritten when they lack more than this share of the entries; fewer are quickly read from SQLite."""


def save(index: Index, folder: Path, store: Store) -> bool:
    """Write an index unless the files hold nearly all of it or the store has changed; returns whether it was written.

    Raises:
        GalleryError: the disk is full or failed; FAISS itself may fail silently, so the size is checked.
    """
    cached = index.kept
    if (
        cached is not None
        and cached.erasures == index.state.erasures
        and len(index) - index.kept_count <= REWRITE * len(index)
    ):
        return False
    with store.holding():  # nobody else writes the files or forgets an entry meanwhile
        if index.state != store.state():
            return False
        drop_cache(folder)
        try:
            with naming_faiss(f"the index of {folder} can't be written"):
                _write(index, folder, store.facts)
        except OSError as error:
            raise GalleryError(f"the index of {folder} can't be written: {error.strerror or error}") from error
        store.base_on(index.state.token)
    return True


def load(index: Index, folder: Path, store: Store, state: State) -> str | None:
    """Fill an empty index from the files; returns why they can't be used, or ``None``. It then has their state, so that
    entries may have to be added.

    Every byte is hashed before it is used. Call it in a transaction.
    """
    try:
        _load(index, folder, store, state)
    except (ArtefactError, _StaleError) as error:
        return str(error)
    except OSError as error:
        return f"it can't be read: {error.strerror or error}"
    except RuntimeError as error:
        return f"FAISS can't read it: {str(error).splitlines()[0]:.100}"
    except MemoryError:
        return "it does not fit into memory as its files describe it"
    except (ValueError, KeyError, TypeError, EOFError) as error:
        return f"it is not an index of this version ({error!r:.80})"
    return None


def _load(index: Index, folder: Path, store: Store, state: State) -> None:
    facts = store.facts
    manifest = _manifest(folder, facts, state, store.based_on(), store.count())
    with (folder / VECTORS).open("rb") as vectors, (folder / FILTERS).open("rb") as filters:
        _check_bytes(manifest, VECTORS, vectors)
        _check_bytes(manifest, FILTERS, filters)
        index.codes = _read_codes(vectors, manifest)
        count = int(manifest["count"])
        _read_filters(index, filters, count)
    if not index.codes.fits(facts.dim, count):
        raise _StaleError("its vectors have an unexpected type, size or order")
    if not np.array_equal(index.ids, store.ids()[:count]):
        raise _StaleError("its entries are others")
    index.state = index.kept = State(manifest["generation"], manifest["token"], state.erasures, state.moves)
    index.kept_count = count


def why_stale(
    folder: Path, facts: Facts, state: State, base: str | None, count: int, *, check_bytes: bool = True
) -> str | None:
    """Return why the files do not belong to a state, or ``None`` if they do."""
    try:
        manifest = _manifest(folder, facts, state, base, count)
        for name in (VECTORS, FILTERS) if check_bytes else ():
            with (folder / name).open("rb") as stream:
                _check_bytes(manifest, name, stream)
    except (ArtefactError, _StaleError) as error:
        return str(error)
    except OSError as error:
        return f"it can't be read: {error.strerror or error}"
    return None


def describe(folder: Path) -> dict[str, Any] | None:
    """Return what the manifest states about the lists: their number, probes, recall; ``None`` without a manifest or
    without lists, or if it states what can't be.
    """
    try:
        manifest = read_manifest(folder, HEADER, kind=KIND, schemas=range(SCHEMA, SCHEMA + 1), check_files=False)
        return Lists.from_dict(manifest["lists"]).to_dict()
    except (ArtefactError, KeyError, TypeError, ValueError):
        return None


def drop_cache(folder: Path) -> None:
    """Remove the files and the leftovers of a killed process, manifest first; the caller holds the store. Raises
    GalleryError.
    """
    try:
        for file in (*(folder / name for name in FILES), *folder.glob(".index.*.tmp")):
            file.unlink(missing_ok=True)
        fsync_folder(folder)
    except OSError as error:
        raise GalleryError(
            f"the index of {folder} can't be removed: {error.strerror or error}; check the permissions of its files"
        ) from error


def abandoned(folder: Path) -> list[Path]:
    """Files that a killed process left while it wrote an index: nobody has written to them for a while."""
    now, old = time.time(), []
    for file in folder.glob(".index.*.tmp"):
        try:
            if now - file.stat().st_mtime > ABANDONED:
                old.append(file)
        except FileNotFoundError:  # it has just got its name
            continue
    return old


_READING = Lock()
"""FAISS's limit on what a file may claim is the whole process's."""


class _StaleError(Exception):
    """The files are intact, but belong to another state."""


def _manifest(folder: Path, facts: Facts, state: State, base: str | None, count: int) -> dict[str, Any]:
    if not (folder / HEADER).is_file() or not (folder / VECTORS).is_file():
        raise _StaleError("it is missing")
    manifest = read_manifest(folder, HEADER, kind=KIND, schemas=range(SCHEMA, SCHEMA + 1), check_files=False)
    cached = manifest.get("count")
    exactly = (manifest.get("token"), manifest.get("generation"), cached) == (state.token, state.generation, count)
    older = base is not None and manifest.get("token") == base and type(cached) is int and 0 <= cached <= count
    if (
        type(cached) is not int
        or not (exactly or older)
        or (manifest.get("dim"), manifest.get("feature_space"))
        != (
            facts.dim,
            facts.feature_space,
        )
    ):
        raise _StaleError("it belongs to another state")
    return manifest


def _check_bytes(manifest: dict[str, Any], name: str, stream: BufferedReader) -> None:
    """Hash a whole open file and rewind it, so that what is read next is what was hashed, even if another file takes
    its name.
    """
    if hashlib.file_digest(stream, "sha256").hexdigest() != manifest["files"].get(name):
        raise _StaleError(f"its bytes were changed ({name})")
    stream.seek(0)


def _write(index: Index, folder: Path, facts: Facts) -> None:
    names = np.array(list(index.camera_codes), np.str_)
    buffer = io.BytesIO()
    np.savez(buffer, ids=index.ids, utc=index.utc, camera=index.camera, cameras=names)
    filters = buffer.getvalue()
    temporary = [folder / f".{name}.{secrets.token_hex(4)}.tmp" for name in (VECTORS, FILTERS)]
    try:
        for file in temporary:
            open(file, "xb", opener=private_file).close()
        index.codes.faiss.write_index(index.codes.index, str(temporary[0]))
        temporary[1].write_bytes(filters)
        for file in temporary:
            with file.open("rb") as stream:
                take_access(stream.fileno(), folder / DATABASE)  # as SQLite's own files beside it do
                os.fsync(stream.fileno())
        if temporary[0].stat().st_size < 2 * facts.dim * len(index):
            raise OSError(f"FAISS wrote only part of {VECTORS}")
        for file, name in zip(temporary, (VECTORS, FILTERS), strict=True):
            file.replace(folder / name)
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)
    lists = index.codes.lists
    body = {
        "generation": index.state.generation,
        "token": index.state.token,
        "count": len(index),
        "dim": facts.dim,
        "feature_space": facts.feature_space,
        "lists": None if lists is None else lists.to_dict(),
    }
    write_manifest(folder, HEADER, kind=KIND, schema=SCHEMA, files=(VECTORS, FILTERS), parent=None, body=body)
    with (folder / HEADER).open("rb") as stream:
        take_access(stream.fileno(), folder / DATABASE)
    index.kept, index.kept_count = index.state, len(index)


def _read_codes(stream: BufferedReader, manifest: dict[str, Any]) -> Codes:
    faiss = load_faiss()
    lists = manifest["lists"]
    if isinstance(lists, dict) and "deeper" not in lists:
        raise _StaleError("its recall was not measured for long answers")
    limited = getattr(faiss, "set_deserialization_vector_byte_limit", None)  # newer versions of FAISS
    with _READING:
        if limited is not None:  # no list is larger than its file, whatever its header says
            limited(os.fstat(stream.fileno()).st_size)
        index = faiss.read_index(faiss.PyCallbackIOReader(stream.read))
    return Codes(int(manifest["dim"]), None if lists is None else Lists.from_dict(lists), index)


def _read_filters(index: Index, stream: BufferedReader, count: int) -> None:
    """Read what filters need of ``count`` entries; anything that :func:`_write` does not write is stale."""
    arrays = read_npz(stream, limit=os.fstat(stream.fileno()).st_size, names=("ids", "utc", "camera", "cameras"))
    ids, utc, camera, cameras = (arrays[name] for name in ("ids", "utc", "camera", "cameras"))
    for array, kind in ((ids, np.int64), (utc, np.int64), (camera, np.int32)):
        if array.dtype != kind or array.shape != (count,):
            raise _StaleError("its filters have an unexpected type or size")
    names = [str(name) for name in cameras] if cameras.ndim == 1 and cameras.dtype.kind == "U" else []
    if len(set(names)) < len(names) or (count and not 0 <= camera.min() <= camera.max() < len(names)):
        raise _StaleError("its cameras have no names of their own")
    if count and (ids[0] < 1 or not (np.diff(ids) > 0).all()):
        raise _StaleError("its ids are not in order")
    index.ids, index.utc, index.camera = ids, utc, camera
    index.camera_codes = {name: code for code, name in enumerate(names)}
