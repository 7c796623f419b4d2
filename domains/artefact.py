"""Sealed files and folders: written whole or not at all, and checked when read.

Every artefact folder holds a manifest (JSON) with its kind, schema version, the sha256 of its files, its parent's id
and the code version. Files are written under a temporary name, fsynced, renamed, and their directory fsynced, so that a
power cut leaves either the old state or the new one.

Artefacts hold what was learned from people, so nobody but their owner may read a new one, whatever the umask: folders
are made with mode 0700 and files with 0600. Whoever opens an artefact to others with chmod keeps it open: a file that
is written again keeps its mode.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from domains.errors import ArtefactError

DISTRIBUTION = "lifelong-reid"
ROOMS = ("domains", "prototypes", "reid", "deploy")
MAX_JSON = 64 * 2**20
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
T = TypeVar("T")


def write_atomic(path: Path, data: bytes, *, private: bool = True, like: Path | None = None) -> None:
    """Write ``data`` to ``path`` so that any reader, even after a crash, sees the old file or all of the new one.

    Args:
        path: the file; if it exists, it keeps its mode.
        data: its whole content.
        private: whether a new file is readable by its owner only; else the umask decides, for what is meant to be
            passed on, such as a report.
        like: another file whose mode to take.

    Raises:
        ArtefactError: the path is a folder, a pipe, a socket or a device, or a link to one, which stays as it is. Any
            other link gives way to the file, and what it points to is not touched.
        OSError: the file can't be written; the error names ``path``.
    """
    if what := obstacle(path):
        raise ArtefactError(f"{path} is {what} and not a plain file, so it is not replaced; name another file")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE if private else 0o666)
        with os.fdopen(handle, "wb") as stream:
            take_access(handle, like or path)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    fsync_folder(path.parent)


def obstacle(path: Path) -> str | None:
    """Say what is at a path, or where a link there leads, if no file may take its place: a folder, a pipe, a socket or
    a device. None for a plain file, and where nothing is.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return None if stat.S_ISREG(mode) else next((name for fits, name in kinds if fits(mode)), "a device")


def take_access(file: int, like: Path) -> None:
    """Give an open file the mode of another, and if root writes it, the owner too; if the other does not exist or is
    not a plain file, nothing changes.
    """
    try:
        known = like.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(known.st_mode):
        return
    if os.geteuid() == 0:  # as SQLite does with its log: what root writes must stay usable to its owner
        os.fchown(file, known.st_uid, known.st_gid)
    os.fchmod(file, stat.S_IMODE(known.st_mode) & 0o666)


def replace(finished: Path, path: Path) -> None:
    """Put a finished file in the place of another, whose mode it takes; without another, it keeps its own."""
    with finished.open("rb") as stream:
        take_access(stream.fileno(), path)
    finished.replace(path)


def private_file(path: str, flags: int) -> int:
    """Open a file, made with mode 0600 if it is new: the ``opener`` of :func:`open`."""
    return os.open(path, flags, PRIVATE_FILE)


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, with mode 0700; one that exists is left as it is."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def _close_to_others(folder: Path) -> None:
    """Let only the owner into a folder that was just made, and into all that was put into it by whatever means."""
    for parent, _, files in os.walk(folder):
        Path(parent).chmod(PRIVATE_FOLDER)
        for file in (Path(parent) / name for name in files):
            if not file.is_symlink():
                file.chmod(PRIVATE_FILE)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically; NaN and infinities are refused (ValueError)."""
    write_atomic(path, encode_json(value))


def encode_json(value: Any) -> bytes:
    """Encode ``value`` as readable JSON; NaN and infinities are refused (ValueError)."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Read a file of at most ``limit`` bytes (64 MiB by default); raises ArtefactError naming the file."""
    limit = MAX_JSON if limit is None else limit
    with open_plain(path) as stream:
        held = os.fstat(stream.fileno()).st_size  # reading takes as much memory as it is asked for
        data = _reading(path, lambda: stream.read(min(limit, held) + 1))
    if len(data) > limit:
        size = f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit} bytes"
        raise ArtefactError(f"{path} is larger than {size}, so lifelong-reid did not write it")
    return data


def open_plain(path: Path) -> BufferedReader:
    """Open a file to read, which must be a plain one: a pipe would wait and a device never end.

    Raises:
        ArtefactError: it is missing, of another kind or can't be opened; the message names it.
    """

    def opened() -> BufferedReader:
        stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - it is returned
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            stream.close()
            raise ArtefactError(f"{path} is not a plain file")
        return stream

    return _reading(path, opened)


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


def _reading(path: Path, read: Callable[[], T]) -> T:
    """Read from a file; raises ArtefactError naming it."""
    try:
        return read()
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing") from error
    except OSError as error:
        raise ArtefactError(f"can't read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise ArtefactError(f"can't read {path}: there is too little memory for it") from error
    except ValueError as error:  # a null byte or half a surrogate pair, from a manifest
        raise ArtefactError(f"can't read {str(path)!r:.200}: it is not a file's name") from error


def read_json(path: Path) -> Any:
    """Read a JSON file of at most 64 MiB; raises ArtefactError naming the file."""
    return parse_json(read_bytes(path), path)


def parse_json(data: bytes, path: Path) -> Any:
    """Parse the JSON that was read from ``path``; raises ArtefactError naming the file."""
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ArtefactError(f"{path} is not valid JSON: {str(error) or 'too large':.200}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def sha256_file(path: Path) -> str:
    """Hex digest of a plain file's bytes; raises ArtefactError if it can't be read."""
    if not _reading(path, path.exists):
        raise ArtefactError(f"can't read {path}: it is missing")
    with open_plain(path) as stream:
        return _reading(path, lambda: hashlib.file_digest(stream, "sha256").hexdigest())


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
    temporary.mkdir(mode=PRIVATE_FOLDER)
    try:
        yield temporary
        _close_to_others(temporary)
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
        if Path(file).name != file or file in ("", ".", "..") or not file.isprintable():
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
