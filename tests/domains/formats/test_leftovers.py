"""What lies in a folder and is not read is counted, whatever the layout."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from layouts import CASES, draw, rows

from domains.check import check_domain
from domains.crops import SUFFIXES, CropSpec, decode_crop
from domains.errors import DataError
from domains.formats import left_out, leftovers, open_domain
from domains.formats.leftovers import survey

LAYOUT_CASES = pytest.mark.parametrize(("layout", "make"), CASES, ids=[make.__name__ for _, make in CASES])


def counts(items):
    return {item.reason: (item.count, item.example) for item in items}


def strew(root, outside):
    """One of everything that is never read, in a folder of its own."""
    outside.mkdir()
    draw(outside, "secret.png", "deep/secret.png")
    extra = root / "zz extra"
    draw(extra, "lost.png", "deep/er/lost.jpg", ".hidden.png", ".git/x.png")
    (extra / "clip.gif").write_bytes(b"GIF89a")
    (extra / "noname").write_bytes(b"?")
    os.mkfifo(extra / "pipe.png")
    (extra / "folder.png").mkdir()
    (extra / "broken.png").symlink_to("nowhere.png")
    (extra / "out.png").symlink_to(outside / "secret.png")
    (extra / "out").symlink_to(outside / "deep")
    (extra / "round").symlink_to("deep")
    Path(os.fsdecode(bytes(extra) + b"/\xff.png")).write_bytes(b"x")


@LAYOUT_CASES
def test_whatever_lies_beside_is_counted_in_every_layout(tmp_path, layout, make):
    root = tmp_path / "site"
    root.mkdir()
    expected = make(root)
    before = counts(left_out(open_domain(root)))
    strew(root, tmp_path / "outside")
    domain = open_domain(root)
    assert (domain.format, rows(domain)) == (layout, expected)
    found = counts(left_out(domain))
    unread = next(reason for reason in found if reason.startswith("images that"))
    added = {reason: count - before.get(reason, (0,))[0] for reason, (count, _) in found.items()}
    assert {reason: added[reason] for reason in added if added[reason]} == {
        leftovers.HIDDEN: 2,
        leftovers.OTHER: 1,
        leftovers.FORMAT.format(suffix=".gif"): 1,
        leftovers.NO_FILE: 2,
        leftovers.NO_TEXT: 1,
        leftovers.BROKEN: 1,
        leftovers.OUTSIDE: 2,
        leftovers.LINKED: 1,
        unread: 2,
    }
    assert all(example.isprintable() and not example.startswith("/") for _, example in found.values())
    report = check_domain(domain, crop=CropSpec(8, 4))
    assert counts(report.left_out) == found
    assert f"left out: {found[leftovers.HIDDEN][0]} {leftovers.HIDDEN}, such as " in "\n".join(report.lines())
    values = json.loads(json.dumps(report.to_dict()))["left_out"]
    assert all(item.keys() == {"reason", "count", "example"} for item in values)
    assert {item["reason"] for item in values} == set(found)


def test_a_clean_domain_leaves_nothing_out(tmp_path):
    draw(tmp_path, "train/anna/1_c1.jpg", "query/bo/1_c1.jpg", "gallery/bo/1_c2.jpg")
    assert left_out(open_domain(tmp_path)) == ()
    (tmp_path / "domain.csv").write_text("path,pid,camid,split\ntrain/anna/1_c1.jpg,a,1,train\n")
    (item,) = left_out(open_domain(tmp_path))
    assert str(item) == "2 images that domain.csv does not list, such as gallery/bo/1_c2.jpg"


@pytest.mark.parametrize("suffix", sorted(SUFFIXES | {suffix.upper() for suffix in SUFFIXES}))
def test_what_the_decoder_takes_is_listed(tmp_path, suffix):
    draw(tmp_path, "train/anna/1.png", "train/bo/1.png")
    (tmp_path / "train" / "bo" / f"2{suffix}").write_bytes(b"x")
    assert f"train/bo/2{suffix}" in open_domain(tmp_path).train.paths


@pytest.mark.parametrize("kind", [".png", ".jpg", ".bmp", ".webp", ".ppm", ".pgm"])
def test_every_kind_that_is_decoded_has_a_suffix(kind):
    grey = kind == ".pgm"
    pixels = np.full((8, 4) if grey else (8, 4, 3), 7, np.uint8)
    assert kind in SUFFIXES
    assert decode_crop(cv2.imencode(kind, pixels)[1].tobytes()).shape == (8, 4, 3)


def test_a_link_to_a_folder_that_is_read_is_not_left_out(tmp_path):
    draw(tmp_path, "train/anna/1.png", "store/bo/1.png")
    (tmp_path / "train" / "bo").symlink_to("../store/bo")
    domain = open_domain(tmp_path)
    assert domain.train.paths == ("train/anna/1.png", "train/bo/1.png")
    assert left_out(domain) == ()


LINKS = {
    "a person": (["store/bo/1_c1.png"], {"train/bo": "../store/bo"}),
    "a person in deeper folders": (["store/of/bo/1_c1.png"], {"train/bo": "../store/of/bo"}),
    "a split": (["store/bo/1_c1.png"], {"query": "store"}),
    "a link to a link": (["store/bo/1_c1.png"], {"again": "store", "train/bo": "../again/bo"}),
    "an image": (["store/1_c1.png"], {"train/anna/2_c2.png": "../../store/1_c1.png"}),
    "an image that is used as it is": (["train/bo/1_c1.png"], {"train/anna/2_c2.png": "../bo/1_c1.png"}),
}


@pytest.mark.parametrize("case", LINKS)
@pytest.mark.parametrize("alias", [False, True])
def test_what_is_read_through_a_link_is_not_left_out(tmp_path, case, alias):
    files, links = LINKS[case]
    root = tmp_path / "site"
    draw(root, "train/anna/1_c1.png", "train/cy/1_c2.png", *files)
    for link, target in links.items():
        (root / link).symlink_to(target)
    if alias:
        (tmp_path / "alias").symlink_to(root)
        root = tmp_path / "alias"
    domain = open_domain(root)
    assert sum(len(split) for _, split in domain.splits()) == 3 + (case == "an image that is used as it is")
    assert [item for item in left_out(domain) if item.reason.startswith("images")] == []
    draw(root, "store/lost.png", "store/bo/deep/lost.png")
    assert sum(item.count for item in left_out(domain) if item.reason.startswith("images")) == 2


def test_pictures_in_other_formats_are_counted_by_suffix(tmp_path):
    draw(tmp_path, "train/anna/1.png", "train/bo/1.png")
    for name in (
        "2.heic",
        "3.HEIC",
        "4.tiff",
        "5.tif",
        "6.avif",
        "7.gif",
        "a.json",
        "b.txt",
        "c.xml",
        "noname",
        ".h.gif",
    ):
        (tmp_path / "train" / "anna" / name).touch()
    assert counts(left_out(open_domain(tmp_path))) == {
        **{
            leftovers.FORMAT.format(suffix=suffix): (count, f"train/anna/{example}")
            for suffix, count, example in (
                (".heic", 2, "2.heic"),
                (".tiff", 1, "4.tiff"),
                (".tif", 1, "5.tif"),
                (".avif", 1, "6.avif"),
                (".gif", 1, "7.gif"),
            )
        },
        leftovers.OTHER: (4, "train/anna/a.json"),
        leftovers.HIDDEN: (1, "train/anna/.h.gif"),
    }
    assert not leftovers.PICTURES & SUFFIXES


def test_links_in_a_circle_end(tmp_path):
    draw(tmp_path, "a/1.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    found = survey(tmp_path)
    assert found.images == ("a/1.png",)
    assert sum(item.count for item in found.left_out) == 2
    draw(tmp_path, "b/1.png")
    (tmp_path / "c").symlink_to("c")
    domain = open_domain(tmp_path)
    assert {path for _, split in domain.splits() for path in split.paths} == {"a/1.png", "b/1.png"}
    assert sum(item.count for item in left_out(domain)) == 3


def test_a_folder_that_cant_be_read_is_counted(tmp_path, monkeypatch):
    draw(tmp_path, "train/anna/1.png", "other/1.png")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "other":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    domain = open_domain(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    assert counts(left_out(domain)) == {leftovers.CLOSED: (1, "other")}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["train/anna/x.gif", "train/anna/y.tiff"],
            r"left out: 1 pictures in a format that is not read \(\.gif\), such as .*x\.gif, 1 .*\(\.tiff\), such",
        ),
        (["x.heic"], r"neither folders nor images; left out: 1 pictures in a .*heic\), such as x\.heic"),
        ([".x.png"], r"left out: 1 hidden"),
        (["bounding_box_train/x.png"], r"read as market1501: .*1 images left out because .*: x\.png"),
        (["bounding_box_train/x.gif"], r"read as market1501: .*left out: 1 pictures .* such as bounding"),
        (["P1/cam1/x.png", "P1/cam2/y.png"], r"read as cuhk02: .*1 images left out because .*: x\.png.*: y\.png"),
        (["scen1/view1/7/x.gif"], r"read as lpw: .*left out: 1 pictures"),
        (["test_probe/x.png", "test_gallery/y.png"], r"read as sensereid: .*: x\.png"),
    ],
)
def test_an_error_in_place_of_a_note_keeps_the_reason(tmp_path, files, message):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(DataError, match=message) as caught:
        open_domain(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_a_large_folder_that_is_no_domain_is_not_searched_to_its_end(tmp_path, monkeypatch):
    for number in range(30):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "x.txt").touch()
    monkeypatch.setattr("domains.formats.LOOK", 35)
    with pytest.raises(DataError, match=r"not a camera domain.*left out: [1-9] files"):
        open_domain(tmp_path)
