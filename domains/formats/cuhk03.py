"""CUHK03, labelled boxes, new protocol with 767 training and 700 test identities.

Li et al., "DeepReID", CVPR 2014; protocol of Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
Encoding", CVPR 2017. Two forms are read: extracted images with a split file (``images_labeled/1_001_1_01.png``: camera
pair, person, view, image; ``splits_new_labeled.json`` as torchreid writes it), and the "CUHK03-NP" folders in
Market-1501's layout below ``labeled/``. The authors' own ``cuhk-03.mat`` is a MATLAB v7.3 file, which needs h5py; it is
not read here, and the error for a folder with nothing else says so. Only file names are taken from the split file: its
paths belong to the machine that wrote it, and its person numbers mean different people in train and test.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from domains.artefact import read_json
from domains.domain import Domain, from_rows
from domains.errors import ArtefactError, DataError
from domains.formats import market1501
from domains.formats.listing import Fence, first_folder, images, some

NAME = "cuhk03"
DESCRIPTION = (
    "images_labeled/ with names like 1_001_1_01.png beside splits_new_labeled.json, or labeled/bounding_box_train/ "
    "and its siblings"
)

IMAGES, SPLIT_FILE, RAW, MARKET_FORM = (
    "images_labeled",
    "splits_new_labeled.json",
    ("cuhk03_release/cuhk-03.mat", "cuhk-03.mat"),
    "labeled",
)
PATTERN = re.compile(r"([1-5])_([0-9]{1,4})_([12])_([0-9]{1,2})\.[A-Za-z]+", re.ASCII)


def recognise(root: Path) -> bool:
    """Whether one of the two forms, or the raw file that can't be read, is there."""
    return first_folder(root, IMAGES) is not None or market1501.base_of(root, (MARKET_FORM,)) is not None or _raw(root)


def read(root: Path, name: str) -> Domain:
    """Read the domain.

    Raises:
        DataError: only the raw ``.mat`` file is there, or the split file is missing, malformed, or a link that leads
            out of the folder.
    """
    notes: list[str] = []
    if first_folder(root, IMAGES) is None:
        if market1501.base_of(root, (MARKET_FORM,)) is not None:
            return from_rows(name, root, NAME, market1501.rows_below(root, MARKET_FORM, notes), notes=notes)
        raise DataError(
            f"{root} holds CUHK03 only as the raw cuhk-03.mat, which is not read here; extract it to {IMAGES}/ and "
            f"{SPLIT_FILE}, as torchreid does"
        )
    Fence(root).check(SPLIT_FILE, str(root))
    here = {path.rpartition("/")[2]: path for path in images(root, IMAGES)}
    rows: list[tuple[str, str, str | None, str]] = []
    missing: list[str] = []
    for split, entries in _split_file(root / SPLIT_FILE).items():
        names = set()
        for entry in entries:
            file = PurePosixPath(str(entry[0] if isinstance(entry, list) and entry else entry).replace("\\", "/")).name
            match = PATTERN.fullmatch(file)
            if not match or file in names:
                what = "is listed twice" if match else "is not named like 1_001_1_01.png"
                raise DataError(f"{root / SPLIT_FILE}, {split}: {file[:80]!r} {what}")
            names.add(file)
            if file in here:
                rows.append((split, here[file], f"{match[1]}_{int(match[2]):03d}", f"{match[1]}_{match[3]}"))
            else:
                missing.append(file)
    if missing:
        notes.append(f"{len(missing)} images of {SPLIT_FILE} are not in {IMAGES}/: {some(missing)}")
    return from_rows(name, root, NAME, rows, notes=notes)


def _raw(root: Path) -> bool:
    return any((root / file).is_file() for file in RAW)


def _split_file(path: Path) -> dict[str, list[object]]:
    try:
        values = read_json(path)
    except ArtefactError as error:
        raise DataError(
            f"CUHK03 needs its 767/700 split: {error}; torchreid writes it when it extracts the images"
        ) from error
    first = values[0] if isinstance(values, list) and values else values
    if not isinstance(first, dict) or not all(
        isinstance(first.get(split), list) for split in ("train", "query", "gallery")
    ):
        raise DataError(f"{path} must hold one split with the lists train, query and gallery")
    return {split: first[split] for split in ("train", "query", "gallery")}
