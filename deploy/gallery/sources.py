"""Where a gallery's crops come from: a domain, a folder of images, or a CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath

from deploy.encoder import Encoder
from deploy.gallery.gallery import Gallery
from deploy.gallery.kept_crops import shrunk
from deploy.store.entry import Entry
from domains.crops import read_crop
from domains.domain import JUNK, SPLITS, Domain
from domains.errors import DataError, GalleryError, UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".ppm"})
MAX_CSV = 256 * 2**20
COLUMNS = ("path", "camera", "time", "label")


@dataclass(frozen=True)
class Source:
    """One image file and what is known of it.

    Attributes:
        path: the file; its absolute path is what the gallery keeps as ``source``.
        camera: the camera that saw it.
        time: ISO 8601 with zone, or ``None``.
        label: name of the person, or ``None``.
    """

    path: Path
    camera: str
    time: str | None = None
    label: str | None = None

    def entry(self) -> Entry:
        """What the gallery keeps of it; raises GalleryError on a text or time that it can't keep."""
        return Entry(self.camera, os.path.abspath(self.path), self.time, self.label)  # noqa: PTH100 - resolve() asks the disk for every part


@dataclass(frozen=True)
class Filled:
    """What became of the sources.

    Attributes:
        added: how many were embedded and stored.
        known: how many were there already, by source, camera and time.
        skipped: files that could not be used, with the reasons.
    """

    added: int
    known: int
    skipped: tuple[tuple[str, str], ...]


def read_sources(
    path: str | PathLike[str], *, camera: str | None = None, split: str | None = None, labels: bool = False
) -> list[Source]:
    """List the crops of a domain, a folder or a CSV, in a fixed order.

    Args:
        path: a domain's folder, one folder per person included where most file names tell their camera; or any other
            folder of images, also in sub-folders; or a CSV with the columns ``path,camera`` and optional
            ``time,label``, whose paths are relative to it and stay below its folder.
        camera: camera of a plain folder's images, by default the name of the sub-folder that each lies in. With it, the
            folder is never read as a domain.
        split: ``train``, ``query`` or ``gallery`` of a domain; by default its gallery, and all crops of people's
            folders that nobody split.
        labels: keep a domain's identities as labels. Off by default: a gallery need not know who someone is.

    Raises:
        DataError: nothing there, or a CSV row that can't be used; says which.
        UsageError: an option that does not go with what was found.
    """
    place = Path(path)
    if split is not None and split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; it must be train, query or gallery")
    if camera is not None and (split is not None or labels):
        raise UsageError("a camera is named for a plain folder, a split or labels for a domain; give one or the other")
    if place.is_dir():
        domain = _as_domain(place, wanted=split is not None or labels) if camera is None else None
        return _from_folder(place, camera) if domain is None else _from_domain(domain, split, labels=labels)
    if not place.is_file():
        raise DataError(f"there is nothing at {place}; give a domain, a folder of images or a CSV")
    if place.suffix.lower() != ".csv":
        raise DataError(f"{place} is neither a folder nor a CSV; to add one image, give the folder it lies in")
    if camera is not None or split is not None or labels:
        raise UsageError("a CSV names cameras and labels itself; leave out camera, split and labels")
    return _from_csv(place)


