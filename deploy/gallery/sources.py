"""Where a gallery's crops come from: a domain, a folder of images, or a CSV."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from deploy.encoder import Encoder
from deploy.gallery.gallery import Gallery
from deploy.gallery.kept_crops import shrunk
from deploy.store.entry import Entry
from domains.crop_shape import doubt_about_file
from domains.crops import SUFFIXES, read_crop
from domains.domain import JUNK, SPLITS, Domain
from domains.errors import DataError, GalleryError, UsageError
from domains.formats import LAYOUTS, folders, left_out, open_domain
from domains.formats.folder_cameras import folder_cameras
from domains.formats.labels import doubtful, doubtful_camera, is_junk
from domains.formats.leftovers import CLOSED, LeftOut, survey
from domains.formats.listing import Fence, instead_of_folder, some
from domains.formats.named_cameras import named_cameras
from domains.formats.records import Columns, path_below, read_records

CSV = Columns(
    ("path", "camera"),
    ("time", "label"),
    {
        "path": ("file", "filename", "file_name", "image", "img", "image_path", "img_path", "crop", "source"),
        "camera": ("cam", "cam_id", "camid", "camera_id", "cameraid"),
        "time": ("timestamp", "date", "datetime", "when"),
        "label": ("pid", "person", "person_id", "identity", "id", "name"),
    },
)


Key = tuple[str, str, int | None]
"""Source, camera and time of an entry: the same again is the same entry."""


@dataclass(frozen=True)
class Source:
    """One image file and what is known about it.

    Attributes:
        path: the file; the gallery stores its absolute path as ``source``.
        camera: the camera that saw it.
        time: ISO 8601 with zone, or ``None``.
        label: name of the person, or ``None``.
    """

    path: Path
    camera: str
    time: str | None = None
    label: str | None = None

    def entry(self) -> Entry:
        """Return the entry to store; raises GalleryError for an invalid text or time."""
        return Entry(self.camera, os.path.abspath(self.path), self.time, self.label)  # noqa: PTH100 - resolve() asks the disk for every part


class Sources(list[Source]):
    """What :func:`read_sources` found.

    Attributes:
        left_out: what lies in the folder and was left out, by reason, with an example; nothing for a CSV.
        notes: what a user should know about how it was read.
    """

    def __init__(
        self, sources: Iterable[Source], left_out: Iterable[LeftOut] = (), *, notes: Iterable[str] = ()
    ) -> None:
        super().__init__(sources)
        self.left_out = tuple(left_out)
        self.notes = tuple(notes)


@dataclass(frozen=True)
class Filled:
    """Outcome of adding sources.

    A source that is listed twice counts twice: as known if it is stored by then, else as it did before.

    Attributes:
        added: number of crops embedded and stored.
        known: number that were already stored, by source, camera and time.
        skipped: files that could not be used, with the reasons.
        refused: files that can't be a crop of one person, with the reasons.
    """

    added: int
    known: int
    skipped: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str], ...] = ()


def read_sources(
    path: str | PathLike[str], *, camera: str | None = None, split: str | None = None, labels: bool = False
) -> Sources:
    """List the crops of a domain, a folder or a CSV, in a fixed order.

    Args:
        path: a domain's folder, including one folder per person if most file names contain their camera; or any other
            folder of images, sub-folders included; or a CSV with the columns ``path,camera`` and optionally
            ``time,label``, whose paths are relative to the CSV and stay below its folder.
        camera: camera of a plain folder's images, by default what their names give, or else the name of a sub-folder
            (:func:`domains.formats.folder_cameras.folder_cameras`). If given, the folder is never read as a domain.
        split: ``train``, ``query`` or ``gallery`` of a domain; by default its gallery, or all crops if it is one folder
            per person without splits.
        labels: keep a domain's identities as labels. Off by default: a gallery need not know who someone is.

    Raises:
        DataError: nothing at the path, or an unusable CSV row; the message says which.
        UsageError: an option that does not apply to what was found.
    """
    path = Path(path)
    if split is not None and split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; it must be train, query or gallery")
    if camera is not None and (split is not None or labels):
        raise UsageError("a camera applies to a plain folder, a split or labels to a domain; give one or the other")
    if path.is_dir():
        domain = _as_domain(path, wanted=split is not None or labels) if camera is None else None
        return _from_folder(path, camera) if domain is None else _from_domain(domain, split, labels=labels)
    if not path.is_file():
        raise DataError(f"there is nothing at {path}; give a domain, a folder of images or a CSV")
    if path.suffix.lower() != ".csv":
        what = "a CSV; to add one image, give its folder" if path.suffix.lower() in SUFFIXES else ""
        raise DataError(f"{path} {f'is neither a folder nor {what}' if what else instead_of_folder(path)}")
    if camera is not None or split is not None or labels:
        raise UsageError("a CSV names its own cameras and labels; leave out camera, split and labels")
    return _from_csv(path)


def fill(
    gallery: Gallery,
    encoder: Encoder,
    sources: Sequence[Source],
    *,
    batch: int = 256,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Filled:
    """Embed images and store them, a batch at a time; if interrupted and run again, it continues where it stopped.

    Args:
        gallery: the gallery to add to.
        encoder: an encoder of the gallery's feature space.
        sources: what to add.
        batch: images per transaction.
        force: store what can't be a crop of one person, too: whole frames, strips.
        progress: called with the number of images just processed.

    Raises:
        GalleryError: the encoder's feature space is not the gallery's.
        UsageError: ``batch`` below 1.
    """
    if batch < 1:
        raise UsageError(f"batch must be a whole number of at least 1, got {batch}")
    if encoder.feature_space != gallery.feature_space:
        raise GalleryError(
            f"the encoder's bundle {encoder.bundle.folder} is from a different model than the gallery; use the "
            "gallery's bundle"
        )
    tally = _Tally()
    for start in range(0, len(sources), batch):
        part = sources[start : start + batch]
        fresh = [entry for source in part if (entry := tally.take(source, gallery, force=force))]
        vectors, unusable = encoder.files([entry.source for entry in fresh])
        reasons = {item.position: item.reason for item in unusable}
        for position, reason in reasons.items():
            tally.fail(fresh[position], tally.skipped, reason)
        usable = [entry for position, entry in enumerate(fresh) if position not in reasons]
        if usable:
            crops = [shrunk(read_crop(entry.source)) for entry in usable] if gallery.keeps_crops else None
            gallery.add(
                vectors,
                camera=[entry.camera for entry in usable],
                source=[entry.source for entry in usable],
                time=[entry.time for entry in usable],
                label=[entry.label for entry in usable],
                crops=crops,
            )
        tally.added += len(usable)
        tally.count_repeated()
        if progress is not None:
            progress(len(part))
    return Filled(tally.added, tally.known, tuple(tally.skipped), tuple(tally.refused))


@dataclass
class _Tally:
    """Outcomes so far; what is listed again waits until it is known what became of it the first time."""

    added: int = 0
    known: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    _seen: set[Key] = field(default_factory=set)
    _failed: dict[Key, tuple[list[tuple[str, str]], str]] = field(default_factory=dict)
    _repeated: list[Key] = field(default_factory=list)

    def take(self, source: Source, gallery: Gallery, *, force: bool) -> Entry | None:
        """Return a source's entry if it is to be embedded; otherwise count the source."""
        try:
            entry = source.entry()
        except GalleryError as error:
            self.skipped.append((str(source.path).encode(errors="backslashreplace").decode(), str(error)))
            return None
        key = _key(entry)
        if key in self._seen:
            self._repeated.append(key)
            return None
        self._seen.add(key)
        if gallery.has(entry):
            self.known += 1
        elif not force and (reason := doubt_about_file(entry.source)):
            self.fail(entry, self.refused, reason)
        else:
            return entry
        return None

    def fail(self, entry: Entry, outcome: list[tuple[str, str]], reason: str) -> None:
        """Count an entry as skipped or refused."""
        outcome.append((entry.source, reason))
        self._failed[_key(entry)] = outcome, reason

    def count_repeated(self) -> None:
        """Count what was listed again as it was counted the first time, or as known if it is stored."""
        for key in self._repeated:
            if key in self._failed:
                outcome, reason = self._failed[key]
                outcome.append((key[0], reason))
            else:
                self.known += 1
        self._repeated.clear()


