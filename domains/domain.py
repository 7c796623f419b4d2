"""A camera domain: the crops of one site or camera group, in ``train``, ``query`` and ``gallery`` splits."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from domains.choice import check_choice
from domains.errors import DataError, EmptyError

JUNK = -1
"""Identity code of a crop without a usable person; neither a match nor a miss in a ranking (Market-1501's ``-1``)."""

SameCamera = Literal["drop", "keep"]
SPLITS = ("train", "query", "gallery")


@dataclass(frozen=True, eq=False)
class Split:
    """Crops of one split, in a fixed order.

    Attributes:
        paths: image files relative to the domain's root, ``/``-separated.
        pids: int64 ``[N]``, indices into ``Domain.identities``, or ``JUNK``.
        camids: int64 ``[N]``, indices into ``Domain.cameras``.
        times: ISO 8601 with zone, one per crop, or empty if the domain has none.
    """

    paths: tuple[str, ...] = ()
    pids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    camids: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    times: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check lengths, so that no crop is ranked as the wrong person; raises DataError."""
        for name in ("pids", "camids"):
            values = np.ascontiguousarray(getattr(self, name), np.int64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
            if values.shape != (len(self.paths),):
                raise DataError(
                    f"{name} must have one value per path: {len(self.paths)} paths, got shape {values.shape}"
                )
        if self.times and len(self.times) != len(self.paths):
            raise DataError(
                f"times must have one value per path or none: {len(self.paths)} paths, got {len(self.times)}"
            )

    def __len__(self) -> int:
        """Return the number of crops."""
        return len(self.paths)

    @property
    def people(self) -> NDArray[np.int64]:
        """The identities that it holds, ``[I]``, ascending; junk is none."""
        return np.unique(self.pids[self.pids != JUNK])

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Split:
        """Return the crops at ``index`` (positions, or a boolean mask), in that order."""
        rows = np.arange(len(self))[index]
        times = tuple(self.times[i] for i in rows) if self.times else ()
        return Split(tuple(self.paths[i] for i in rows), self.pids[rows], self.camids[rows], times)


@dataclass(frozen=True, eq=False)
class Domain:
    """One camera domain.

    Attributes:
        name: its folder's name.
        root: folder that ``Split.paths`` are relative to.
        format: name of the layout it was read from.
        identities: labels of the people, as their files give them, indexed by ``pids``.
        cameras: labels of the cameras, indexed by ``camids``.
        same_camera: how queries are scored. ``drop`` (the field's rule) ignores gallery crops of the query's identity
            from the query's own camera; ``keep`` ranks them, for domains with a single camera.
        notes: what a user should know about how the folder was read.
        groups: for a union, the index of the member each identity comes from; otherwise empty.
    """

    name: str
    root: Path
    format: str
    identities: tuple[str, ...]
    cameras: tuple[str, ...]
    train: Split = field(default_factory=Split)
    query: Split = field(default_factory=Split)
    gallery: Split = field(default_factory=Split)
    same_camera: SameCamera = "drop"
    notes: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that every code refers to an identity or a camera; raises DataError."""
        check_choice("same_camera", self.same_camera, SameCamera, DataError)
        for name, split in self.splits():
            if not len(split):
                continue
            if split.pids.min() < JUNK or split.pids.max() >= len(self.identities):
                raise DataError(f"domain {self.name}, {name}: identity codes must lie in [-1, {len(self.identities)})")
            if split.camids.min() < 0 or split.camids.max() >= len(self.cameras):
                raise DataError(f"domain {self.name}, {name}: camera codes must lie in [0, {len(self.cameras)})")

    @property
    def remarks(self) -> str:
        """The notes as the end of an error message: how a domain was read may be why it can't be used."""
        return "".join(f"; {note}" for note in self.notes)

    def splits(self) -> Iterator[tuple[str, Split]]:
        """Yield ``(name, split)`` for train, query and gallery."""
        for name in SPLITS:
            yield name, getattr(self, name)

    def files(self, split: Split) -> list[Path]:
        """Absolute paths of a split's images."""
        return [self.root / path for path in split.paths]

    def scored_as(self, same_camera: SameCamera) -> Domain:
        """The same domain under another scoring rule."""
        return replace(self, same_camera=same_camera)

    def first_identities(self, count: int) -> Domain:
        """The same domain with only its first ``count`` train identities (no junk); query and gallery stay."""
        people = self.train.people[:count]
        return replace(self, train=self.train.take(np.isin(self.train.pids, people)))

    def with_held_out(self, people: Collection[str]) -> Domain:
        """The same domain with some train identities held out as its new query and gallery.

        The first crop of each becomes a query, the others gallery. If a query would have no match from another camera,
        crops from its own camera are ranked too (``same_camera=keep``). An identity with a single crop has no match
        under either rule, so it does not affect that choice.
        """
        train = self.train
        named = {code for code, label in enumerate(self.identities) if label in people}
        held_out = np.isin(train.pids, list(named))
        rows = np.flatnonzero(held_out)
        query = rows[np.sort(np.unique(train.pids[rows], return_index=True)[1])]
        gallery = np.setdiff1d(rows, query)
        crops = np.unique(train.pids[rows], return_counts=True)[1]
        # each person once for each camera
        seen = np.unique(np.stack([train.pids[rows], train.camids[rows]]), axis=1)[0]
        one_camera = bool(np.any((np.unique(seen, return_counts=True)[1] == 1) & (crops > 1)))
        return replace(
            self,
            train=train.take(~held_out),
            query=train.take(query),
            gallery=train.take(gallery),
            same_camera="keep" if one_camera else "drop",
        )

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) over every row's split, path, identity, camera and file size: same fingerprint, same data.

        Missing files count as size -1.
        """
        return self._hash("train", "query", "gallery")

    @cached_property
    def test_fingerprint(self) -> str:
        """The same over query and gallery alone: it identifies what was scored even after the train images are gone."""
        return self._hash("query", "gallery")

    def _hash(self, *names: str) -> str:
        digest = hashlib.sha256()
        for name, split in ((name, split) for name, split in self.splits() if name in names):
            for path, pid, camid in zip(split.paths, split.pids, split.camids, strict=True):
                file = self.root / path
                size = file.stat().st_size if file.is_file() else -1
                person = self.identities[pid] if pid != JUNK else "junk"
                digest.update(f"{name}\t{path}\t{person}\t{self.cameras[camid]}\t{size}\n".encode())
        return digest.hexdigest()


def from_rows(
    name: str,
    root: Path,
    layout: str,
    rows: Sequence[tuple[str, str, str | None, str]],
    *,
    times: Sequence[str] = (),
    same_camera: SameCamera = "drop",
    notes: Sequence[str] = (),
) -> Domain:
    """Build a domain from rows ``(split, path, identity, camera)``; identity ``None`` is junk.

    Rows are sorted by path within each split and labels by value (numbers as numbers), so that nothing depends on the
    file system's order.

    Raises:
        EmptyError: no rows; the message ends with the notes, which say why.
        DataError: an unknown split.
    """
    if not rows:
        why = f": {'; '.join(notes)}" if notes else ""
        raise EmptyError(f"domain {name}: no crop found in {root}, read as {layout}{why}")
    unknown = sorted({row[0] for row in rows} - set(SPLITS))
    if unknown:
        raise DataError(f"domain {name}: unknown split {unknown[0]!r}; it must be train, query or gallery")
    people = sorted({row[2] for row in rows if row[2] is not None}, key=natural_key)
    cameras = sorted({row[3] for row in rows}, key=natural_key)
    person_code = {label: code for code, label in enumerate(people)}
    camera_code = {label: code for code, label in enumerate(cameras)}
    splits = {}
    for split in SPLITS:
        picked = sorted((i for i, row in enumerate(rows) if row[0] == split), key=lambda i: rows[i][1])
        splits[split] = Split(
            tuple(rows[i][1] for i in picked),
            np.array([JUNK if (label := rows[i][2]) is None else person_code[label] for i in picked], np.int64),
            np.array([camera_code[rows[i][3]] for i in picked], np.int64),
            tuple(times[i] for i in picked) if times else (),
        )
    domain = Domain(name, root, layout, tuple(people), tuple(cameras), same_camera=same_camera, notes=tuple(notes))
    return replace(domain, **splits)  # type: ignore[arg-type]


def natural_key(label: str) -> tuple[int, int, str]:
    """Sort key that puts numbers first and in numeric order."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def union(name: str, members: Sequence[Domain]) -> Domain:
    """Merge all members' train crops into one domain, identities and cameras kept apart, without query and gallery.

    Only the joint upper bound needs this; it breaks the rule that old images are not kept.
    """
    if not members:
        raise DataError("a union needs at least one domain")
    paths: list[str] = []
    pids, camids = [], []
    people: list[str] = []
    cameras: list[str] = []
    groups: list[int] = []
    for number, member in enumerate(members):
        groups += [number] * len(member.identities)
        paths += [str((member.root / path).resolve()) for path in member.train.paths]
        pids.append(np.where(member.train.pids == JUNK, JUNK, member.train.pids + len(people)))
        camids.append(member.train.camids + len(cameras))
        people += [f"{member.name}/{label}" for label in member.identities]
        cameras += [f"{member.name}/{label}" for label in member.cameras]
    train = Split(tuple(paths), np.concatenate(pids), np.concatenate(camids))
    return Domain(name, Path("/"), "union", tuple(people), tuple(cameras), train=train, groups=tuple(groups))
