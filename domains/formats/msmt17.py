"""MSMT17, both releases: V1, and V2 with masked faces.

Wei et al., "Person Transfer GAN to Bridge Domain Gap for Person Re-Identification", CVPR 2018. Each list file has lines
such as ``0000/0000_000_01_0303morning_0008_0.jpg 0``: a path below the train or test folder, and the person; the third
number in the name is the camera. Training uses list_train and list_val together, 32,621 crops, as published results do.
People of the train and test folders are numbered independently, so person 0 of one is not person 0 of the other.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from domains.domain import Domain, from_rows
from domains.errors import DataError
from domains.formats.listing import Fence, first_folder, join

NAME = "msmt17"
DESCRIPTION = (
    "list_train.txt, list_val.txt, list_query.txt and list_gallery.txt beside train/ and test/ (or mask_train_v2/ and "
    "mask_test_v2/)"
)

BASES = ("", "MSMT17_V2", "MSMT17_V1", "MSMT17")
LISTS = (
    ("list_train.txt", "train", 0),
    ("list_val.txt", "train", 0),
    ("list_query.txt", "query", 1),
    ("list_gallery.txt", "gallery", 1),
)
FOLDERS = (("train", "mask_train_v2"), ("test", "mask_test_v2"))
LINE = re.compile(r"(\S+) ([0-9]{1,9})", re.ASCII)
NAME_PATTERN = re.compile(r"[0-9]+_[0-9]+_([0-9]{1,4})_.+", re.ASCII)
MAX_LIST = 64 * 2**20


def recognise(root: Path) -> bool:
    """Whether the train and query lists are there."""
    return _base(root) is not None


def read(root: Path, name: str) -> Domain:
    """Read the lists.

    Raises:
        DataError: a list or folder is missing or too large, or a line is not ``path person``, leads out of its folder
            or appears twice; the message names it.
    """
    base = _base(root) or ""
    bodies = [first_folder(root, *(join(base, choice) for choice in choices)) for choices in FOLDERS]
    rows: list[tuple[str, str, str | None, str]] = []
    seen: set[tuple[str, str]] = set()
    fence = Fence(root)
    for file, split, half in LISTS:
        fence.check(join(base, file), str(root))
        folder, kind = bodies[half], FOLDERS[half][0]
        if folder is None:
            raise DataError(
                f"{root / base}: neither {' nor '.join(FOLDERS[half])} is there; unpack the images beside the list "
                "files"
            )
        for number, line in enumerate(_lines(root / base / file), 1):
            if not line.strip():
                continue
            match = LINE.fullmatch(line.strip())
            path = PurePosixPath(match[1]) if match else None
            camera = NAME_PATTERN.fullmatch(path.name) if path else None
            if (
                match is None
                or path is None
                or camera is None
                or path.is_absolute()
                or ".." in path.parts
                or not line.strip().isprintable()
            ):
                wanted = "0000/0000_000_01_0303morning_0008_0.jpg 0"
                raise DataError(
                    f"{root / base / file}, line {number}: expected a path and a person, such as {wanted!r}, got "
                    f"{line[:80]!r}"
                )
            row = (split, f"{folder}/{path}", f"{kind}-{int(match[2]):04d}", str(int(camera[1])))
            fence.check(row[1], f"{root / base / file}, line {number}")
            if row[:2] in seen:
                raise DataError(
                    f"{root / base / file}, line {number}: {path} is listed twice in {split}; remove one line"
                )
            seen.add(row[:2])
            rows.append(row)
    return from_rows(
        name, root, NAME, rows, notes=["train is list_train.txt and list_val.txt together, as published results use it"]
    )


def _base(root: Path) -> str | None:
    return next(
        (
            base
            for base in BASES
            if all((root / base / file).is_file() for file in ("list_train.txt", "list_query.txt"))
        ),
        None,
    )


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_LIST:
            raise DataError(f"{path} is larger than {MAX_LIST // 2**20} MiB, so it is not a list of this data set")
        return path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {path}: {error}") from error