def _key(entry: Entry) -> Key:
    return entry.source, entry.camera, entry.utc


def _as_domain(folder: Path, *, wanted: bool) -> Domain | None:
    """Open the folder as a domain, or return ``None`` to read it as plain images.

    Sub-folders of images could each be a person or a camera. They are people, whose names must not become cameras, if
    most file names contain a camera, if a split or labels are asked for, or if the folder has splits; otherwise they
    are cameras.
    """

    def known(path: Path) -> bool:
        return any(layout.recognise(path) for name, layout in LAYOUTS.items() if name != folders.NAME)

    if wanted or known(folder):
        return open_domain(folder)
    if (folder / "gallery").is_dir():
        if reason := folders.no_people(folder):
            raise DataError(f"{folder}: {reason}; to add images by camera, give {folder / 'gallery'} itself")
        return open_domain(folder)
    inner = [child.name for child in sorted(folder.iterdir()) if child.is_dir() and known(child)]
    if inner:
        raise DataError(f"{folder} holds domains ({', '.join(inner):.100}) and is not one itself; add them one by one")
    return open_domain(folder) if named_cameras(survey(folder).images).told and folders.recognise(folder) else None


def _from_domain(domain: Domain, name: str | None, *, labels: bool) -> Sources:
    unsplit = domain.format == folders.NAME and not any((domain.root / split).is_dir() for split in SPLITS)
    if name is None and unsplit:  # split by a hash, not by a person: use every crop
        sources = [source for split in SPLITS for source in _from_split(domain, split, labels=labels)]
        notes = [note for note in domain.notes if note != folders.DIVIDED]
        return Sources(sorted(sources, key=lambda source: source.path), left_out(domain), notes=notes)
    sources = _from_split(domain, name or "gallery", labels=labels)
    notes = [*domain.notes, *([] if name else _not_taken(domain))]
    if not sources:
        others = ", ".join(f"{len(split)} in {other}" for other, split in domain.splits() if len(split))
        raise DataError(
            f"domain {domain.name} has no crop in its {name or 'gallery'} split, but {others}; choose another with "
            f"--split{domain.remarks}"
        )
    return Sources(sources, left_out(domain), notes=notes)


