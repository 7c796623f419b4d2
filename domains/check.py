"""Check a domain before training: what it contains, what is wrong with it, and what training on it would take.

Every image is read and decoded once, by the same code that training and the edge use, so what passes here passes there.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from domains.crops import MAX_BYTES, CropSpec, decode_crop
from domains.domain import JUNK, SPLITS, Domain, Split
from domains.errors import DataError
from domains.scoring import JUNK_QUERY, NOT_IN_GALLERY, OWN_CAMERA, Labels, dropped_queries

THREADS = 4
CHUNK = 256
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
    """What :func:`check_domain` found.

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
        unreadable: images left out.
        tiny: crops much smaller than the input.
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
    unreadable: tuple[Unreadable, ...] = ()
    tiny: tuple[Tiny, ...] = ()
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


@dataclass
class _Image:
    """What reading one file revealed."""

    digest: str = ""
    size: tuple[int, int] = (0, 0)
    reason: str = ""


def check_domain(
    domain: Domain,
    *,
    crop: CropSpec,
    crops_per_second: float | None = None,
    training_crops: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DomainReport:
    """Read every image of a domain and report its problems rather than raise them.

    Args:
        domain: domain to check.
        crop: crop rule of the model's input, which decides what is tiny and how much memory training needs.
        crops_per_second: how fast the model trains on this machine, measured by the caller.
        training_crops: number of crops a step will take: iterations times batch size.
        progress: called with the number of images just read.
    """
    images = _read_all(domain, progress)
    unreadable: list[Unreadable] = []
    tiny: list[Tiny] = []
    readable: dict[str, NDArray[np.bool_]] = {}
    for name, split in domain.splits():
        entries = [images[path] for path in split.paths]
        readable[name] = np.array([not image.reason for image in entries], bool)
        for path, image in zip(split.paths, entries, strict=True):
            height, width = image.size
            if image.reason:
                unreadable.append(Unreadable(name, path, image.reason))
            elif height * TINY < crop.height or width * TINY < crop.width:
                tiny.append(Tiny(name, path, height, width))
    train = domain.train.take(readable["train"] & (domain.train.pids != JUNK))
    seen = Counter(train.pids.tolist())
    tested = set(np.concatenate([domain.query.pids, domain.gallery.pids]).tolist()) - {JUNK}
    dropped, scored = _dropped(domain, readable)
    seconds = training_crops / crops_per_second if crops_per_second and training_crops else None
    return DomainReport(
        name=domain.name,
        path=str(domain.root),
        format=domain.format,
        same_camera=domain.same_camera,
        notes=domain.notes,
        crop=crop.to_dict(),
        splits={name: _count(split) for name, split in domain.splits()},
        identities_per_camera=_per_camera(domain),
        singletons=tuple(domain.identities[pid] for pid in sorted(seen) if seen[pid] == 1),
        shared=tuple(domain.identities[pid] for pid in sorted(tested & set(domain.train.pids.tolist()))),
        unreadable=tuple(unreadable),
        tiny=tuple(tiny),
        duplicates=tuple(_duplicates(domain, images)),
        dropped=tuple(dropped),
        scored=scored,
        train_crops=len(train),
        train_identities=len(seen),
        train_bytes=len(train) * crop.height * crop.width * 3,
        train_seconds=seconds,
    )


def _read_all(domain: Domain, progress: Callable[[int], None] | None) -> dict[str, _Image]:
    """Read each file once, even if several splits list it."""
    paths = list(dict.fromkeys(path for _, split in domain.splits() for path in split.paths))
    images: dict[str, _Image] = {}

    def read(path: str) -> _Image:
        try:
            with (domain.root / path).open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            return _Image(reason=getattr(error, "strerror", None) or str(error))
        try:
            height, width, _ = decode_crop(data).shape
        except DataError as error:
            return _Image(reason=str(error))
        return _Image(hashlib.sha256(data).hexdigest(), (height, width))

    with _quiet(), ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            images |= zip(chunk, pool.map(read, chunk), strict=True)
            if progress:
                progress(len(chunk))
    return images


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV from logging every broken image; the report lists them."""
    logging: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved its functions there
    level = logging.getLogLevel()
    logging.setLogLevel(0)  # silent
    try:
        yield
    finally:
        logging.setLogLevel(level)


def _count(split: Split) -> Count:
    people = split.pids[split.pids != JUNK]
    return Count(len(split), len(np.unique(people)), len(np.unique(split.camids)), int((split.pids == JUNK).sum()))


def _per_camera(domain: Domain) -> dict[str, dict[str, int]]:
    seen: dict[int, dict[str, set[int]]] = defaultdict(lambda: {"train": set(), "test": set()})
    for name, split in domain.splits():
        for pid, camid in zip(split.pids.tolist(), split.camids.tolist(), strict=True):
            people = seen[camid]["train" if name == "train" else "test"]
            if pid != JUNK:
                people.add(pid)
    return {
        domain.cameras[camid]: {side: len(people) for side, people in seen[camid].items()} for camid in sorted(seen)
    }


def _duplicates(domain: Domain, images: dict[str, _Image]) -> Iterator[Duplicate]:
    """Yield each image whose bytes occur in an earlier split, with its first occurrence there.

    The order of the splits is train, query, gallery.
    """
    first: dict[str, dict[str, tuple[str, int]]] = {name: {} for name in SPLITS}
    for number, (name, split) in enumerate(domain.splits()):
        for path, pid in zip(split.paths, split.pids.tolist(), strict=True):
            digest = images[path].digest
            if not digest:
                continue
            for earlier in SPLITS[:number]:
                if other := first[earlier].get(digest):
                    yield Duplicate(earlier, other[0], name, path, other[1] == pid)
            first[name].setdefault(digest, (path, pid))


def _dropped(domain: Domain, readable: dict[str, NDArray[np.bool_]]) -> tuple[list[Dropped], int]:
    """Return the queries that can't be scored, in order, and how many can; unreadable images take no part."""
    usable = np.flatnonzero(readable["query"])
    query, gallery = domain.query.take(usable), domain.gallery.take(readable["gallery"])
    rules = {
        int(usable[row]): rule
        for row, rule in dropped_queries(
            Labels.from_split(query), Labels.from_split(gallery), same_camera=domain.same_camera
        )
    }
    present = set(domain.gallery.pids.tolist())
    dropped = []
    for row in sorted(rules.keys() | set(np.flatnonzero(~readable["query"]).tolist())):
        pid = int(domain.query.pids[row])
        identity = "junk" if pid == JUNK else domain.identities[pid]
        camera = domain.cameras[domain.query.camids[row]]
        rule = rules.get(row)
        if rule is None:
            reason = "its image can't be read"
        elif rule == NOT_IN_GALLERY:
            reason = f"no {'readable ' if pid in present else ''}gallery crop of identity {identity}"
        elif rule == OWN_CAMERA:
            reason = (
                f"identity {identity} is in the gallery only from the query's own camera {camera} (rule: drop same "
                "camera); use same_camera=keep"
            )
        else:
            reason = rule if rule != JUNK_QUERY else "the query is junk: it has no identity"
        dropped.append(Dropped(domain.query.paths[row], identity, camera, reason))
    return dropped, len(domain.query) - len(dropped)


def _lines(report: DomainReport) -> Iterator[str]:
    yield f"domain {report.name}: {report.format} layout in {report.path}"
    for name, count in report.splits.items():
        junk = f"; {count.junk} of the images are junk" if count.junk else ""
        yield f"{name}: images {count.images}, identities {count.identities}, cameras {count.cameras}{junk}"
    yield from (f"note: {note}" for note in report.notes)
    yield from _camera_lines(report.identities_per_camera)
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
