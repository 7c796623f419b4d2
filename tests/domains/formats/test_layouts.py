"""Each layout on a tiny drawn copy of itself, and folders that are no domain."""

import os
import random
import shutil

import numpy as np
import pytest
from layouts import CASES, caviar, cuhk03, draw, market, msmt, msmt_v2, rows, table

import domains
from domains.errors import DataError, UsageError
from domains.formats import LAYOUTS, open_domain


@pytest.mark.parametrize(("layout", "make"), CASES, ids=[make.__name__ for _, make in CASES])
def test_layout(tmp_path, layout, make):
    root = tmp_path / "site"
    root.mkdir()
    expected = make(root)
    domain = domains.open(root)
    assert (domain.name, domain.format) == ("site", layout)
    assert rows(domain) == expected
    assert rows(domains.open(root, layout=layout, name="other")) == expected
    assert all((root / path).is_file() for _, path in rows(domain))


def test_every_layout_is_tested():
    assert {layout for layout, _ in CASES} == set(LAYOUTS)
    assert next(iter(LAYOUTS)) == "csv"
    assert list(LAYOUTS)[-1] == "folders"
    assert all("\n" not in layout.DESCRIPTION for layout in LAYOUTS.values())


@pytest.mark.parametrize(("layout", "make"), CASES, ids=[make.__name__ for _, make in CASES])
def test_only_its_own_layout_recognises_a_folder(tmp_path, layout, make):
    make(tmp_path)
    others = {name for name, other in LAYOUTS.items() if other.recognise(tmp_path)} - {layout}
    assert others <= {"folders"}  # the general one comes last


def test_domain_csv_wins_over_a_named_layout(tmp_path):
    market(tmp_path)
    (tmp_path / "domain.csv").write_text("path,pid,camid,split\nquery/0001_c1s1_001051_00.jpg,x,y,train\n")
    assert rows(open_domain(tmp_path)) == {("train", "query/0001_c1s1_001051_00.jpg"): ("x", "y")}
    assert open_domain(tmp_path, layout="market1501").format == "market1501"


def test_labels_and_order_do_not_depend_on_the_file_system(tmp_path, monkeypatch):
    market(tmp_path)
    before = open_domain(tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, folder):
            self.entries = list(scandir(folder))[::-1]
            random.Random(1).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(os, "scandir", Backwards)
    after = open_domain(tmp_path)
    assert after.identities == before.identities
    assert [split.paths for _, split in after.splits()] == [split.paths for _, split in before.splits()]
    assert all(np.array_equal(a.pids, b.pids) for (_, a), (_, b) in zip(after.splits(), before.splits(), strict=True))


def test_what_is_left_out_is_noted(tmp_path):
    market(tmp_path)
    assert any("notes.png" in note and "1 images left out" in note for note in open_domain(tmp_path).notes)
    shutil.rmtree(tmp_path / "query")
    domain = open_domain(tmp_path)
    assert len(domain.query) == 0
    assert any("no query/" in note for note in domain.notes)


def test_mac_resource_forks_are_no_images(tmp_path):
    expected = market(tmp_path)
    (tmp_path / "query" / "._0001_c1s1_001051_00.jpg").write_bytes(b"mac")
    assert rows(open_domain(tmp_path)) == expected


def test_cuhk03_missing_images_are_noted_and_junk_split_files_refused(tmp_path):
    expected = cuhk03(tmp_path)
    (tmp_path / "images_labeled" / "5_012_2_10.png").unlink()
    domain = open_domain(tmp_path)
    assert len(rows(domain)) == len(expected) - 1
    assert any("5_012_2_10.png" in note for note in domain.notes)
    for text in (
        "[]",
        "{",
        '[{"train": []}]',
        '[{"train": [["../../x.png", 0, 0]], "query": [], "gallery": []}]',
        "[" * 100_000,
    ):
        (tmp_path / "splits_new_labeled.json").write_text(text)
        with pytest.raises(DataError):
            open_domain(tmp_path)


