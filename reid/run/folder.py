"""A run's folder: its lock, the order of its steps, and what killed processes left in it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domains.artefact import private_file
from domains.errors import UsageError
from reid.run.changes import LEFT_OVER
from reid.run.sealed import CARD, IN_PROGRESS
from reid.step.learner import SNAPSHOT

RUN, GRAPH = "run.yaml", "backbone.onnx"


def number(folder: Path) -> int:
    """Return the index that a step's folder name starts with; the card is authoritative."""
    return int(folder.name.partition("-")[0]) if folder.name.partition("-")[0].isdecimal() else -1


def clear_unmade(folder: Path) -> None:
    """Remove what a killed :meth:`reid.run.Run.create` left behind, when nothing can have been learned yet.

    Raises:
        UsageError: the folder holds anything else.
    """
    steps, graph = folder / "steps", folder / GRAPH
    if not steps.is_dir() and not graph.is_file():
        return
    others = [
        item for item in folder.iterdir() if item.name not in ("steps", GRAPH, ".lock") and not item.match(LEFT_OVER)
    ]
    others += [item for item in steps.glob("*") if item.name != "00-start"]
    if others:
        raise UsageError(
            f"{folder} has no {RUN}, and {others[0].relative_to(folder)} is in the way of a new run; restore {RUN} "
            "from a backup, or choose another name"
        )
    if steps.is_dir():
        shutil.rmtree(steps)
    for left in [graph, *folder.glob(LEFT_OVER)]:
        left.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder; raises UsageError if another process has."""
    with open(folder / ".lock", "w", opener=private_file) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another process is learning in {folder}; wait for it to finish") from error
        yield


def begun(steps: Path) -> list[Path]:
    """Folders of steps that were started but not finished, with at least one snapshot."""
    return sorted(
        state.parent.parent
        for state in steps.glob(f"[0-9]*-*/{IN_PROGRESS}/{SNAPSHOT}")
        if not (state.parent.parent / CARD).is_file()
    )


def sweep(steps: Path) -> None:
    """Remove what interrupted learners left in a locked run: progress without a snapshot or of a sealed step."""
    resumable = begun(steps)
    for work in steps.glob(f"[0-9]*-*/{IN_PROGRESS}"):
        if work.parent not in resumable:
            shutil.rmtree(work if (work.parent / CARD).is_file() else work.parent)
