"""Several files of a folder changed as one: a kill at any moment leaves all of them old or, once the folder is opened
again, all of them new.

New files are written into a staging folder beside the old ones. Renaming that folder is the commit; from then on
:func:`finish` can be repeated until everything is in place. A plan is checked before it is followed: a folder from
elsewhere must not reach outside itself.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from domains.artefact import fsync_folder, fsync_tree, make_private, read_json, replace, sha256_file, write_json
from domains.errors import ArtefactError

JOURNAL, PLAN = ".changes", "plan.json"
LEFT_OVER = ".*.tmp"
"""Left by a killed writer: nothing reads these files, and anyone who holds the folder's lock may remove them."""


class Changes:
    """Planned changes to a folder; new files go where :meth:`put` says.

    A path that leads outside the folder is a ValueError.
    """

    def __init__(self, staging: Path) -> None:
        self.staging = staging
        self.targets: list[str] = []
        self.removals: list[str] = []
        self.renames: list[tuple[str, str]] = []

    def put(self, target: str) -> Path:
        """Return where to write the new content of a file, given its path in the folder."""
        self.targets.append(_plain(target))
        return self.staging / f"{len(self.targets):04d}"

    def remove(self, target: str) -> None:
        """Remove a file or a folder, if it exists."""
        self.removals.append(_plain(target))

    def rename(self, source: str, target: str) -> None:
        """Rename a folder after everything else is done."""
        self.renames.append((_plain(source), _plain(target)))

    def plan(self) -> dict[str, Any]:
        """Return the plan as it is written to disk."""
        staged = [f"{number:04d}" for number in range(1, len(self.targets) + 1)]
        put = [
            {"staged": name, "target": target, "sha256": sha256_file(self.staging / name)}
            for name, target in zip(staged, self.targets, strict=True)
        ]
        return {
            "kind": "changes",
            "schema": 1,
            "put": put,
            "remove": self.removals,
            "rename": [list(pair) for pair in self.renames],
        }


@contextmanager
def changing(folder: Path) -> Iterator[Changes]:
    """Collect changes to a folder that the caller has locked, and make them when the block ends without an error.

    Raises:
        ArtefactError: the disk is full or failed. Before the commit nothing is changed; after it, opening the folder
            again finishes the job.
    """
    staging = folder / f"{JOURNAL}.{secrets.token_hex(4)}.tmp"
    changes = Changes(staging)
    try:
        make_private(staging)
        yield changes
        write_json(staging / PLAN, changes.plan())
        fsync_tree(staging)
        staging.rename(folder / JOURNAL)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise ArtefactError(
            f"can't write in {folder}: {error.strerror or error}; nothing was changed, make room and try again"
        ) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finish(folder)


def unfinished(folder: Path) -> bool:
    """Whether changes were committed but not all made, because the process was stopped."""
    return (folder / JOURNAL).exists()


def finish(folder: Path) -> None:
    """Complete committed changes; the caller has locked the folder. Raises ArtefactError."""
    journal = folder / JOURNAL
    try:
        fsync_folder(folder)
        if (journal / PLAN).exists():
            _apply(folder, journal, _read_plan(folder, journal))
            (journal / PLAN).unlink()
            fsync_folder(journal)
        shutil.rmtree(journal, ignore_errors=False)
        fsync_folder(folder)
    except OSError as error:
        raise ArtefactError(
            f"a change to {folder} was started but could not be finished: {error.strerror or error}; open it again to "
            "continue"
        ) from error


def _apply(folder: Path, journal: Path, plan: dict[str, Any]) -> None:
    touched = {folder}
    for entry in plan["put"]:
        staged, target = journal / entry["staged"], folder / entry["target"]
        if staged.exists():
            replace(staged, target)
            touched.add(target.parent)
    for name in plan["remove"]:
        target = folder / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        touched.add(target.parent)
    for source, name in plan["rename"]:
        if (folder / source).exists():
            (folder / source).rename(folder / name)
            touched.add((folder / name).parent)
    for parent in touched:
        if parent.is_dir():
            fsync_folder(parent)


def _read_plan(folder: Path, journal: Path) -> dict[str, Any]:
    """Read and check what was committed."""
    path, plan = journal / PLAN, read_json(journal / PLAN)
    try:
        if plan["kind"] != "changes" or plan["schema"] != 1:
            raise ValueError(f"kind {plan['kind']!r:.40}, schema {plan['schema']!r:.40}")
        for entry in plan["put"]:
            staged = journal / _plain(entry["staged"], parts=1)
            if staged.exists() and (staged.is_symlink() or sha256_file(staged) != entry["sha256"]):
                raise ValueError(f"{entry['staged']} was changed")
        names = [
            *(entry["target"] for entry in plan["put"]),
            *plan["remove"],
            *(name for pair in plan["rename"] for name in pair),
        ]
        for name in names:
            if not (folder / _plain(name)).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{name!r:.80} lies outside the folder")
        if any(len(pair) != 2 for pair in plan["rename"]):
            raise ValueError("a rename is not a pair of names")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{path} is not a list of changes ({type(error).__name__}: {error}); restore {folder} from a backup"
        ) from error
    return dict(plan)


def _plain(name: Any, *, parts: int = 8) -> str:
    """Check a relative path; raises ValueError."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{name!r:.80} is not a path")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not 1 <= len(path.parts) <= parts:
        raise ValueError(f"{name!r:.80} lies outside the folder")
    return name
