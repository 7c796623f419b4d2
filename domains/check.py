"""Check a domain before training: what it contains, what is wrong with it, and what training on it would take.

Every image is read and decoded once, by the same code that training and the edge use, so what passes here passes there.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from domains.crop_shape import doubt
from domains.crops import MAX_BYTES, CropSpec, decode_crop
from domains.domain import JUNK, SPLITS, Domain, Split
from domains.errors import DataError
from domains.formats import left_out
from domains.formats.labels import alike_labels, doubtful_labels
from domains.report import TINY, Count, DomainReport, Dropped, Duplicate, Tiny, Unlikely, Unreadable
from domains.scoring import JUNK_QUERY, NOT_IN_GALLERY, OWN_CAMERA, Labels, dropped_queries

THREADS = 4
CHUNK = 256


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
    unlikely: list[Unlikely] = []
    readable: dict[str, NDArray[np.bool_]] = {}
    for name, split in domain.splits():
        entries = [images[path] for path in split.paths]
        readable[name] = np.array([not image.reason for image in entries], bool)
        for path, image in zip(split.paths, entries, strict=True):
            height, width = image.size
            if image.reason:
                unreadable.append(Unreadable(name, path, image.reason))
                continue
            if height * TINY < crop.height or width * TINY < crop.width:
                tiny.append(Tiny(name, path, height, width))
            if reason := doubt(height, width):
                unlikely.append(Unlikely(name, path, reason))
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
        left_out=left_out(domain),
        alike=alike_labels(domain),
        doubtful=doubtful_labels(domain),
        unreadable=tuple(unreadable),
        tiny=tuple(tiny),
        unlikely=tuple(unlikely),
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
    return Count(len(split), len(split.people), len(np.unique(split.camids)), int((split.pids == JUNK).sum()))


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
