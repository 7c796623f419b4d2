"""Every layout as a tiny drawn copy of itself, and the rows that it must give."""

import json

import cv2
import numpy as np

from domains.formats.drawn import drawn_split


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
    draw(
        root,
        "bounding_box_train/0005_c2_f0046985.jpg",
        "query/0006_c1_f0000001.jpg",
        "bounding_box_test/0006_c8_f0000002.jpg",
    )
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
        "list_gallery.txt": (
            test,
            ["0000/0000_004_05_0303morning_0008_0.jpg 0", "0009/0009_005_15_0303morning_0008_0.jpg 9"],
        ),
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
    names = {
        "train": ["1_001_1_01.png", "1_001_2_06.png"],
        "query": ["2_001_1_01.png"],
        "gallery": ["2_001_2_06.png", "5_012_2_10.png"],
    }
    draw(root, *(f"images_labeled/{name}" for split in names.values() for name in split))
    split = {
        name: [[f"/somebody/else/cuhk03/images_labeled/{file}", 0, 0] for file in files]
        for name, files in names.items()
    }
    (root / "splits_new_labeled.json").write_text(json.dumps([split | {"num_train_pids": 1}]))
    return {
        ("train", "images_labeled/1_001_1_01.png"): ("1_001", "1_1"),
        ("train", "images_labeled/1_001_2_06.png"): ("1_001", "1_2"),
        ("query", "images_labeled/2_001_1_01.png"): ("2_001", "2_1"),
        ("gallery", "images_labeled/2_001_2_06.png"): ("2_001", "2_2"),
        ("gallery", "images_labeled/5_012_2_10.png"): ("5_012", "5_2"),
    }


def cuhk03_np(root):
    draw(
        root,
        "labeled/bounding_box_train/0003_c1_21.png",
        "labeled/query/0006_c1_50.png",
        "labeled/bounding_box_test/0006_c2_55.png",
    )
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
    return {("train", path): ("2", "0") for path in train} | {
        ("query", test[0]): ("5", "2"),
        ("gallery", test[1]): ("5", "1"),
    }


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
    return expected | {
        ("query", names[test, 1]): (str(test), "0"),
        **{("gallery", names[test, n]): (str(test), "1") for n in (2, 3)},
    }


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
    names = {
        key: f"{base}{key[0]}_{key[1]}_FRAME_{key[2]}_RGB.bmp"
        for key in ((train, "7", 1), (test, "10", 1), (test, "9", 3), (test, "9", 4))
    }
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
    draw(
        root,
        "SenseReID/test_probe/00001_0.jpg",
        "SenseReID/test_gallery/00001_1.jpg",
        "SenseReID/test_gallery/00700_1.jpg",
    )
    return {
        ("query", "SenseReID/test_probe/00001_0.jpg"): ("1", "0"),
        ("gallery", "SenseReID/test_gallery/00001_1.jpg"): ("1", "1"),
        ("gallery", "SenseReID/test_gallery/00700_1.jpg"): ("700", "1"),
    }


def cuhk01(root):
    (train, *_), (test, *_) = some_of("cuhk01", "train"), some_of("cuhk01", "test")
    draw(root, *(f"campus/{p:04d}{n:03d}.png" for p in (train, test) for n in range(1, 5)))
    expected = {("train", f"campus/{train:04d}{n:03d}.png"): (str(train), "01"[n > 2]) for n in range(1, 5)}
    return expected | {
        (("query", "gallery")[n > 2], f"campus/{test:04d}{n:03d}.png"): (str(test), "01"[n > 2]) for n in range(1, 5)
    }


def cuhk02(root):
    draw(
        root,
        *(
            f"Dataset/{pair}/cam{camera}/001_{camera}.png"
            for pair in ("P1", "P2", "P3", "P4", "P5")
            for camera in (1, 2)
        ),
    )
    expected = {
        ("train", f"Dataset/{p}/cam{c}/001_{c}.png"): (f"{p}-001", f"{p}-cam{c}")
        for p in ("P1", "P2", "P3", "P4")
        for c in (1, 2)
    }
    return expected | {
        (("query", "gallery")[c - 1], f"Dataset/P5/cam{c}/001_{c}.png"): ("P5-001", f"P5-cam{c}") for c in (1, 2)
    }


def given_folders(root):
    draw(
        root,
        "train/anna/a_c1_1.jpg",
        "train/bo/b_c2_1.PNG",
        "query/cy/x_c1.ppm",
        "gallery/cy/y_c2.jpeg",
        "val/dee/z_c1.jpg",
    )
    return {
        ("train", "train/anna/a_c1_1.jpg"): ("anna", "1"),
        ("train", "train/bo/b_c2_1.PNG"): ("bo", "2"),
        ("query", "query/cy/x_c1.ppm"): ("cy", "1"),
        ("gallery", "gallery/cy/y_c2.jpeg"): ("cy", "2"),
    }


def table(root, text=None):
    draw(root, "a/1.png", "a/2.png", "b.png", "c.png")
    (root / "domain.csv").write_text(
        text
        or "split,path,camid,pid\n"
        "train,a/1.png,gate,anna\nquery,./b.png,1,7\ngallery,c.png,2,7\ntrain,a/2.png,gate,-1\n"
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
