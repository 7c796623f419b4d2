"""Sealed files and folders: written whole or not at all, and checked when read.

Every artefact folder holds a manifest (JSON) with its kind, schema version, the sha256 of its files, its parent's id
and the code version. Files are written under a temporary name, fsynced, renamed, and their directory fsynced, so that a
power cut leaves either the old state or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from domains.errors import ArtefactError

DISTRIBUTION = "lifelong-reid"
ROOMS = ("domains", "prototypes", "reid", "deploy")
MAX_JSON = 64 * 2**20


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that any reader, even after a crash, sees the old file or all of the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically; NaN and infinities are refused (ValueError)."""
    write_atomic(path, encode_json(value))


def encode_json(value: Any) -> bytes:
    """Encode ``value`` as readable JSON; NaN and infinities are refused (ValueError)."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Read a file of at most ``limit`` bytes (64 MiB by default); raises ArtefactError naming the file."""
    limit = MAX_JSON if limit is None else limit
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing") from error
    except OSError as error:
        raise ArtefactError(f"can't read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        size = f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit} bytes"
        raise ArtefactError(f"{path} is larger than {size}, so lifelong-reid did not write it")
    return data


def read_json(path: Path) -> Any:
    """Read a JSON file of at most 64 MiB; raises ArtefactError naming the file."""
    return parse_json(read_bytes(path), path)


def parse_json(data: bytes, path: Path) -> Any:
    """Parse the JSON that was read from ``path``; raises ArtefactError naming the file."""
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes; raises ArtefactError if it can't be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(f"can't read {path}: {error.strerror or error}") from error


def fsync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Make every file below ``folder``, and the folders themselves, durable."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            with (Path(parent) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        fsync_folder(Path(parent))


@contextmanager
def sealing(folder: Path) -> Iterator[Path]:
    """Build an artefact folder: yield a temporary sibling that becomes ``folder`` if the block ends without an error.

    Raises:
        ArtefactError: ``folder`` already exists (a sealed artefact never changes).
    """
    if folder.exists():
        raise ArtefactError(f"{folder} already exists; choose another name or delete it first")
    created = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        fsync_tree(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for parent in {folder.parent, *(ancestor.parent for ancestor in created)}:
        fsync_folder(parent)


def write_manifest(
    folder: Path,
    name: str,
    *,
    kind: str,
    schema: int,
    files: Iterable[str],
    parent: str | None,
    body: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``folder/name``, the manifest of an artefact whose other files are already there.

    Its ``id`` is a hash of everything else in it.
    """
    manifest = {
        "kind": kind,
        "schema": schema,
        "code": code_version(),
        "parent": parent,
        "files": {file: sha256_file(folder / file) for file in sorted(files)},
        **body,
    }
    manifest = {"id": content_id(manifest), **manifest}
    write_json(folder / name, manifest)
    return manifest


def read_manifest(folder: Path, name: str, *, kind: str, schemas: range, check_files: bool = True) -> dict[str, Any]:
    """Read and check a manifest written by :func:`write_manifest`.

    Raises:
        ArtefactError: the manifest is missing, damaged, of another kind or written by a newer version, or a file it
            lists was changed.
    """
    manifest = check_manifest(read_json(folder / name), folder / name, kind=kind, schemas=schemas)
    if check_files:
        check_hashes(folder, name, manifest["files"])
    return manifest


def check_hashes(folder: Path, name: str, files: Mapping[str, str]) -> None:
    """Compare files with their sha256 in the manifest ``name``; raises ArtefactError naming the first mismatch."""
    for file, digest in files.items():
        if sha256_file(folder / file) != digest:
            raise ArtefactError(
                f"{folder / file} was changed after it was sealed: its sha256 differs from the one in {name}"
            )


def check_manifest(manifest: Any, path: Path, *, kind: str, schemas: range) -> dict[str, Any]:
    """Check a parsed manifest, but not the files it lists.

    Raises:
        ArtefactError: the manifest is damaged, of another kind, written by a newer version, or lists files outside its
            folder.
    """
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        raise ArtefactError(f"{path} does not describe a {kind}")
    schema = manifest.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema not in schemas:
        known = f"{schemas.start} to {schemas.stop - 1}"
        raise ArtefactError(
            f"{path} has schema {schema!r}; this version reads {known}. Install a matching lifelong-reid"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or manifest.get("id") != _id_of(manifest, path):
        raise ArtefactError(f"{path} was changed after it was written: its id does not match its content")
    for file in files:
        if Path(file).name != file or file in ("", ".", ".."):
            raise ArtefactError(f"{path} lists a file outside its folder: {file!r}")
    return manifest


def _id_of(manifest: Mapping[str, Any], path: Path) -> str:
    try:
        return content_id({key: value for key, value in manifest.items() if key != "id"})
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} holds a value that a manifest can't have: {error}") from error


def content_id(value: Any) -> str:
    """Sha256 (hex) of a JSON value in canonical form."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


@cache
def code_version() -> str:
    """Distribution version and a hash of the four packages' sources, such as ``0.1.0+1a2b3c4d5e6f``.

    Every result is recorded with it.
    """
    try:
        release = version(DISTRIBUTION)
    except PackageNotFoundError:
        release = "0"
    return f"{release}+{source_hash(ROOMS)[:12]}"


def source_hash(rooms: Iterable[str]) -> str:
    """Sha256 (hex) of the Python sources of packages, or of single modules such as ``reid/step/learner.py``."""
    base = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in rooms:
        target = base / room
        for file in [target] if target.is_file() else sorted(target.rglob("*.py")):
            digest.update(f"{file.relative_to(base).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()
