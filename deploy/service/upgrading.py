"""Upgrading a gallery while it answers, as a job that a client starts and polls."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from deploy.bundle import Bundle
from deploy.encoder import Encoder
from deploy.gallery import Gallery
from deploy.service.audit_log import AuditLog
from deploy.service.backend import Backend
from deploy.service.logs import write_log
from deploy.service.refusal import RefusedError
from domains.errors import ArtefactError, GalleryError, ReidError
from domains.text import shown

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


class StoppedError(ReidError):
    """The service is shutting down."""


@dataclass
class Progress:
    """Progress of an upgrade.

    Attributes:
        state: ``none``, ``loading``, ``carrying``, ``done`` or ``failed``.
        bundle: the bundle's name.
        done: entries carried so far.
        total: entries at the start.
        expect: what the transport promises, in sentences.
        message: what went wrong.
        started: ISO 8601.
        finished: ISO 8601.
    """

    state: str = "none"
    bundle: str | None = None
    done: int = 0
    total: int = 0
    expect: list[str] = field(default_factory=list)
    message: str | None = None
    started: str | None = None
    finished: str | None = None


class Upgrading:
    """At most one upgrade at a time. A failure before the switch leaves the old encoder and the old space serving."""

    def __init__(self, backend: Backend, audit_log: AuditLog, folder: Path | None) -> None:
        """Allow the bundles in ``folder``."""
        self._backend, self._audit_log, self._folder = backend, audit_log, folder
        self._progress = Progress()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def state(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self._progress)

    def find(self, name: str) -> Path:
        """Return a bundle in the allowed folder, by name alone; raises RefusedError."""
        if self._folder is None:
            raise RefusedError("forbidden", "upgrades over HTTP are off; start the service with --bundles FOLDER")
        folder = self._folder / name
        if not re.fullmatch(NAME, name) or folder.is_symlink() or not folder.is_dir():
            raise RefusedError(
                "not_found", f"there is no bundle {name!r:.80} in the folder of bundles; copy it there first"
            )
        return folder

    def check(self, bundle: Path, via: list[Path]) -> None:
        """Raise RefusedError if one of these is no bundle, or if the gallery is already in the last one's space; what
        the bundles hold is not looked at.
        """
        present = self._backend.gallery.feature_space
        try:
            target = [Bundle.load(folder, verify=False) for folder in (*via, bundle)][-1]
        except ArtefactError as error:
            raise RefusedError("invalid", self._backend.hide_folders(str(error))) from error
        if target.feature_space == present:
            raise RefusedError("conflict", f"the gallery is already in the feature space of {bundle.name}")

    def expect(self, bundle: Path, via: list[Path]) -> list[str]:
        """What an upgrade would do, in sentences; raises RefusedError if these bundles can't be used for it."""
        self.check(bundle, via)
        with Gallery.open(self._backend.gallery.path) as gallery:
            try:
                return [shown(line) for line in gallery.plan_upgrade(bundle, via).lines()]
            except ArtefactError as error:
                raise RefusedError("invalid", self._backend.hide_folders(str(error))) from error
            except GalleryError as error:
                raise RefusedError("conflict", self._backend.hide_folders(str(error))) from error

    def start(self, bundle: Path, via: list[Path], *, by: str) -> None:
        """Start an upgrade; raises RefusedError if one is running."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise RefusedError(
                    "conflict", f"an upgrade to {self._progress.bundle} is already running; see GET /v1/upgrade"
                )
            self._progress = Progress("loading", bundle.name, started=_now())
            self._thread = threading.Thread(target=self._run, args=(bundle, via, by), name="upgrade", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until no upgrade is running; one told to stop leaves its preparation for the next to continue."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, bundle: Path, via: list[Path], by: str) -> None:
        progress, backend = self._progress, self._backend
        added: str | None = None
        try:
            encoder = Encoder.load(bundle, provider=backend.encoder.provider)
            # Its own connection, so that its writes do not hold up the searches of the other one.
            with Gallery.open(backend.gallery.path) as gallery:
                progress.total = len(gallery)
                progress.expect = [shown(line) for line in gallery.plan_upgrade(bundle, via).lines()]
                backend.take(encoder)
                added = encoder.feature_space
                progress.state = "carrying"
                count = gallery.upgrade(bundle, via, tick=self._tick)
            backend.follow(encoder.feature_space)
            self._audit_log.submit("upgrade", bundle=bundle.name, entries=count, token=by).result()
            progress.done, progress.state = count, "done"
            write_log(logging.INFO, "upgraded", bundle=bundle.name, entries=count, feature_space=encoder.feature_space)
        except Exception as error:  # a thread has nobody to raise to; the state reports it
            progress.state = "failed"
            reason = (
                str(error)
                if isinstance(error, ReidError)
                else f"{type(error).__name__}: this is a bug in lifelong-reid"
            )
            progress.message = shown(backend.hide_folders(reason))
            write_log(
                logging.ERROR,
                "an upgrade failed; the old model goes on serving",
                exception=error,
                bundle=bundle.name,
                reason=reason,
            )
            if added is not None and backend.gallery.feature_space == added:  # it failed after the switch
                backend.follow(added)
            elif added is not None:
                backend.drop(added)
        finally:
            progress.finished = _now()

    def _tick(self, count: int) -> None:
        self._progress.done += count
        if self._backend.closing.is_set():
            raise StoppedError("the service is shutting down; the upgrade continues when it is requested again")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
