"""Labels: -1 however it is written, two spellings of one person, and labels that mean nobody."""

import json
import unicodedata

import pytest
from layouts import draw, rows

from domains.check import check_domain
from domains.crops import CropSpec
from domains.formats import open_domain
from domains.formats.labels import alike, doubtful, doubtful_camera, is_junk

JUNK = [
    "-1",
    " -1",
    "-1 ",
    "-01",
    "-0001",
    "-1.0",
    "-1.",
    "-01.00",
    "- 1",
    "\u22121",
    "\u20131",
    "\uff0d1",
    "\ufe631",
    "-\uff11",
    "-1.000000000000000000e+00",
    "-1e0",
    "-1,0",
    "-1,00",
    "-1,",
    "\u22121,0",
    "-01,000000",
    "-1,00E+00",
]
NO_JUNK = [
    "1",
    "01",
    "-10",
    "-2",
    "-1a",
    "a-1",
    "-1.5",
    "--1",
    "-",
    "",
    "1-1",
    "-1-1",
    "-11",
    "-1e1",
    "-1,5",
    "-1,000",
    "'-1",
    "(1)",
]


@pytest.mark.parametrize("label", JUNK)
def test_minus_one_is_junk_however_it_is_written(tmp_path, label):
    assert is_junk(label)
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "domain.csv").write_text(f"path;pid;camid;split\na.png;{label};1;gallery\nb.png;7;1;gallery\n")
    assert rows(open_domain(tmp_path)) == {("gallery", "a.png"): (None, "1"), ("gallery", "b.png"): ("7", "1")}


@pytest.mark.parametrize("label", NO_JUNK)
def test_nothing_else_is_junk(label):
    assert not is_junk(label)


@pytest.mark.parametrize("label", ["-1", "-01", "-1.0", "\u22121"])
def test_a_folder_named_minus_one_is_junk(tmp_path, label):
    draw(tmp_path / "split", f"gallery/{label}/a_c1.jpg", "query/bo/a_c1.jpg", "gallery/bo/a_c2.jpg")
    domain = open_domain(tmp_path / "split")
    assert domain.identities == ("bo",)
    assert rows(domain)["gallery", f"gallery/{label}/a_c1.jpg"] == (None, "1")
    draw(tmp_path / "plain", f"{label}/a_c1.jpg", *(f"p{p}/{c}_c{c}.jpg" for p in range(6) for c in (1, 2)))
    plain = open_domain(tmp_path / "plain")
    assert rows(plain)["gallery", f"{label}/a_c1.jpg"] == (None, "1")
    assert len(plain.identities) == 6


@pytest.mark.parametrize("label", ["-1", "-01", "\u22121"])
def test_a_market_name_with_minus_one_is_junk(tmp_path, label):
    name = f"bounding_box_test/{label}_c3s2_000151_02.jpg"
    draw(tmp_path, "query/0001_c1s1_001051_00.jpg", "bounding_box_test/0001_c2s1_000301_00.jpg", name)
    assert rows(open_domain(tmp_path))["gallery", name] == (None, "3")


def test_background_that_would_be_learned_is_noted(tmp_path):
    draw(tmp_path, "bounding_box_train/0000_c1s1_0_0.jpg", "bounding_box_train/0001_c1s1_0_0.jpg")
    assert any("1 crops of the train split are of identity 0" in note for note in open_domain(tmp_path).notes)


ALIKE = [
    ("0010", "10"),
    ("10", "10.0"),
    ("10", "10,0"),
    ("10,00", "10.0"),
    ("p01", "p1"),
    ("person_0010", "person_10"),
    ("anna", "Anna"),
    ("STRASSE", "straße"),
    ("anna ", "anna"),
    ("anna  b", "anna b"),
    ("anna_b", "anna-b"),
    (unicodedata.normalize("NFC", "José"), unicodedata.normalize("NFD", "José")),
    ("ﬁona", "fiona"),
    ("１０", "10"),
    ("-2", "\u22122"),
]


