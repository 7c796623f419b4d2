"""Where TensorRT's engines are kept: a sealed folder for exactly one graph on exactly one kind of GPU, never used for
another.

ONNX Runtime names engine files by the graph's structure and not by its weights: for two steps of one run it would use
the older engine for the newer model. Hence a separate folder for each combination of what an engine depends on. A
folder that is damaged, or was built for something else, is deleted with a line in the log.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from domains.artefact import content_id, make_private, read_manifest, sealing, write_manifest
from domains.errors import ArtefactError, DeviceError
from domains.ownership import others_may_change
from domains.text import logger

MANIFEST = "engine.json"
SCHEMA = 1
VARIABLE = "LIFELONG_REID_CACHE"

log = logger(__name__)


def cache_root() -> Path:
    """The folder of all engines: ``LIFELONG_REID_CACHE``, or ``lifelong-reid/engines`` in the user's cache folder."""
    named = os.environ.get(VARIABLE)
    return (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lifelong-reid" / "engines"
    )


class EngineCache:
    """The engines of one graph on one kind of GPU.

    Attributes:
        facts: everything they depend on: graph, GPU, driver, versions, profile.
        folder: where they are stored; its name is a hash of ``facts``.
    """

    def __init__(self, root: Path, facts: Mapping[str, str | int]) -> None:
        """Name the folder; nothing is read or written yet."""
        self.facts = dict(facts)
        self.folder = root / content_id(self.facts)[:32]

    def ready(self) -> bool:
        """Whether there are engines built for exactly this and unchanged since; others are removed with a line in the
        log.

        Raises:
            DeviceError: others could put engines of their own there, or a folder that can't be used can't be removed
                either.
        """
        self._check_owners()
        if not self.folder.exists():
            return False
        reason = self._fault()
        if reason is None:
            return True
        log.warning("the TensorRT engines in %s can't be used and are rebuilt: %s", self.folder, reason)
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise self._unwritable(error) from error
        return False

    @contextmanager
    def building(self) -> Iterator[Path]:
        """Yield a temporary folder to build in; it becomes :attr:`folder` when the block ends without an error.

        Raises:
            DeviceError: the cache can't be written or trusted, or nothing was built.
        """
        self._check_owners()
        try:
            make_private(self.folder.parent)
            with sealing(self.folder) as temporary:
                yield temporary
                files = [file.name for file in temporary.iterdir()]
                if not any(name.endswith(".engine") for name in files):
                    raise DeviceError(
                        "TensorRT built no engine for this graph; ask for cuda instead, and report the graph"
                    )
                write_manifest(
                    temporary,
                    MANIFEST,
                    kind="engine",
                    schema=SCHEMA,
                    files=files,
                    parent=str(self.facts["model"]),
                    body={"facts": self.facts},
                )
        except OSError as error:
            if not self.folder.is_dir():
                raise self._unwritable(error) from error
            log.info("another process has built the same engines in the meantime; those are used")

    def check_untouched(self) -> None:
        """Log a warning if TensorRT wrote to the folder although its engines were there: it did not use them."""
        reason = self._fault()
        if reason is not None:
            log.warning(
                "TensorRT did not use its engines in %s: %s; they will be rebuilt at the next start",
                self.folder,
                reason,
            )

    def _check_owners(self) -> None:
        """Refuse a cache that others may write: an engine is code."""
        for path in (self.folder, self.folder / MANIFEST):
            if reason := others_may_change(path):
                raise DeviceError(
                    f"the cache of TensorRT's engines can't be trusted, as others could run code from it: {reason}, or "
                    f"set {VARIABLE} to another folder"
                )

    def _fault(self) -> str | None:
        try:
            manifest = read_manifest(self.folder, MANIFEST, kind="engine", schemas=range(1, SCHEMA + 1))
        except ArtefactError as error:
            return str(error)
        if manifest.get("facts") != self.facts:
            return "they were built for something else"
        extra = {file.name for file in self.folder.iterdir()} - {*manifest["files"], MANIFEST}
        return f"{min(extra)!r} is not listed" if extra else None

    def _unwritable(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"can't write TensorRT's engines to {self.folder.parent}: {error.strerror or error}; set {VARIABLE} to a "
            "writable folder"
        )
