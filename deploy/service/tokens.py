"""Bearer tokens: 256 random bits, shown once; only a hash of each is stored, with what the token may do.

A plain SHA-256 is right for random secrets: there is nothing to guess, so nothing for a slow hash to slow down.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from domains.artefact import make_private, read_json, write_json
from domains.errors import ArtefactError, UsageError
from domains.ownership import others_may_change
from domains.text import is_unseen

SCOPES = ("query", "enrol", "erase", "admin")
PREFIX = "reid"
SCHEMA = 1
MAX_DAYS = 3650
SLACK = timedelta(days=1)
"""How far the clocks of those who make tokens and of the service may be apart."""
_FORM = re.compile(r"reid_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
LONGEST_NAME = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9 ._-]{{0,{LONGEST_NAME - 1}}}")


@dataclass(frozen=True)
class Token:
    """What is stored of a token.

    Attributes:
        id: eight hexadecimal digits, part of the token itself.
        name: who or what holds it; it appears in logs and audits, so name a role or a program rather than a person.
        scopes: what it may do. Every token may read counts (``/v1/stats``, ``/metrics``).
        created: ISO 8601.
        expires: ISO 8601, or ``None``.
        hash: SHA-256 of the whole token, hexadecimal.
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    created: str
    expires: str | None
    hash: str

    def expired(self) -> bool:
        """Whether it has expired. By a clock that reads a time before it was made, one with a last day counts as
        expired: that clock is wrong, and nobody knows what day it is.
        """
        if self.expires is None:
            return False
        now = datetime.now(UTC)
        return now + SLACK < _moment(self.created) or now >= _moment(self.expires)


