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


@dataclass(frozen=True)
class Filled:
    """Outcome of adding sources.

    Attributes:
        added: number of crops embedded and stored.
        known: number that were already stored, by source, camera and time.
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
        path: a domain's folder, including one folder per person if most file names contain their camera; or any other
            folder of images, sub-folders included; or a CSV with the columns ``path,camera`` and optionally
            ``time,label``, whose paths are relative to the CSV and stay below its folder.
        camera: camera of a plain folder's images, by default the name of each image's sub-folder. If given, the folder
            is never read as a domain.
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
        raise DataError(f"{path} is neither a folder nor a CSV; to add one image, give its folder")
    if camera is not None or split is not None or labels:
        raise UsageError("a CSV names its own cameras and labels; leave out camera, split and labels")
    return _from_csv(path)


def fill(
    gallery: Gallery,
    encoder: Encoder,
    sources: Sequence[Source],
    *,
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Filled:
    """Embed images and store them, a batch at a time; if interrupted and run again, it continues where it stopped.

    Args:
        gallery: the gallery to add to.
        encoder: an encoder of the gallery's feature space.
        sources: what to add.
        batch: images per transaction.
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
        added += len(usable)
        if progress is not None:
            progress(len(part))
    return Filled(added, known, tuple(skipped))


def _as_domain(folder: Path, *, wanted: bool) -> Domain | None:
    """Open the folder as a domain, or return ``None`` to read it as plain images.

    Sub-folders of images could each be a person or a camera. They are people, whose names must not become cameras, if
    most file names contain a camera, if a split or labels are asked for, or if the folder has splits; otherwise they
    are cameras.
    """
    from domains.formats import LAYOUTS, folders, open_domain

    def known(path: Path) -> bool:
        return any(layout.recognise(path) for name, layout in LAYOUTS.items() if name != folders.NAME)

    if wanted or known(folder) or (folder / "gallery").is_dir():
        return open_domain(folder)
    inner = [child.name for child in sorted(folder.iterdir()) if child.is_dir() and known(child)]
    if inner:
        raise DataError(f"{folder} holds domains ({', '.join(inner):.100}) and is not one itself; add them one by one")
    has_camera = [folders.CAMERA.search(file.name) is not None for file in _images(folder)]
    return open_domain(folder) if 2 * sum(has_camera) > len(has_camera) and folders.recognise(folder) else None


def _from_domain(domain: Domain, name: str | None, *, labels: bool) -> list[Source]:
    from domains.formats import folders

    unsplit = domain.format == folders.NAME and not any((domain.root / split).is_dir() for split in SPLITS)
    if name is None and unsplit:  # split by a hash, not by a person: use every crop
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
            f"{folder} is not a domain and holds no images ({' '.join(sorted(SUFFIXES))}); give a domain, a folder of "
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
        raise DataError(f"{file} lists no images")
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