def fill(
    gallery: Gallery,
    encoder: Encoder,
    sources: Sequence[Source],
    *,
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Filled:
    """Embed images and store them, a batch at a time; stopped and started again, it goes on where it was.

    Args:
        gallery: where they go.
        encoder: of the gallery's feature space.
        sources: what to add.
        batch: images per transaction.
        progress: called with the number of images just dealt with.

    Raises:
        GalleryError: the encoder's feature space is not the gallery's.
        UsageError: ``batch`` below 1.
    """
    if batch < 1:
        raise UsageError(f"batch must be a whole number from 1, got {batch}")
    if encoder.feature_space != gallery.feature_space:
        raise GalleryError(
            f"the encoder's bundle {encoder.bundle.folder} is of another model than the gallery; use the gallery's "
            "bundle"
        )
    added = known = 0
    skipped: list[tuple[str, str]] = []
    seen: set[tuple[str, str, int | None]] = set()
    for start in range(0, len(sources), batch):
        part, fresh = sources[start : start + batch], []
        for source in part:
            try:
                entry = source.entry()
            except GalleryError as error:
                skipped.append((str(source.path).encode(errors="backslashreplace").decode(), str(error)))
                continue
            key = (entry.source, entry.camera, entry.utc)
            if key in seen or gallery.has(entry):
                known += 1
            else:
                fresh.append(entry)
            seen.add(key)
        vectors, unusable = encoder.files([entry.source for entry in fresh])
        reasons = {item.position: item.reason for item in unusable}
        skipped += [(fresh[position].source, reason) for position, reason in reasons.items()]
        kept = [entry for position, entry in enumerate(fresh) if position not in reasons]
        if kept:
            crops = [shrunk(read_crop(entry.source)) for entry in kept] if gallery.keeps_crops else None
            gallery.add(
                vectors,
                camera=[entry.camera for entry in kept],
                source=[entry.source for entry in kept],
                time=[entry.time for entry in kept],
                label=[entry.label for entry in kept],
                crops=crops,
            )
        added += len(kept)
        if progress is not None:
            progress(len(part))
    return Filled(added, known, tuple(skipped))


def _as_domain(folder: Path, *, wanted: bool) -> Domain | None:
    """The folder as a domain, or ``None`` if it is to be read as plain images.

    A folder with one sub-folder of images per name could be one per person or one per camera. It is people, whose names
    must not become cameras, where most file names tell their camera, where a split or labels are asked for, or where it
    has splits; else it is cameras.
    """
    from domains.formats import LAYOUTS, folders, open_domain

    def known(place: Path) -> bool:
        return any(layout.recognise(place) for name, layout in LAYOUTS.items() if name != folders.NAME)

    if wanted or known(folder) or (folder / "gallery").is_dir():
        return open_domain(folder)
    inner = [child.name for child in sorted(folder.iterdir()) if child.is_dir() and known(child)]
    if inner:
        raise DataError(f"{folder} holds domains ({', '.join(inner):.100}) and is not one itself; add them one by one")
    told = [folders.CAMERA.search(file.name) is not None for file in _images(folder)]
    return open_domain(folder) if 2 * sum(told) > len(told) and folders.recognise(folder) else None


def _from_domain(domain: Domain, name: str | None, *, labels: bool) -> list[Source]:
    from domains.formats import folders

    unsplit = domain.format == folders.NAME and not any((domain.root / split).is_dir() for split in SPLITS)
    if name is None and unsplit:  # a hash has divided it, not a person: nothing is left out
        sources = [source for split in SPLITS for source in _from_split(domain, split, labels=labels)]
        return sorted(sources, key=lambda source: source.path)
    sources = _from_split(domain, name or "gallery", labels=labels)
    if not sources:
        raise DataError(
            f"domain {domain.name} has no crop in its {name or 'gallery'} split; choose another with --split"
        )
    return sources


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


def _from_folder(folder: Path, camera: str | None) -> list[Source]:
    files = _images(folder)
    if not files:
        raise DataError(
            f"{folder} is no domain and holds no image ({' '.join(sorted(SUFFIXES))}); give a domain, a folder of "
            "images or a CSV"
        )
    home = folder.absolute().name or "camera"
    return [Source(file, camera or (file.parent.name if file.parent != folder else home)) for file in files]


def _images(folder: Path) -> list[Path]:
    files: list[Path] = []
    for parent, inner, names in os.walk(folder, onerror=_unreadable):
        inner[:] = [name for name in inner if not name.startswith(".")]
        files += [
            Path(parent) / name for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(files)


def _unreadable(error: OSError) -> None:
    raise DataError(f"can't read the folder {error.filename}: {error.strerror or error}") from error


def _from_csv(file: Path) -> list[Source]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_CSV + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if len(data) > MAX_CSV:
        raise DataError(f"{file} is larger than {MAX_CSV // 2**20} MiB; split it")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    sources: list[Source] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) != len(names) or not {"path", "camera"} <= set(names) <= set(COLUMNS):
            raise DataError(
                f"{file} must have the columns path,camera and may have time,label; its first line has "
                f"{','.join(names)!r:.150}"
            )
        for row in reader:
            if row:
                sources.append(_from_row(file, reader.line_num, names, row))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from error
    if not sources:
        raise DataError(f"{file} lists no image")
    return sources


def _from_row(file: Path, line: int, names: list[str], row: list[str]) -> Source:
    if len(row) != len(names):
        raise DataError(f"{file}, line {line}: {len(row)} values for {len(names)} columns")
    values = {name: value.strip() for name, value in zip(names, row, strict=True)}
    path = PurePosixPath(values["path"])
    if not values["path"] or path.is_absolute() or ".." in path.parts or "\\" in values["path"]:
        raise DataError(
            f"{file}, line {line}: the path must be relative to the CSV and stay below its folder, got "
            f"{values['path']!r:.150}"
        )
    source = Source(file.parent / path, values["camera"], values.get("time") or None, values.get("label") or None)
    try:
        source.entry()
    except GalleryError as error:
        raise DataError(f"{file}, line {line}: {error}") from error
    return source
