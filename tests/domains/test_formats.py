"""Each layout on a tiny drawn copy of itself, hostile input of every kind, and the shipped splits."""

import csv
import json
import os
import random
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import domains
from domains.artefact import content_id
from domains.errors import DataError, UsageError
from domains.formats import LAYOUTS, drawn, open_domain
from domains.formats.drawn import drawn_split

DATA = os.environ.get("LIFELONG_REID_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="LIFELONG_REID_DATA is not set: it names the folder of real domains")


def draw(root, *paths):
    """A small drawn image at each path, all different."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 4, 3), sum(path.encode()) % 251, np.uint8)
        pixels[0, 0] = len(path)
        file.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def rows(domain):
    """``{(split, path): (identity or None, camera)}``."""
    return {
        (name, path): (domain.identities[pid] if pid >= 0 else None, domain.cameras[camid])
        for name, split in domain.splits()
        for path, pid, camid in zip(split.paths, split.pids, split.camids, strict=True)
    }


def some_of(name, side, count=2):
    return sorted(getattr(drawn_split(name), side))[:count]


# ------------------------------------------------------------------------------------------------------------------- layouts, one by one


def market(root):
    draw(
        root,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0007_c6s3_077500_00.JPG",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/0001_c2s1_000301_00.jpg",
        "bounding_box_test/0000_c3s1_000151_01.jpg",
        "bounding_box_test/-1_c3s2_000151_02.jpg",
        "bounding_box_test/notes.png",
    )
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"x")
    return {
        ("train", "bounding_box_train/0002_c1s1_000451_03.jpg"): ("2", "1"),
        ("train", "bounding_box_train/0007_c6s3_077500_00.JPG"): ("7", "6"),
        ("query", "query/0001_c1s1_001051_00.jpg"): ("1", "1"),
        ("gallery", "bounding_box_test/0001_c2s1_000301_00.jpg"): ("1", "2"),
        ("gallery", "bounding_box_test/0000_c3s1_000151_01.jpg"): ("0", "3"),
        ("gallery", "bounding_box_test/-1_c3s2_000151_02.jpg"): (None, "3"),
    }


def duke(root):
    draw(root, "bounding_box_train/0005_c2_f0046985.jpg", "query/0006_c1_f0000001.jpg", "bounding_box_test/0006_c8_f0000002.jpg")
    return {
        ("train", "bounding_box_train/0005_c2_f0046985.jpg"): ("5", "2"),
        ("query", "query/0006_c1_f0000001.jpg"): ("6", "1"),
        ("gallery", "bounding_box_test/0006_c8_f0000002.jpg"): ("6", "8"),
    }


def msmt(root, train="train", test="test", base="."):
    root = root / base
    lists = {
        "list_train.txt": (train, ["0000/0000_000_01_0303morning_0008_0.jpg 0"]),
        "list_val.txt": (train, ["0001/0001_002_14_0303noon_0018_1.jpg 1"]),
        "list_query.txt": (test, ["0000/0000_003_02_0303morning_0008_0.jpg 0"]),
        "list_gallery.txt": (test, ["0000/0000_004_05_0303morning_0008_0.jpg 0", "0009/0009_005_15_0303morning_0008_0.jpg 9"]),
    }
    for file, (folder, lines) in lists.items():
        draw(root, *(f"{folder}/{line.split()[0]}" for line in lines))
        (root / file).write_text("\n".join(lines) + "\n")
    at = "" if base == "." else f"{base}/"
    return {
        ("train", f"{at}{train}/0000/0000_000_01_0303morning_0008_0.jpg"): ("train-0000", "1"),
        ("train", f"{at}{train}/0001/0001_002_14_0303noon_0018_1.jpg"): ("train-0001", "14"),
        ("query", f"{at}{test}/0000/0000_003_02_0303morning_0008_0.jpg"): ("test-0000", "2"),
        ("gallery", f"{at}{test}/0000/0000_004_05_0303morning_0008_0.jpg"): ("test-0000", "5"),
        ("gallery", f"{at}{test}/0009/0009_005_15_0303morning_0008_0.jpg"): ("test-0009", "15"),
    }


def msmt_v2(root):
    return msmt(root, "mask_train_v2", "mask_test_v2", "MSMT17_V2")


def cuhk03(root):
    names = {"train": ["1_001_1_01.png", "1_001_2_06.png"], "query": ["2_001_1_01.png"], "gallery": ["2_001_2_06.png", "5_012_2_10.png"]}
    draw(root, *(f"images_labeled/{name}" for split in names.values() for name in split))
    split = {name: [[f"/somebody/else/cuhk03/images_labeled/{file}", 0, 0] for file in files] for name, files in names.items()}
    (root / "splits_new_labeled.json").write_text(json.dumps([split | {"num_train_pids": 1}]))
    return {
        ("train", "images_labeled/1_001_1_01.png"): ("1_001", "1_1"),
        ("train", "images_labeled/1_001_2_06.png"): ("1_001", "1_2"),
        ("query", "images_labeled/2_001_1_01.png"): ("2_001", "2_1"),
        ("gallery", "images_labeled/2_001_2_06.png"): ("2_001", "2_2"),
        ("gallery", "images_labeled/5_012_2_10.png"): ("5_012", "5_2"),
    }


def cuhk03_np(root):
    draw(root, "labeled/bounding_box_train/0003_c1_21.png", "labeled/query/0006_c1_50.png", "labeled/bounding_box_test/0006_c2_55.png")
    return {
        ("train", "labeled/bounding_box_train/0003_c1_21.png"): ("3", "1"),
        ("query", "labeled/query/0006_c1_50.png"): ("6", "1"),
        ("gallery", "labeled/bounding_box_test/0006_c2_55.png"): ("6", "2"),
    }


def cuhk_sysu(root):
    train = [f"cuhksysu4reid/train/00002_s{scene}_000000{scene}_0.jpg" for scene in range(1, 5)]
    few = "cuhksysu4reid/train/00003_s9_0000009_0.jpg"
    test = ["cuhksysu4reid/query/00005_s7_0000001_0.jpg", "cuhksysu4reid/gallery/00005_s8_0000001_1.jpg"]
    draw(root, *train, few, *test, "cuhksysu4reid/combine/00005_s8_0000001_1.jpg")
    return {("train", path): ("2", "0") for path in train} | {("query", test[0]): ("5", "2"), ("gallery", test[1]): ("5", "1")}


def cuhk_sysu_cropped(root):
    paths = [f"cropped_images/p11422_s16929_{number}.jpg" for number in range(1, 5)]
    draw(root, *paths)
    return {("train", path): ("11422", "0") for path in paths}


def lpw(root):
    draw(
        root,
        "scen1/view1/12/1.jpg",
        "scen1/view2/12/1.jpg",
        "scen1/view2/12/2.jpg",
        "scen1/view3/12/7.jpg",
        "scen2/view1/12/1.jpg",
        "scen3/view4/9/1.jpg",
    )
    return {
        ("gallery", "scen1/view1/12/1.jpg"): ("scen1-12", "scen1-view1"),
        ("query", "scen1/view2/12/1.jpg"): ("scen1-12", "scen1-view2"),
        ("gallery", "scen1/view3/12/7.jpg"): ("scen1-12", "scen1-view3"),
        ("train", "scen2/view1/12/1.jpg"): ("scen2-12", "scen2-view1"),
        ("train", "scen3/view4/9/1.jpg"): ("scen3-9", "scen3-view4"),
    }


def viper(root, base="", suffix="bmp"):
    (train, *_), (test, *_) = some_of("viper", "train"), some_of("viper", "test")
    at = f"{base}/" if base else ""
    names = {p: (f"{at}cam_a/{p:03d}_0.{suffix}", f"{at}cam_b/{p:03d}_90.{suffix}") for p in (train, test)}
    draw(root, *names[train], *names[test])
    return {
        ("train", names[train][0]): (str(train), "0"),
        ("train", names[train][1]): (str(train), "1"),
        ("query", names[test][0]): (str(test), "0"),
        ("gallery", names[test][1]): (str(test), "1"),
    }


def viper_nested(root):
    return viper(root, "VIPeR")


def prid(root, base="", inner=""):
    (train, *_), (test, *_) = some_of("prid2011", "train"), some_of("prid2011", "test")
    at = f"{base}/" if base else ""

    def name(camera, person):
        return f"{at}cam_{camera}/person_{person:04d}{inner}.png"

    draw(root, *(name(camera, person) for camera in "ab" for person in (train, test, 300)))
    return {
        ("train", name("a", train)): (str(train), "0"),
        ("train", name("b", train)): (str(train), "1"),
        ("query", name("a", test)): (str(test), "0"),
        ("gallery", name("b", test)): (str(test), "1"),
        ("train", name("a", 300)): ("2300", "0"),
        ("gallery", name("b", 300)): ("1300", "1"),
    }


def prid_single(root):
    draw(root, "prid_2011/multi_shot/cam_a/person_0001/0001.png", "prid_2011/multi_shot/cam_b/person_0001/0001.png")
    return prid(root, "prid_2011/single_shot")


def prid_multi(root):
    expected = prid(root, "multi_shot", "/0001")
    query = next(path for split, path in expected if split == "query")
    draw(root, query.replace("/0001.png", "/0002.png"))
    return expected


def grid(root):
    (train, *_), (test, *_) = some_of("grid", "train"), some_of("grid", "test")
    draw(
        root,
        f"underground_reid/probe/{train:04d}_1_25004_137_82_204_337.jpeg",
        f"underground_reid/gallery/{train:04d}_2_25023_116_69_79_243.jpeg",
        f"underground_reid/probe/{test:04d}_1_25004_137_82_204_337.jpeg",
        f"underground_reid/gallery/{test:04d}_5_25023_116_69_79_243.jpeg",
        "underground_reid/gallery/0000_8_25023_116_69_79_243.jpeg",
    )
    (root / "underground_reid" / "features_and_partitions.mat").write_bytes(b"MATLAB")
    return {
        ("train", f"underground_reid/probe/{train:04d}_1_25004_137_82_204_337.jpeg"): (str(train), "1"),
        ("train", f"underground_reid/gallery/{train:04d}_2_25023_116_69_79_243.jpeg"): (str(train), "2"),
        ("query", f"underground_reid/probe/{test:04d}_1_25004_137_82_204_337.jpeg"): (str(test), "1"),
        ("gallery", f"underground_reid/gallery/{test:04d}_5_25023_116_69_79_243.jpeg"): (str(test), "5"),
        ("gallery", "underground_reid/gallery/0000_8_25023_116_69_79_243.jpeg"): ("0", "8"),
    }


def ilids(root, folder="i-LIDS_Pedestrian/Persons"):
    (train, *_), (test, *_) = some_of("ilids", "train"), some_of("ilids", "test")
    names = {(p, n): f"{folder}/{p:04d}{n:03d}.jpg" for p in (train, test) for n in (1, 2, 3)}
    draw(root, *names.values())
    expected = {("train", names[train, n]): (str(train), "0") for n in (1, 2, 3)}
    return expected | {("query", names[test, 1]): (str(test), "0"), **{("gallery", names[test, n]): (str(test), "1") for n in (2, 3)}}


def ilids_short(root):
    return ilids(root, "Persons")


def caviar(root):
    (train, *_), (test, *_) = some_of("caviar4reid", "train"), some_of("caviar4reid", "test")
    draw(root, *(f"{p:04d}{n:03d}.jpg" for p in (train, test) for n in (1, 10, 11, 20)))
    expected = {("train", f"{train:04d}{n:03d}.jpg"): (str(train), "0" if n < 11 else "1") for n in (1, 10, 11, 20)}
    expected |= {("query", f"{test:04d}{n:03d}.jpg"): (str(test), "0") for n in (1, 10)}
    return expected | {("gallery", f"{test:04d}{n:03d}.jpg"): (str(test), "1") for n in (11, 20)}


def pes(root, base="RGB/"):
    (train, *_), (test, *_) = some_of("3dpes", "train"), some_of("3dpes", "test")
    names = {key: f"{base}{key[0]}_{key[1]}_FRAME_{key[2]}_RGB.bmp" for key in ((train, "7", 1), (test, "10", 1), (test, "9", 3), (test, "9", 4))}
    draw(root, *names.values())
    return {
        ("train", names[train, "7", 1]): (str(train), "7"),
        ("query", names[test, "9", 3]): (str(test), "9"),
        ("query", names[test, "9", 4]): (str(test), "9"),
        ("gallery", names[test, "10", 1]): (str(test), "10"),
    }


def pes_flat(root):
    return pes(root, "")


def sensereid(root):
    draw(root, "SenseReID/test_probe/00001_0.jpg", "SenseReID/test_gallery/00001_1.jpg", "SenseReID/test_gallery/00700_1.jpg")
    return {
        ("query", "SenseReID/test_probe/00001_0.jpg"): ("1", "0"),
        ("gallery", "SenseReID/test_gallery/00001_1.jpg"): ("1", "1"),
        ("gallery", "SenseReID/test_gallery/00700_1.jpg"): ("700", "1"),
    }


def cuhk01(root):
    (train, *_), (test, *_) = some_of("cuhk01", "train"), some_of("cuhk01", "test")
    draw(root, *(f"campus/{p:04d}{n:03d}.png" for p in (train, test) for n in range(1, 5)))
    expected = {("train", f"campus/{train:04d}{n:03d}.png"): (str(train), "01"[n > 2]) for n in range(1, 5)}
    return expected | {(("query", "gallery")[n > 2], f"campus/{test:04d}{n:03d}.png"): (str(test), "01"[n > 2]) for n in range(1, 5)}


def cuhk02(root):
    draw(root, *(f"Dataset/{pair}/cam{camera}/001_{camera}.png" for pair in ("P1", "P2", "P3", "P4", "P5") for camera in (1, 2)))
    expected = {("train", f"Dataset/{p}/cam{c}/001_{c}.png"): (f"{p}-001", f"{p}-cam{c}") for p in ("P1", "P2", "P3", "P4") for c in (1, 2)}
    return expected | {(("query", "gallery")[c - 1], f"Dataset/P5/cam{c}/001_{c}.png"): ("P5-001", f"P5-cam{c}") for c in (1, 2)}


def given_folders(root):
    draw(root, "train/anna/a_c1_1.jpg", "train/bo/b_c2_1.PNG", "query/cy/x_c1.ppm", "gallery/cy/y_c2.jpeg", "val/dee/z_c1.jpg")
    return {
        ("train", "train/anna/a_c1_1.jpg"): ("anna", "1"),
        ("train", "train/bo/b_c2_1.PNG"): ("bo", "2"),
        ("query", "query/cy/x_c1.ppm"): ("cy", "1"),
        ("gallery", "gallery/cy/y_c2.jpeg"): ("cy", "2"),
    }


def table(root, text=None):
    draw(root, "a/1.png", "a/2.png", "b.png", "c.png")
    (root / "domain.csv").write_text(
        text or "split,path,camid,pid\ntrain,a/1.png,gate,anna\nquery,./b.png,1,7\ngallery,c.png,2,7\ntrain,a/2.png,gate,-1\n"
    )
    return {
        ("train", "a/1.png"): ("anna", "gate"),
        ("train", "a/2.png"): (None, "gate"),
        ("query", "b.png"): ("7", "1"),
        ("gallery", "c.png"): ("7", "2"),
    }


CASES = [
    ("market1501", market),
    ("market1501", duke),
    ("msmt17", msmt),
    ("msmt17", msmt_v2),
    ("cuhk03", cuhk03),
    ("cuhk03", cuhk03_np),
    ("cuhk_sysu", cuhk_sysu),
    ("cuhk_sysu", cuhk_sysu_cropped),
    ("lpw", lpw),
    ("viper", viper),
    ("viper", viper_nested),
    ("prid2011", prid),
    ("prid2011", prid_single),
    ("prid2011", prid_multi),
    ("grid", grid),
    ("ilids", ilids),
    ("ilids", ilids_short),
    ("caviar4reid", caviar),
    ("3dpes", pes),
    ("3dpes", pes_flat),
    ("sensereid", sensereid),
    ("cuhk01", cuhk01),
    ("cuhk02", cuhk02),
    ("folders", given_folders),
    ("csv", table),
]


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
    for text in ("[]", "{", '[{"train": []}]', '[{"train": [["../../x.png", 0, 0]], "query": [], "gallery": []}]', "[" * 100_000):
        (tmp_path / "splits_new_labeled.json").write_text(text)
        with pytest.raises(DataError):
            open_domain(tmp_path)


def test_cuhk03_raw_file_says_what_to_do(tmp_path):
    (tmp_path / "cuhk03_release").mkdir()
    (tmp_path / "cuhk03_release" / "cuhk-03.mat").write_bytes(b"\x89HDF")
    with pytest.raises(DataError, match=r"raw cuhk-03\.mat only.*images_labeled"):
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


def test_msmt_missing_folder_and_list(tmp_path):
    msmt(tmp_path)
    (tmp_path / "list_val.txt").unlink()
    with pytest.raises(DataError, match=r"list_val\.txt"):
        open_domain(tmp_path)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "list_val.txt").write_text("")
    with pytest.raises(DataError, match="neither test nor mask_test_v2"):
        open_domain(tmp_path)


# --------------------------------------------------------------------------------------------------------------------- one folder per person


def test_people_are_divided_stably(tmp_path):
    people = [f"p{number}" for number in range(40)]
    draw(tmp_path, *(f"{person}/{n}_c{n}.jpg" for person in people for n in (1, 2, 3)))
    before = rows(open_domain(tmp_path))
    side = {identity: split == "train" for (split, _), (identity, _) in before.items()}
    assert 8 < sum(side.values()) < 32
    draw(tmp_path, *(f"q{number}/1_c1.jpg" for number in range(21)))
    after = rows(open_domain(tmp_path))
    assert before.items() <= after.items()
    queries = [identity for (split, _), (identity, _) in before.items() if split == "query"]
    assert sorted(queries) == sorted(person for person, trains in side.items() if not trains)


def test_one_camera_keeps_same_camera_matches(tmp_path):
    draw(tmp_path, *(f"p{number}/{n}.jpg" for number in range(20) for n in (1, 2)))
    domain = open_domain(tmp_path)
    assert domain.same_camera == "keep"
    assert domain.cameras == ("0",)
    assert any("no file name tells its camera" in note for note in domain.notes)
    assert len(domain.query) == len(domain.gallery) > 0
    assert open_domain(tmp_path, same_camera="drop").same_camera == "drop"


def test_a_person_of_one_camera_is_no_query_where_cameras_are_known(tmp_path):
    draw(tmp_path, *(f"p{number}/{n}_cam4.jpg" for number in range(30) for n in (1, 2)), "z/1_cam5.jpg", "z/2.jpg")
    domain = open_domain(tmp_path)
    assert domain.same_camera == "drop"
    assert {identity for (split, _), (identity, _) in rows(domain).items() if split == "query"} <= {"z"}
    assert any("1 of 62" in note for note in domain.notes)


@pytest.mark.parametrize(
    ("name", "camera"),
    [("a_c3.jpg", "3"), ("c12_b.jpg", "12"), ("x-cam07-y.jpg", "7"), ("camera_2.png", "2"), ("CAM3.jpg", "3"), ("abc3.jpg", None), ("7.jpg", None)],
)
def test_camera_from_a_file_name(tmp_path, name, camera):
    draw(tmp_path, f"train/p/{name}", "train/q/a_c99.jpg")
    found = {path: label for (_, path), (_, label) in rows(open_domain(tmp_path)).items()}
    assert found[f"train/p/{name}"] == (camera or "unknown")


# ----------------------------------------------------------------------------------------------------------------------------- no domain


def test_folders_that_are_no_domain(tmp_path):
    with pytest.raises(DataError, match="found neither folders nor images; known layouts: csv, market1501"):
        open_domain(tmp_path)
    draw(tmp_path, "holiday.jpg")
    with pytest.raises(DataError, match=r"found 1 images such as holiday\.jpg"):
        open_domain(tmp_path)
    draw(tmp_path, "cam_a/x.jpg", "cam_b/y.jpg")
    with pytest.raises(DataError, match="no camera domain"):
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
    for call in (lambda: open_domain(tmp_path), lambda: open_domain(tmp_path, layout="viper"), lambda: open_domain(tmp_path / "x")):
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


# ----------------------------------------------------------------------------------------------------------------------------- domain.csv

HEADER = "path,pid,camid,split\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER, "no row below its header"),
        ("path,person_id,camid,split\na,1,1,train\n", r"no column 'pid' \(did you mean 'person_id'\?\)"),
        ("path,pid,camera,split\na,1,1,train\n", r"no column 'camid' \(did you mean 'camera'\?\)"),
        ("path,pid,camid,split,pid\na,1,1,train,2\n", "the column 'pid' twice"),
        (HEADER + "a,1,1,train\nb,1,1,trian\n", r"line 3: unknown split 'trian' \(did you mean 'train'\?\)"),
        (HEADER + "a,1,1,Train\n", "line 2: unknown split"),
        (HEADER + "a,1,1,train\nb,1,1,train\n./a,2,1,train\n", "line 4: a is already listed in train on line 2"),
        (HEADER + "a,1,1\n", "line 2: 3 values for 4 columns"),
        (HEADER + "a,1,1,train,\n", "line 2: 5 values for 4 columns"),
        (HEADER + "a,,1,train\n", "line 2: pid must be"),
        (HEADER + "a,1, ,train\n", "line 2: camid must be"),
        (HEADER + ",1,1,train\n", "line 2: '' is no path"),
        (HEADER + "/etc/passwd,1,1,train\n", "must be relative"),
        (HEADER + "../x.jpg,1,1,train\n", "must be relative"),
        (HEADER + "a/../../x.jpg,1,1,train\n", "must be relative"),
        (HEADER + "a\\x.jpg,1,1,train\n", "must be relative"),
        (HEADER + "C:x.jpg,1,1,train\n", "must be relative"),
        (HEADER + ".,1,1,train\n", "names no file"),
        (HEADER + "a,\x1b[31m,1,train\n", r"pid must be .*\\x1b"),
        (HEADER + "a\x00b,1,1,train\n", "domain.csv"),
        (HEADER + '"a,1,1,train\n', "not a CSV file"),
        (HEADER + f"a,{'9' * 5000},1,train\n", "pid must be 1 to 200"),
        (HEADER + f"{'x/' * 600}a,1,1,train\n", "no path of at most"),
        (HEADER + f"a,{'x' * 200_000},1,train\n", "not a CSV file"),
        ("path,pid,camid,split,time\na,1,1,train,2026-01-01T08:00:00\n", "line 2: the time '2026-01-01T08:00:00' must be ISO 8601 with its zone"),
        ("path,pid,camid,split,time\na,1,1,train,yesterday\n", "must be ISO 8601"),
        ("path,pid,camid,split,time\na,1,1,train,2026-01-01T08:00:00Z\nb,1,1,train,\n", "1 of 2 rows have no time"),
    ],
)
def test_bad_tables_are_refused_by_line(tmp_path, text, message):
    (tmp_path / "domain.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        open_domain(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_table_that_is_no_text_or_too_large(tmp_path, monkeypatch):
    (tmp_path / "domain.csv").write_bytes(HEADER.encode() + b"\xff\xfe,1,1,train\n")
    with pytest.raises(DataError, match="not UTF-8"):
        open_domain(tmp_path)
    monkeypatch.setattr("domains.formats.table.MAX_BYTES", 10)
    with pytest.raises(DataError, match="larger than"):
        open_domain(tmp_path)


def test_table_with_byte_order_mark_times_extra_columns_and_blank_lines(tmp_path):
    text = (
        '﻿path,pid,camid,split,time,weather\r\n"a, b.png", 1 ,2,train,2026-03-01T08:30:00+01:00,rain\r\n\r\nc.png,01,2,train,2026-03-01T07:30:00Z,\r\n'
    )
    (tmp_path / "domain.csv").write_bytes(text.encode())
    domain = open_domain(tmp_path)
    assert rows(domain) == {("train", "a, b.png"): ("1", "2"), ("train", "c.png"): ("01", "2")}
    assert domain.train.times == ("2026-03-01T08:30:00+01:00", "2026-03-01T07:30:00Z")
    assert domain.same_camera == "drop"


def test_the_same_image_may_be_query_and_gallery(tmp_path):
    (tmp_path / "domain.csv").write_text(HEADER + "a.png,1,1,query\na.png,1,1,gallery\n")
    domain = open_domain(tmp_path, same_camera="keep")
    assert domain.same_camera == "keep"
    assert len(domain.query) == len(domain.gallery) == 1


def test_links_that_leave_the_root_are_refused(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    draw(outside, "secret.png", "0001_c1s1_0_0.jpg")
    root.mkdir()
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    for path in ("link.png", "folder/secret.png"):
        (root / "domain.csv").write_text(HEADER + f"{path},1,1,train\n")
        with pytest.raises(DataError, match=r"line 2: .* through a link"):
            open_domain(root)
    (root / "domain.csv").unlink()
    (root / "bounding_box_train").symlink_to(outside)
    with pytest.raises(DataError, match="a link that leads out"):
        open_domain(root, layout="market1501")
    (root / "bounding_box_train").unlink()
    draw(root, "bounding_box_train/0002_c1s1_0_0.jpg")
    (root / "bounding_box_train" / "0001_c1s1_0_0.jpg").symlink_to(outside / "0001_c1s1_0_0.jpg")
    with pytest.raises(DataError, match="a link that leads out"):
        open_domain(root, layout="market1501")


def test_links_within_the_root_and_to_the_root_are_fine(tmp_path):
    root = tmp_path / "root"
    draw(root, "real/1.png")
    (root / "link.png").symlink_to("real/1.png")
    (root / "domain.csv").write_text(HEADER + "link.png,1,1,train\nreal/1.png,2,1,train\n")
    (tmp_path / "alias").symlink_to(root)
    assert len(open_domain(tmp_path / "alias").train) == 2


def test_pipes_and_folders_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in ("pipe.png", "folder.png"):
        (tmp_path / "domain.csv").write_text(HEADER + f"{path},1,1,train\n")
        with pytest.raises(DataError, match="is not a file"):
            open_domain(tmp_path)
    (tmp_path / "domain.csv").unlink()
    draw(tmp_path, "train/p/1.png", "train/q/1.png")
    os.mkfifo(tmp_path / "train" / "p" / "pipe.png")
    assert len(open_domain(tmp_path).train) == 2


def test_file_names_that_are_no_text_are_refused(tmp_path):
    draw(tmp_path, "train/p/1.png", "train/q/1.png")
    Path(os.fsdecode(bytes(tmp_path / "train" / "p") + b"/\xff\xfe.png")).write_bytes(b"x")
    with pytest.raises(DataError, match="not printable UTF-8 text"):
        open_domain(tmp_path)


def test_a_missing_file_does_not_stop_opening(tmp_path):
    (tmp_path / "domain.csv").write_text(HEADER + "gone.png,1,1,train\n")
    assert open_domain(tmp_path).train.paths == ("gone.png",)


names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, blacklist_characters='/\\",:'), min_size=1, max_size=12).filter(
    lambda text: text.isprintable() and text.strip() == text and text not in (".", "..")
)
table_rows = st.lists(
    st.tuples(names, names, names, st.sampled_from(["train", "query", "gallery"])), min_size=1, max_size=20, unique_by=lambda row: (row[0], row[3])
)


@settings(max_examples=60, deadline=None)
@given(table_rows, st.randoms(use_true_random=False))
def test_any_table_reads_back_and_its_order_does_not_matter(tmp_path_factory, entries, rng):
    root = tmp_path_factory.mktemp("table")

    def read():
        with (root / "domain.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "pid", "camid", "split"])
            writer.writerows(entries)
        return open_domain(root)

    domain = read()
    assert rows(domain) == {(split, path): (None if pid == "-1" else pid, camid) for path, pid, camid, split in entries}
    rng.shuffle(entries)
    again = read()
    assert again.identities == domain.identities
    assert all(a.paths == b.paths and np.array_equal(a.pids, b.pids) for (_, a), (_, b) in zip(again.splits(), domain.splits(), strict=True))


# ----------------------------------------------------------------------------------------------------------------------------- shipped splits

DRAWN = sorted(path.stem for path in drawn.FOLDER.glob("*.json"))


DRAWS = {"viper": 316, "prid2011": 100, "ilids": 59, "caviar4reid": 25, "3dpes": 82, "grid": 125, "cuhk01": 485}


def test_the_shipped_splits_are_what_the_rule_draws():
    assert set(DRAWN) == set(DRAWS)
    rng = random.Random(20261121)
    for name, count in DRAWS.items():
        values = json.loads((drawn.FOLDER / f"{name}.json").read_text())
        drawn_half = values["test" if name == "3dpes" else "train"]
        assert drawn_half == sorted(rng.sample(sorted(values["train"] + values["test"]), count)), name
        assert drawn_split(name).train == set(values["train"]) | set(values["also_train"])


@pytest.mark.parametrize("name", DRAWN)
def test_shipped_splits_are_disjoint_and_sealed(name):
    split = drawn_split(name)
    assert split.train
    assert split.test
    assert not split.train & split.test
    assert split.seed == 20261121


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("viper", 316, 316),
        ("prid2011", 100, 100),
        ("ilids", 60, 60),
        ("caviar4reid", 47, 25),
        ("3dpes", 111, 82),
        ("grid", 125, 125),
        ("cuhk01", 485, 486),
    ],
)
def test_sizes_of_the_shipped_splits(name, train, test):
    split = drawn_split(name)
    assert (len(split.train), len(split.test)) == (train, test)


def test_a_tampered_split_is_refused(tmp_path):
    values = json.loads((drawn.FOLDER / "viper.json").read_text())
    file = tmp_path / "viper.json"
    moved = values | {"train": values["train"][1:], "test": [*values["test"], values["train"][0]]}
    for bad in (moved, values | {"seed": 1}, values | {"sha256": "0" * 64}, {**values, "sha256": None}):
        file.write_text(json.dumps(bad))
        with pytest.raises(DataError, match="was changed after it was drawn"):
            drawn_split("viper", tmp_path)
    other = {key: value for key, value in values.items() if key != "sha256"} | {"domain": "grid"}
    file.write_text(json.dumps(other | {"sha256": content_id(other)}))
    with pytest.raises(DataError, match="was changed"):
        drawn_split("viper", tmp_path)
    for text in ("[]", "{}", '{"train": 3}', "nothing"):
        file.write_text(text)
        with pytest.raises(DataError, match="reinstall"):
            drawn_split("viper", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match="reinstall"):
        drawn_split("viper", tmp_path)


def test_identities_beside_the_shipped_list_are_noted_and_left_out(tmp_path):
    expected = viper(tmp_path)
    draw(tmp_path, "cam_a/999_0.bmp", "cam_b/999_90.bmp")
    domain = open_domain(tmp_path)
    assert rows(domain) == expected
    assert any("630 of the 632 published identities are not here" in note for note in domain.notes)
    assert any("1 identities are not in the shipped split and are left out: 999" in note for note in domain.notes)


# ----------------------------------------------------------------------------------------------------------------------------- real names


@needs_data
@pytest.mark.parametrize("name", ["viper", "prid2011", "ilids", "caviar4reid", "3dpes"])
def test_real_names_in_the_named_layout_give_the_published_split(tmp_path, name):
    """The names of the real files, on drawn images and without the table, open as the layout and give the same rows as the table."""
    real = Path(DATA) / name
    if not real.is_dir():
        pytest.skip(f"{real} is not there")
    table_domain = open_domain(real)
    root = tmp_path / name
    for _, split in table_domain.splits():
        for path in split.paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
    domain = open_domain(root)
    assert domain.format == name
    assert rows(domain) == rows(table_domain)
    assert not any("left out" in note or "not here" in note for note in domain.notes)


@needs_data
def test_all_real_domains_open():
    for folder in sorted(path for path in Path(DATA).iterdir() if (path / "domain.csv").is_file()):
        domain = open_domain(folder)
        assert domain.format == "csv"
        assert len(domain.query)
        assert all((folder / path).is_file() for path in domain.query.paths)