def test_cuhk03_raw_file_says_what_to_do(tmp_path):
    (tmp_path / "cuhk03_release").mkdir()
    (tmp_path / "cuhk03_release" / "cuhk-03.mat").write_bytes(b"\x89HDF")
    with pytest.raises(DataError, match=r"only as the raw cuhk-03\.mat.*images_labeled"):
        open_domain(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../../etc/0000_000_01_x.jpg 0", "line 1: expected"),
        ("/etc/0000_000_01_x.jpg 0", "line 1: expected"),
        ("0000/0000_000_01_x.jpg", "line 1: expected"),
        ("0000/0000_000_01_x.jpg -1", "line 1: expected"),
        ("0000/nocamera.jpg 0", "line 1: expected"),
        ("a\x07/0_0_1_x.jpg 0", "line 1: expected"),
        ("\n0/0_0_1_x.jpg 0\n0/0_0_1_x.jpg 0", "line 3: 0/0_0_1_x.jpg is listed twice"),
    ],
)
def test_msmt_lists_are_checked(tmp_path, line, message):
    msmt(tmp_path)
    (tmp_path / "list_query.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        open_domain(tmp_path)


LISTED = [(msmt, file) for file in ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")]
LISTED += [(cuhk03, "splits_new_labeled.json"), (table, "domain.csv")]


@pytest.mark.parametrize(("make", "file"), LISTED)
def test_a_list_that_leads_out_of_the_folder_is_not_read(tmp_path, make, file):
    root, outside = tmp_path / "site", tmp_path / "outside"
    root.mkdir()
    make(root)
    (root / file).rename(outside)
    (root / file).symlink_to(outside)
    with pytest.raises(DataError, match=f"{root}: {file} leads out of the domain's folder through a link") as caught:
        open_domain(root)
    assert outside.read_text().splitlines()[0] not in str(caught.value)
    outside.rename(root / "kept")
    (root / file).unlink()
    (root / file).symlink_to("kept")
    assert len(open_domain(root).train)


@pytest.mark.parametrize(("make", "folder"), [(msmt_v2, "MSMT17_V2"), (market, "query"), (cuhk03, "images_labeled")])
def test_a_folder_that_leads_out_is_not_read(tmp_path, make, folder):
    root = tmp_path / "site"
    root.mkdir()
    make(root)
    (root / folder).rename(tmp_path / "outside")
    (root / folder).symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="leads out of the domain's folder"):
        open_domain(root)


def test_msmt_missing_folder_and_list(tmp_path):
    msmt(tmp_path)
    (tmp_path / "list_val.txt").unlink()
    with pytest.raises(DataError, match=r"list_val\.txt"):
        open_domain(tmp_path)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "list_val.txt").write_text("")
    with pytest.raises(DataError, match="neither test nor mask_test_v2"):
        open_domain(tmp_path)


def test_folders_that_are_no_domain(tmp_path):
    with pytest.raises(DataError, match="found neither folders nor images; known layouts: csv, market1501"):
        open_domain(tmp_path)
    draw(tmp_path, "holiday.jpg")
    with pytest.raises(DataError, match=r"found 1 images such as holiday\.jpg"):
        open_domain(tmp_path)
    draw(tmp_path, "cam_a/x.jpg", "cam_b/y.jpg")
    with pytest.raises(DataError, match="not a camera domain"):
        open_domain(tmp_path)
    with pytest.raises(DataError, match=r"holiday\.jpg is not a folder; give the folder"):
        open_domain(tmp_path / "holiday.jpg")
    with pytest.raises(DataError, match="does not exist"):
        open_domain(tmp_path / "nowhere")


def test_a_folder_of_domains_names_them(tmp_path):
    caviar(tmp_path / "caviar")
    table(tmp_path / "mine")
    with pytest.raises(DataError, match=r"open one of them: caviar/, mine/"):
        open_domain(tmp_path)


def test_errors_are_one_line(tmp_path):
    for call in (
        lambda: open_domain(tmp_path),
        lambda: open_domain(tmp_path, layout="viper"),
        lambda: open_domain(tmp_path / "x"),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_wrong_use(tmp_path):
    with pytest.raises(UsageError, match=r"unknown layout 'markt1501' \(did you mean 'market1501'\?\)"):
        open_domain(tmp_path, layout="markt1501")
    with pytest.raises(UsageError, match="same_camera"):
        open_domain(tmp_path, same_camera="maybe")
    caviar(tmp_path)
    with pytest.raises(DataError, match="not in the layout viper"):
        open_domain(tmp_path, layout="viper")


def test_the_name_of_the_current_folder(tmp_path, monkeypatch):
    table(tmp_path / "gate")
    monkeypatch.chdir(tmp_path / "gate")
    assert open_domain(".").name == "gate"


@pytest.mark.parametrize("name", ["market.zip", "MSMT17.TAR", "site.tar.gz", "a.7z"])
def test_an_archive_is_to_be_unpacked(tmp_path, monkeypatch, name):
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        with pytest.raises(DataError, match=rf"{name} is an archive, not a folder; unpack it and give the folder"):
            open_domain(path)


def test_a_folder_is_named_in_full(tmp_path, monkeypatch):
    table(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"domain.csv is not a folder; give the folder it is in, {tmp_path}$"):
        open_domain("domain.csv")
    for word in ("coco", "val", "imagenet"):
        with pytest.raises(UsageError, match=f"unknown layout '{word}'; known layouts"):
            open_domain(".", layout=word)


@pytest.mark.parametrize(
    ("files", "one"),
    [
        (["anna/0001_c1.jpg", "anna/0002_c2.jpg"], True),
        (["anna/0001.jpg"], True),
        (["anna/0001.jpg", "empty/"], False),
        (["anna/0001.jpg", "0002.jpg"], False),
        (["0001.jpg", "0002.jpg"], False),
        (["anna/north/0001.jpg"], False),
        (["cam1/0001.jpg"], False),
        (["empty/"], False),
    ],
)
def test_a_folder_of_one_person_is_told_from_one_that_is_no_domain(tmp_path, files, one):
    for file in files:
        if file.endswith("/"):
            (tmp_path / file).mkdir()
        else:
            draw(tmp_path, file)
    with pytest.raises(DataError) as caught:
        open_domain(tmp_path)
    assert ("anna/, would be one person, and a domain needs at least two" in str(caught.value)) == one
    assert "per person" in str(caught.value)


def test_a_list_may_have_a_byte_order_mark_and_any_line_ends(tmp_path):
    expected = msmt(tmp_path)
    for file in tmp_path.glob("list_*.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert rows(open_domain(tmp_path)) == expected
