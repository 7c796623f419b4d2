"""Labeled Pedestrian in the Wild (LPW): three scenes with three or four cameras each.

Song et al., "Region-based Quality Estimation Network for Large-scale Person Re-identification", AAAI 2018: scenes 2 and
3 (1,975 people) train, scene 1 (756) tests. ``scen1/view2/12/0034.jpg`` is person 12 of scene 1; the same number in
another view of the scene is the same person, in another scene somebody else. Everybody in scene 1 was seen in view 2,
so a person's first crop there is the query and the crops of the other views are the gallery. What lifelong re-ID papers
call LPW_s2 is scene 2 repackaged in Market-1501's layout, and opens as such.
"""

from __future__ import annotations

import re
from pathlib import Path

from domains.domain import Domain, from_rows
from domains.formats.listing import first_folder, folders, images, join

NAME = "lpw"
DESCRIPTION = "scen1/ to scen3/, each with view1/, view2/ …, each with one folder of crops per person"

BASES = ("", "pep_256x128")
SCENES = {"scen1": "test", "scen2": "train", "scen3": "train"}
VIEW = re.compile(r"view[0-9]{1,2}", re.ASCII)
QUERY_VIEW = "view2"


def recognise(root: Path) -> bool:
    """Whether a scene with a view is there."""
    return _base(root) is not None


def read(root: Path, name: str) -> Domain:
    """Read the domain; raises DataError if a folder can't be listed."""
    base = _base(root) or ""
    notes: list[str] = []
    rows: list[tuple[str, str, str | None, str]] = []
    for scene, side in SCENES.items():
        where = join(base, scene)
        if first_folder(root, where) is None:
            notes.append(f"there is no {where}/, whose people are the {side} identities")
            continue
        for view in (view for view in folders(root, where) if VIEW.fullmatch(view)):
            for person in folders(root, f"{where}/{view}"):
                crops = images(root, f"{where}/{view}/{person}")
                if side == "test":
                    split, crops = ("query", crops[:1]) if view == QUERY_VIEW else ("gallery", crops)
                else:
                    split = "train"
                rows += [(split, path, f"{scene}-{person}", f"{scene}-{view}") for path in crops]
    notes.append(f"query is each person's first crop in scen1/{QUERY_VIEW}, gallery the other views of scen1")
    return from_rows(name, root, NAME, rows, notes=notes)


def _base(root: Path) -> str | None:
    scenes = ((base, root / base / scene) for base in BASES for scene in SCENES)
    return next((base for base, scene in scenes if any((scene / f"view{view}").is_dir() for view in range(1, 5))), None)