@pytest.mark.parametrize("pair", ALIKE, ids=map(ascii, ALIKE))
def test_one_person_under_two_labels_is_said(tmp_path, pair):
    assert alike(["x", *pair, "y"]) == (pair,)
    folders = tmp_path / "folders"
    draw(folders, *(f"train/{label}/{n}_c{n}.jpg" for label in pair for n in (1, 2)), "train/other/1_c1.jpg")
    domain = open_domain(folders)
    if len(domain.identities) == 2:
        pytest.skip("this file system keeps one of the two names")
    report = check_domain(domain, crop=CropSpec(8, 4))
    assert [(item.of, set(item.labels)) for item in report.alike] == [("identities", set(pair))]
    (line,) = [line for line in report.lines() if " and " in line and line.startswith("  ")]
    first, _, second = line.strip().partition(" and ")
    assert first != second
    assert unicodedata.normalize("NFKC", first) != unicodedata.normalize("NFKC", second), "the two must look different"
    assert json.loads(json.dumps(report.to_dict()))["alike"][0]["of"] == "identities"


@pytest.mark.parametrize(
    "pair",
    [
        ("1", "2"),
        ("10", "100"),
        ("1.05", "1.5"),
        ("1", "1,5"),
        ("1", "1,000"),
        ("anna", "anne"),
        ("1", "-1"),
        ("a1b", "a11b"),
        ("0", "00a"),
    ],
)
def test_two_people_are_two(pair):
    assert alike(pair) == ()


def test_cameras_under_two_labels_are_said_too(tmp_path):
    draw(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "domain.csv").write_text(
        "path,pid,camid,split\na.png,1,Gate,train\nb.png,1,gate,train\nc.png,2,1.0,query\n"
    )
    report = check_domain(open_domain(tmp_path), crop=CropSpec(8, 4))
    assert [(item.of, item.labels) for item in report.alike] == [("cameras", ("Gate", "gate"))]
    assert report.doubtful == ()
    assert "1 groups of labels that are nearly the same count as different cameras" in "\n".join(report.lines())


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("-2", "only -1 marks junk"),
        ("\u22123", "only -1 marks junk"),
        ("0000", "background"),
        ("nan", "missing"),
        ("None", "missing"),
        ("N/A", "missing"),
        ("Unknown", "missing"),
        ("distractors", "missing"),
        ("no id", "missing"),
        ("<NA>", "missing"),
        ("#N/A", "missing"),
        ("#NV", "missing"),
        ("NaT", "missing"),
        ("inf", "missing"),
        ("-inf", "missing"),
        ("-", "missing"),
        ("\u2013", "missing"),
        ("'-1", "a negative number as a spreadsheet shows it"),
        ("(1)", "a negative number as a spreadsheet shows it"),
        ("(1,00)", "a negative number as a spreadsheet shows it"),
        ("-2,0", "only -1 marks junk"),
        ("-1,000", "only -1 marks junk"),
        ("1E+05", "rounded"),
        ("1,23E+12", "rounded"),
        ("1.00e+05", "rounded"),
        ("5e10", None),
        ("(anna)", None),
        ("anna-1", None),
        ("'anna'", None),
        ("infanta", None),
        ("0", None),
        ("0001", None),
        ("anna", None),
        ("nanette", None),
    ],
)
def test_labels_that_mean_nobody_are_said(tmp_path, label, reason):
    assert (reason in doubtful(label)) if reason else not doubtful(label)
    draw(tmp_path, "a.png")
    (tmp_path / "domain.csv").write_text(f"path;pid;camid;split\na.png;{label};1;gallery\n")
    report = check_domain(open_domain(tmp_path), crop=CropSpec(8, 4))
    assert bool(report.doubtful) == bool(reason)
    assert any(repr(label) in line for line in report.lines()) == bool(reason)


CAMERAS = ["nan", "None", "-1", "-1.0", "-1,0", "<NA>", "#N/A", "unknown", "-", "inf", "'-1", "(1)", "1E+05"]


@pytest.mark.parametrize("label", CAMERAS)
def test_cameras_that_mean_none_are_said(tmp_path, label):
    assert doubtful_camera(label)
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / "domain.csv").write_text(f"path;pid;camid;split\na.png;7;{label};gallery\nb.png;7;2;query\n")
    report = check_domain(open_domain(tmp_path), crop=CropSpec(8, 4))
    assert [(item.of, item.label) for item in report.doubtful] == [("cameras", label)]
    lines = report.lines()
    assert "1 labels count as a camera though they may mean none, or several:" in lines
    assert any(line.startswith(f"  {label!r}: it reads like a ") for line in lines)
    assert json.loads(json.dumps(report.to_dict()))["doubtful"][0]["of"] == "cameras"


@pytest.mark.parametrize("label", ["0", "1", "0000", "door", "cam-1", "c1", "192.168.1.64", "nanterre", "5e10"])
def test_cameras_are_cameras(label):
    assert not doubtful_camera(label)