class Tokens:
    """A file of tokens; changes by another process take effect at the next :meth:`find`."""

    def __init__(self, file: Path) -> None:
        """Name the file; a missing one holds no tokens."""
        self.file = file
        self._seen: tuple[int, int, int] | None = None
        self._known: dict[str, Token] = {}
        self._lock = threading.Lock()

    def find(self, text: str) -> Token | None:
        """Return the valid token for ``text``, or ``None``; raises ArtefactError if the file can't be trusted, so that
        nobody is let in.
        """
        form = _FORM.fullmatch(text)
        token = self._read().get(form[1]) if form else None
        known = token.hash if token else "0" * 64
        same = hmac.compare_digest(hashlib.sha256(text.encode()).hexdigest(), known)
        return token if token and same and not token.expired() else None

    def all(self) -> list[Token]:
        """Every token, expired ones included, oldest first."""
        return list(self._read().values())

    def make(self, scopes: Sequence[str], name: str | None = None, days: int | None = None) -> str:
        """Add a token and return it; it can't be shown again.

        Raises:
            UsageError: unknown scope, invalid name or number of days, or a name already in use.
        """
        for scope in scopes:
            if scope not in SCOPES:
                raise UsageError(f"unknown scope {scope!r}; choose from {', '.join(SCOPES)}")
        if days is not None and not 1 <= days <= MAX_DAYS:
            raise UsageError(f"a token is valid for 1 to {MAX_DAYS} days, got {days}")
        number = secrets.token_hex(4)
        name = name if name is not None else f"token {number}"
        if not _NAME.fullmatch(name):
            raise UsageError(f"a token's name has 1 to 64 letters, digits, spaces, dots, dashes, got {name!r:.80}")
        text = f"{PREFIX}_{number}_{secrets.token_urlsafe(32)}"
        now = datetime.now(UTC)
        expires = (now + timedelta(days=days)).isoformat(timespec="seconds") if days else None
        granted = tuple(scope for scope in SCOPES if scope in scopes)
        token = Token(
            number, name, granted, now.isoformat(timespec="seconds"), expires, hashlib.sha256(text.encode()).hexdigest()
        )
        with self._changing() as tokens:
            if name in [other.name for other in tokens]:
                raise UsageError(f"a token named {name!r} already exists; revoke it first, or choose another name")
            tokens.append(token)
        return text

    def revoke(self, which: str) -> Token:
        """Remove a token by id or name; it is refused from the next request on. Raises UsageError if unknown."""
        with self._changing() as tokens:
            matches = [token for token in tokens if which in (token.id, token.name)]
            if not matches:
                known = ", ".join(f"{token.id} ({token.name})" for token in tokens) or "none"
                raise UsageError(f"there is no token {which!r:.80} in {self.file}; known tokens: {known:.300}")
            tokens.remove(matches[0])
        return matches[0]

    def _read(self) -> dict[str, Token]:
        with self._lock:
            self._check_owners()  # each time: a folder that is opened to others later is no better
            try:
                stat = self.file.stat()
            except FileNotFoundError:
                self._seen, self._known = None, {}
                return self._known
            except OSError as error:
                raise ArtefactError(f"can't read {self.file}: {error.strerror or error}") from error
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen != self._seen:
                self._known = {token.id: token for token in _parse(self.file, read_json(self.file))}
                self._seen = seen
            return self._known

    def _check_owners(self) -> None:
        if reason := others_may_change(self.file):
            raise ArtefactError(f"{self.file} can't be trusted, as others could let themselves in: {reason}")

    @contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        """Hold the folder's lock while the list is read, changed and written."""
        self._check_owners()
        make_private(self.file.parent)
        folder = os.open(self.file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            tokens = self.all()
            yield tokens
            _write(self.file, tokens)
        finally:
            os.close(folder)


def default_file() -> Path:
    """``$REID_TOKENS``, or a file in the user's configuration."""
    if named := os.environ.get("REID_TOKENS"):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lifelong-reid" / "tokens.json"


def _parse(file: Path, content: Any) -> list[Token]:
    """Read tokens from a file's content; raises ArtefactError on anything that we did not write."""
    try:
        if content["kind"] != "tokens" or type(content["schema"]) is not int or content["schema"] != SCHEMA:
            raise ArtefactError(f"{file} holds no tokens of schema {SCHEMA}; make some with reid token make")
        if not isinstance(content["tokens"], list):
            raise ValueError("its tokens are no list")
        tokens = [_token(row) for row in content["tokens"]]
        for kind in ("id", "name"):
            if len({getattr(token, kind) for token in tokens}) < len(tokens):
                raise ValueError(f"two tokens have the same {kind}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ArtefactError(f"{file} is not a file of tokens: {reason:.150}; restore it, or make new ones") from error
    return tokens


def _token(row: Any) -> Token:
    """Read one token; raises ValueError, TypeError or KeyError."""
    token = Token(**{**row, "scopes": tuple(row["scopes"])})
    for name in ("id", "name", "created", "hash"):
        if not isinstance(getattr(token, name), str):
            raise ValueError(f"{name} is {getattr(token, name)!r:.40}")
    if not re.fullmatch("[0-9a-f]{8}", token.id) or not re.fullmatch("[0-9a-f]{64}", token.hash):
        raise ValueError(f"the id or the hash of token {token.id!r:.20} is invalid")
    if not 1 <= len(token.name) <= LONGEST_NAME or any(map(is_unseen, token.name)):
        raise ValueError(
            f"the name {token.name!r:.80} of token {token.id} is not 1 to {LONGEST_NAME} visible characters"
        )
    if not isinstance(row["scopes"], list) or set(token.scopes) - set(SCOPES):
        raise ValueError(f"token {token.id} has an unknown scope")
    _moment(token.created)
    if token.expires is not None:
        _moment(token.expires)
    return token


def _moment(text: str) -> datetime:
    """Read a token's time; raises ValueError if it has no zone or no clock ever read it."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None or time.timestamp() < 0:
        raise ValueError(f"the time {text!r:.40} has no zone, or is before 1970")
    return time


def _write(file: Path, tokens: Sequence[Token]) -> None:
    write_json(file, {"kind": "tokens", "schema": SCHEMA, "tokens": [asdict(token) for token in tokens]})
