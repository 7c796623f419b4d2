"""What a check of a domain found, as plain values and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from domains.formats.labels import Alike, Doubtful, label_findings
from domains.formats.leftovers import LeftOut

TINY = 4
"""A crop is tiny if a side is shorter than the model's input divided by this; enlarged that much, it holds little to
learn from.
"""
SHOWN = 8
"""Number of entries of a list that ``lines`` spells out."""


@dataclass(frozen=True)
class Count:
    """Size of one split: images, identities (junk aside), cameras, and how many images are junk (no identity)."""

    images: int
    identities: int
    cameras: int
    junk: int


@dataclass(frozen=True)
class Unreadable:
    """An image that can't be decoded. It is left out of training and scoring but never stops them."""

    split: str
    path: str
    reason: str


@dataclass(frozen=True)
class Tiny:
    """A crop much smaller than the model's input; sides in pixels."""

    split: str
    path: str
    height: int
    width: int


@dataclass(frozen=True)
class Unlikely:
    """A picture that can't be a crop of one person, and why; training takes it all the same."""

    split: str
    path: str
    reason: str


@dataclass(frozen=True)
class Duplicate:
    """The same bytes in two splits: the model is tested on an image it has seen, or a query finds itself."""

    split: str
    path: str
    other_split: str
    other_path: str
    same_identity: bool


@dataclass(frozen=True)
class Dropped:
    """A query that can't be scored, and the rule that drops it."""

    path: str
    identity: str
    camera: str
    reason: str


@dataclass(frozen=True)
class DomainReport:
    """What :func:`domains.check.check_domain` found.

    Attributes:
        name: the domain's name.
        path: its folder.
        format: the layout it was read from.
        same_camera: the rule it is scored by.
        notes: how it was read.
        crop: the crop rule that the check assumed.
        splits: sizes of train, query and gallery.
        identities_per_camera: for each camera, the number of identities it saw in train and in query or gallery.
        singletons: train identities with a single readable image; having no positive pair, they train only the
            classifier.
        shared: identities both in train and in query or gallery, which make the test too easy.
        left_out: what lies in the folder and is not in the domain, by reason, with an example.
        alike: identities, or cameras, that may be one under several labels.
        doubtful: identities and cameras that may be none, or many under one label.
        unreadable: images left out.
        tiny: crops much smaller than the input.
        unlikely: pictures that can't be crops of one person: whole frames, strips.
        duplicates: images whose bytes occur in two splits.
        dropped: queries that can't be scored.
        scored: number of queries that can be scored.
        train_crops: number of crops that training holds in memory, readable and not junk.
        train_identities: number of identities in those crops.
        train_bytes: memory those crops take as uint8 at the model's input size.
        train_seconds: time for the planned number of crops at the measured speed, or None if unknown.
    """

    name: str
    path: str
    format: str
    same_camera: str
    notes: tuple[str, ...]
    crop: dict[str, Any]
    splits: dict[str, Count]
    identities_per_camera: dict[str, dict[str, int]]
    singletons: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    alike: tuple[Alike, ...] = ()
    doubtful: tuple[Doubtful, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    tiny: tuple[Tiny, ...] = ()
    unlikely: tuple[Unlikely, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    scored: int = 0
    train_crops: int = 0
    train_identities: int = 0
    train_bytes: int = 0
    train_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with complete lists."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return plain text for a terminal, one finding per line, with long lists cut short."""
        return list(_lines(self))


def _lines(report: DomainReport) -> Iterator[str]:
    yield f"domain {report.name}: {report.format} layout in {report.path}"
    for name, count in report.splits.items():
        junk = f"; {count.junk} of the images are junk" if count.junk else ""
        yield f"{name}: images {count.images}, identities {count.identities}, cameras {count.cameras}{junk}"
    yield from (f"note: {note}" for note in report.notes)
    yield from (f"left out: {item}" for item in report.left_out)
    yield from _camera_lines(report.identities_per_camera)
    for title, entries in label_findings(report.alike, report.doubtful):
        yield from _listed(title, entries)
    if report.singletons:
        alone = f"{len(report.singletons)} of {report.train_identities} train identities"
        yield f"{alone} have a single image: {_cut(report.singletons)}"
    if report.shared:
        both = f"{len(report.shared)} identities are both in train and in query or gallery"
        yield f"{both}, so scores say little: {_cut(report.shared)}"
    yield from _listed(
        "unreadable images, left out", [f"{item.split}: {item.path}: {item.reason}" for item in report.unreadable]
    )
    limit = f"{report.crop['height'] / TINY:g}×{report.crop['width'] / TINY:g}"
    yield from _listed(
        f"tiny crops (a side below {limit}, height×width)",
        [f"{item.split}: {item.path}: {item.height}×{item.width}" for item in report.tiny],
    )
    yield from _listed(
        "pictures that can't be one person's crop",
        [f"{item.split}: {item.path}: {item.reason}" for item in report.unlikely],
    )
    yield from _listed(
        "exact duplicates across splits",
        [
            f"{item.path} ({item.split}) and {item.other_path} "
            f"({item.other_split}){'' if item.same_identity else ', under different identities'}"
            for item in report.duplicates
        ],
    )
    queries = report.splits["query"].images
    yield (
        f"scoring: {report.scored} of {queries} queries can be scored (rule: {report.same_camera} same camera)"
        if queries
        else "scoring: there are no queries"
    )
    yield from _listed("queries dropped", [f"{item.path}: {item.reason}" for item in report.dropped])
    if report.train_identities < 2:
        yield f"training: not possible, train needs at least 2 usable identities and has {report.train_identities}"
        return
    took = "" if report.train_seconds is None else f", about {_duration(report.train_seconds)}"
    size = f"{report.crop['height']}×{report.crop['width']}"
    yield f"training: {report.train_crops} crops of {size} in memory, {report.train_bytes / 2**20:.1f} MiB{took}"


def _camera_lines(cameras: dict[str, dict[str, int]]) -> Iterator[str]:
    if len(cameras) <= SHOWN:
        yield from (
            f"camera {label}: {people['train']} identities in train, {people['test']} in query or gallery"
            for label, people in cameras.items()
        )
        return
    for side, where in (("train", "train"), ("test", "query or gallery")):
        counts = sorted(people[side] for people in cameras.values() if people[side])
        if counts:
            median = counts[len(counts) // 2]
            yield f"{len(counts)} cameras in {where}: {counts[0]} to {counts[-1]} identities each, median {median}"


def _listed(title: str, entries: list[str]) -> Iterator[str]:
    if not entries:
        return
    yield f"{len(entries)} {title}:"
    yield from (f"  {entry}" for entry in entries[:SHOWN])
    if len(entries) > SHOWN:
        yield f"  and {len(entries) - SHOWN} more (--json lists all)"


def _cut(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
