"""Who made a bundle: Ed25519 signatures over ``bundle.json``, which holds the hashes of all its other files.

``bundle.sig`` is text: a header line, then for each signature ``ed25519``, the public key and the signature, in
hexadecimal. A key's id is the first 32 digits of the SHA-256 of its 32 raw bytes. The package ``cryptography``
(``pip install 'lifelong-reid[sign]'``) is needed only if there is something to sign or to check.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from domains.artefact import fsync_folder, read_bytes
from domains.errors import ArtefactError, DeviceError, UsageError
from domains.ownership import others_may_change

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "bundle.sig"
ENVIRONMENT = "LIFELONG_REID_TRUSTED_KEYS"
"""Lists files or folders of trusted public keys, separated as in PATH."""

MAX_SIGNATURES = 8
MAX_FILE = 2**16
_HEADER = "lifelong-reid signature 1\n"
_LINE = re.compile(r"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")
_CONTEXT = b"lifelong-reid bundle manifest\n"
"""Prefixed to what is signed, so that a signature for one purpose can never serve another."""

_SMALL_ORDER = frozenset(
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
)
"""Encodings, sign bit aside, of the points of order 1 to 8: as public keys they accept signatures made without any
private key.
"""

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class Signature(NamedTuple):
    """A public key (32 bytes) and its signature (64 bytes)."""

    key: bytes
    value: bytes


def key_id(public: bytes) -> str:
    """Return a public key's readable name: 32 hexadecimal digits."""
    return hashlib.sha256(public).hexdigest()[:32]


def make_key(path: str | PathLike[str]) -> str:
    """Make a signing key: the private half at ``path`` (PEM, mode 0600), the public half beside it with the suffix
    ``.pub``.

    Returns:
        The key's id.

    Raises:
        UsageError: one of the files already exists or can't be written.
        DeviceError: ``cryptography`` is not installed.
    """
    ed25519, serialization = _cryptography()
    path = Path(path)
    if not path.name:
        raise UsageError(f"{path} is a folder and names no file; name the key's file")
    public = path.with_name(path.name + ".pub")
    if public.exists():
        raise UsageError(f"{public} already exists; choose another name, since a lost key can't be recreated")
    key = ed25519.Ed25519PrivateKey.generate()
    public_key = key.public_key()
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for file, data, mode in ((path, private_pem, 0o600), (public, public_pem, 0o644)):
        try:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except FileExistsError as error:
            raise UsageError(
                f"{file} already exists; choose another name, since a lost key can't be recreated"
            ) from error
        except OSError as error:
            raise UsageError(f"can't write {file}: {error.strerror or error}") from error
    fsync_folder(path.parent)
    return key_id(public_key.public_bytes_raw())


def sign(manifest: bytes, keyfile: str | PathLike[str]) -> Signature:
    """Sign the bytes of ``bundle.json``.

    Raises:
        UsageError: not an Ed25519 key in PEM, one with a passphrase, or one that others may read or replace.
        DeviceError: ``cryptography`` is not installed.
    """
    key = _private(Path(keyfile))
    return Signature(key.public_key().public_bytes_raw(), key.sign(_CONTEXT + manifest))


def write_signatures(signatures: Iterable[Signature]) -> bytes:
    """Return the content of ``bundle.sig``."""
    lines = [f"ed25519 {item.key.hex()} {item.value.hex()}\n" for item in signatures]
    return (_HEADER + "".join(lines)).encode()


def read_signatures(path: Path) -> list[Signature] | None:
    """Read the signatures in ``bundle.sig`` without verifying them; None if there is no such file. Raises ArtefactError
    if it is malformed.
    """
    if not path.is_symlink() and not path.exists():
        return None
    if path.is_symlink() or not path.is_file():
        raise ArtefactError(f"{path} is not a plain file; copy the bundle again")
    try:
        text = read_bytes(path, MAX_FILE).decode("ascii")
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path} is not a signature file; copy the bundle again") from error
    lines = text.removeprefix(_HEADER).splitlines(keepends=True)
    matches = [_LINE.fullmatch(line) for line in lines]
    if not text.startswith(_HEADER) or not 1 <= len(lines) <= MAX_SIGNATURES or None in matches:
        raise ArtefactError(f"{path} is not a signature file; copy the bundle again")
    return [Signature(bytes.fromhex(match[1]), bytes.fromhex(match[2])) for match in matches if match]