def _not_taken(domain: Domain) -> list[str]:
    """A note on the crops of train and query that are not in the gallery split."""
    taken = set(domain.gallery.paths)
    others = {name: len(set(split.paths) - taken) for name, split in domain.splits() if name != "gallery"}
    named = [name for name, count in others.items() if count]
    if not named:
        return []
    return [
        f"{sum(others.values())} crops of {' and '.join(named)} are not added; "
        f"{' or '.join(f'--split {name}' for name in named)} adds {'them' if len(named) == 1 else 'those of one'}"
    ]


def _from_split(domain: Domain, name: str, *, labels: bool) -> list[Source]:
    split = getattr(domain, name)
    return [
        Source(
            file,
            domain.cameras[split.camids[row]],
            split.times[row] or None if split.times else None,
            domain.identities[split.pids[row]] if labels and split.pids[row] != JUNK else None,
        )
        for row, file in enumerate(domain.files(split))
    ]


def _from_folder(folder: Path, camera: str | None) -> Sources:
    found = survey(folder)
    if closed := next((item for item in found.left_out if item.reason == CLOSED), None):
        raise DataError(f"can't read the folder {folder / closed.example}; give yourself the right, or move it away")
    if not found.images:
        left = f"; left out: {', '.join(map(str, found.left_out))}" if found.left_out else ""
        raise DataError(
            f"{folder} is not a domain and holds no images ({' '.join(sorted(SUFFIXES))}){left}; give a domain, a "
            "folder of images or a CSV"
        )
    paths, notes = sorted(found.images, key=lambda path: folder / path), list[str]()
    cameras = [camera] * len(paths) if camera else folder_cameras(paths, folder.absolute().name or "camera", notes)
    sources = [Source(folder / path, seen) for path, seen in zip(paths, cameras, strict=True)]
    return Sources(sources, found.left_out, notes=notes)


def _from_csv(file: Path) -> Sources:
    notes: list[str] = []
    fence = Fence(file.parent)
    sources = []
    for where, values in read_records(file, CSV, notes):
        path = path_below(values["path"], where)
        fence.check(path, where)
        label = values.get("label") or None
        if any(not text.isprintable() for text in values.values()):
            raise DataError(
                f"{where}: camera, time and label must be printable text, got {list(values.values())!a:.150}"
            )
        source = Source(
            file.parent / path,
            values["camera"],
            values.get("time") or None,
            None if label is None or is_junk(label) else label,
        )
        try:
            source.entry()
        except GalleryError as error:
            raise DataError(f"{where}: {error}") from error
        sources.append(source)
    if not sources:
        raise DataError(f"{file} lists no images: it has no rows below its header")
    labels = {source.label: doubtful(source.label) for source in sources if source.label is not None}
    cameras = {source.camera: doubtful_camera(source.camera) for source in sources}
    for title, doubts in (
        ("labels may mean nobody, or many people", labels),
        ("cameras may be none, or several", cameras),
    ):
        if found := [f"{label!r} ({reason})" for label, reason in doubts.items() if reason]:
            notes.append(f"{file.name}: these {title}: {some(found)}")
    return Sources(sources, notes=notes)