def check(
    manifest: bytes, signatures: list[Signature] | None, trusted: frozenset[bytes] | None, folder: Path
) -> tuple[str, ...]:
    """Verify signatures and return the ids of the keys that signed the manifest.

    Args:
        manifest: bytes of ``bundle.json``.
        signatures: those in ``bundle.sig``; None without such a file.
        trusted: keys of which one must have signed; None requires no signature, but an existing one must be valid.
        folder: the bundle's folder, for messages.

    Raises:
        ArtefactError: no signature although trusted keys are given, none by a trusted key, or none for these bytes.
        DeviceError: there is a signature, and ``cryptography`` is not installed to check it.
    """
    if signatures is None:
        if trusted is None:
            return ()
        raise ArtefactError(
            f"{folder} is not signed, and only bundles signed by trusted keys are loaded here; export it with --key"
        )
    valid = [item.key for item in signatures if _is_valid(item, manifest)]
    if not valid:
        raise ArtefactError(
            f"{folder} was changed after it was signed: {SIGNATURE} does not match its manifest; copy the bundle again"
        )
    if trusted is not None and not trusted & set(valid):
        raise ArtefactError(
            f"{folder} is signed by key {key_id(valid[0])}, which is not trusted here; ask its maker, or trust that key"
        )
    return tuple(key_id(key) for key in valid)


def trusted_keys(paths: str | PathLike[str] | Iterable[str | PathLike[str]] | None = None) -> frozenset[bytes] | None:
    """Public keys (32 raw bytes each) that an operator trusts.

    Args:
        paths: files of public keys in PEM, one or more in each, or folders of such files (``*.pub``, ``*.pem``); by
            default those listed in the environment variable LIFELONG_REID_TRUSTED_KEYS.

    Returns:
        None if no keys were named; any bundle is loaded then.

    Raises:
        UsageError: a named file is missing or holds no Ed25519 public key, or others could change it, so that neither
            they nor a mistake make a key trusted or let a bundle through.
    """
    if paths is None:
        named = os.environ.get(ENVIRONMENT, "")
        if not named:
            return None
        paths = [part for part in named.split(os.pathsep) if part]
    files = [Path(paths)] if isinstance(paths, (str, PathLike)) else [Path(path) for path in paths]
    keys = {key for file in files for inner in _key_files(file) for key in _public(inner)}
    if not keys:
        raise UsageError(
            f"no trusted key was named; give a file of public keys, or unset {ENVIRONMENT} to load any bundle"
        )
    return frozenset(keys)


def _key_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in (".pub", ".pem") and file.is_file())
    if not files:
        raise UsageError(f"{path} holds no public keys (*.pub, *.pem); put the ones you trust there")
    return files


def _public(path: Path) -> list[bytes]:
    ed25519, serialization = _cryptography()
    _check_owners(path, "others could have their own bundles trusted")
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(
            f"{path} holds a private key; name its public half, {path.name}.pub, and keep this one off the edge"
        )
    blocks = _PEM.findall(data)
    if not blocks:
        raise UsageError(f"{path} holds no public key in PEM; name a file written by reid key make")
    keys = []
    for block in blocks:
        try:
            key = serialization.load_pem_public_key(block + b"\n")
        except Exception as error:  # cryptography raises ValueError, UnsupportedAlgorithm or its own, by format
            raise UsageError(
                f"{path} holds a public key that can't be read: "
                f"{str(error).splitlines()[0] if str(error) else error!r:.200}"
            ) from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise UsageError(f"{path} holds a key that is not Ed25519; make one with reid key make")
        keys.append(key.public_bytes_raw())
    return keys


def _private(path: Path) -> Ed25519PrivateKey:
    ed25519, serialization = _cryptography()
    _check_owners(path, "others could have bundles signed with their own")
    data = _read(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except Exception as error:  # as above; TypeError for a passphrase
        raise UsageError(f"{path} is not a PEM private key without passphrase; make one with reid key make") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{path} is not an Ed25519 key; make one with reid key make")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{path} is a private key that others may read; chmod 600 it, and make a new one if they did")
    private_key: Ed25519PrivateKey = key
    return private_key


def _check_owners(path: Path, danger: str) -> None:
    if reason := others_may_change(path):
        raise UsageError(f"the key {path} can't be trusted, as {danger}: {reason}")


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_FILE)
    except ArtefactError as error:
        raise UsageError(f"can't read the key: {error}") from error


def _is_valid(signature: Signature, manifest: bytes) -> bool:
    ed25519, _ = _cryptography()
    from cryptography.exceptions import InvalidSignature

    if signature.key[:31] + bytes([signature.key[31] & 0x7F]) in _SMALL_ORDER:
        return False
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(signature.key).verify(signature.value, _CONTEXT + manifest)
    except (InvalidSignature, ValueError):
        return False
    return True


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise DeviceError("signatures need the package cryptography: pip install 'lifelong-reid[sign]'") from error
    return ed25519, serialization
