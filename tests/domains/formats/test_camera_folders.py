"""A folder per person: which folders can't be people, which names tell a camera, and what one camera means."""

import random
import uuid

import pytest
from layouts import draw, rows

from domains.errors import DataError
from domains.formats import open_domain
from domains.formats.named_cameras import camera_of

SPLITS = ("train", "query", "gallery")


@pytest.mark.parametrize(
    "names",
    [
        ["cam1", "cam2"],
        ["c1", "c2", "c3"],
        ["C01"],
        ["Camera 1", "camera-02"],
        ["CAMERA_A", "CAMERA_B"],
        ["camA", "camB"],
        ["view1", "view2"],
        ["cctv3", "ch04", "channel 7"],
        ["ipcam1", "webcam2"],
        ["entrance_cam", "yard cam 2"],
        ["cam-entrance", "camera yard"],
        ["cam1", "cam2", "other"],
        ["scene1", "seq_2"],
    ],
)
@pytest.mark.parametrize("splits", [SPLITS, ("train",), ("query", "gallery"), ("gallery",), None])
def test_camera_folders_are_no_people_wherever_they_are(tmp_path, names, splits):
    if splits is None:
        draw(tmp_path, *(f"{name}/{n}.jpg" for name in names for n in (1, 2)))
    else:
        draw(tmp_path, *(f"{split}/{name}/{n}.jpg" for split in splits for name in names for n in (1, 2)))
    where = "it" if splits is None else f"{splits[0]}/"
    for layout in (None, "folders"):
        with pytest.raises(DataError, match=f"the folders in {where} are named like cameras .*one folder per person"):
            open_domain(tmp_path, layout=layout)


def test_cameras_in_one_split_only_are_found(tmp_path):
    draw(tmp_path, "train/anna/1.jpg", "train/bo/1.jpg", "query/cy/1.jpg", "gallery/cam1/1.jpg")
    with pytest.raises(
        DataError, match=r"the folders in gallery/ are named like cameras or splits, not people \(cam1\)"
    ):
        open_domain(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["anna", "ben"],
        ["1", "2"],
        ["0001", "0002"],
        ["p1", "p2"],
        ["camila", "cameron"],
        ["valya"],
        ["chloe", "charlie"],
        ["sequoia", "victoria"],
        ["id_1", "person 2"],
    ],
)
def test_people_are_people(tmp_path, names):
    draw(tmp_path, *(f"{split}/{name}/{n}.jpg" for split in SPLITS for name in names for n in (1, 2)))
    assert set(open_domain(tmp_path).identities) == set(names)


def test_people_named_like_cameras_are_people_if_a_folder_holds_crops_of_two_cameras(tmp_path):
    draw(tmp_path, *(f"train/c{person:03d}/{n}_c{n}.jpg" for person in range(4) for n in (1, 2)))
    domain = open_domain(tmp_path)
    assert domain.identities == ("c000", "c001", "c002", "c003")
    assert not any("named like cameras" in note for note in domain.notes)


def test_few_camera_folders_among_people_are_noted(tmp_path):
    draw(tmp_path, *(f"train/{name}/1.jpg" for name in ("anna", "ben", "cam1")))
    assert any("named like cameras or splits and count as people: cam1" in note for note in open_domain(tmp_path).notes)


def test_folders_that_may_be_cameras_by_what_they_hold_are_noted(tmp_path):
    draw(tmp_path / "own", *(f"train/{name}/{n}_c{c}.jpg" for c, name in enumerate(("gate", "yard")) for n in (1, 2)))
    assert any("each of the 2 folders has its own camera" in note for note in open_domain(tmp_path / "own").notes)
    draw(tmp_path / "same", *(f"{split}/{name}/1.jpg" for split in SPLITS for name in ("gate", "yard")))
    assert any(
        "every folder in train/ is in query/ or gallery/ too (gate, yard)" in note
        for note in open_domain(tmp_path / "same").notes
    )


MARKET = [f"{person:04d}_c{camera}s1_00{n}.jpg" for person in (1, 2, 3) for camera in (1, 2) for n in (0, 1)]


@pytest.mark.parametrize(
    "names",
    [
        SPLITS,
        ("train", "test"),
        ("Train", "Val", "TEST"),
        ("training", "testing", "validation"),
        ("gallery", "probe"),
        ("query", "gallery"),
        ("train1", "train2"),
        ("train", "cam1"),
        ("train", "query", "gallery", "other", "more", "docs", "rest"),
        ("test", "val", "anna", "ben", "cleo"),
    ],
)
@pytest.mark.parametrize("files", [MARKET, ["0_c1.jpg", "0_c2.jpg"], ["1.jpg", "2.jpg"]], ids=["market", "c", "plain"])
def test_splits_of_loose_images_are_no_people_whatever_cameras_they_hold(tmp_path, names, files):
    draw(tmp_path, *(f"{name}/{file}" for name in names for file in files))
    for layout in (None, "folders"):
        with pytest.raises(
            DataError, match=r"named like (cameras or )?splits, not people .*make one folder per person"
        ):
            open_domain(tmp_path, layout=layout)


def test_a_person_may_be_called_like_one_split(tmp_path):
    draw(tmp_path, *(f"{name}/{n}_c{n}.jpg" for name in ("anna", "ben", "val") for n in (1, 2)))
    assert open_domain(tmp_path).identities == ("anna", "ben", "val")


def test_loose_images_beside_people_of_a_split_are_noted(tmp_path):
    draw(tmp_path, "train/anna/0_c1.jpg", "train/ben/0_c2.jpg", "query/0_c1.jpg", "query/1_c1.jpg", "train/x.jpg")
    notes = open_domain(tmp_path).notes
    assert any("2 images lie directly in query/ and are not read, such as query/0_c1.jpg" in note for note in notes)
    assert any("1 images lie directly in train/" in note for note in notes)


@pytest.mark.parametrize(
    "files",
    [
        [f"c{n:04d}.jpg" for n in range(5)],
        [f"c{n}.jpg" for n in range(5)],
        [f"crop_c{n:05d}.jpg" for n in range(3)],
        [f"crop_c{n}.jpg" for n in range(40)],
        [f"cam_{n:06d}.jpg" for n in range(4)],
    ],
    ids=lambda files: files[-1],
)
@pytest.mark.parametrize("names", [("cam1", "cam2"), ("entrance_cam", "c2", "view3")])
def test_running_numbers_make_no_people_of_cameras(tmp_path, names, files):
    draw(tmp_path, *(f"{name}/{file}" for name in names for file in files))
    with pytest.raises(DataError, match="named like cameras or splits, not people"):
        open_domain(tmp_path)


# ------------------------------------------------------------------------------------------------ cameras in names


def names(kind, count):
    draw_ = random.Random(f"{kind} {count}")
    whole = [str(uuid.UUID(int=draw_.getrandbits(128), version=4)) for _ in range(count)]
    return {
        "uuid": whole,
        "uuid_": [name.replace("-", "_") for name in whole],
        "UPPER": [name.upper() for name in whole],
        "hash": [name.replace("-", "") for name in whole],
        "cut": [name[:13] for name in whole],
        "prefix": [f"crop-{name}-0" for name in whole],
        "git": [f"x-{name[:7]}" for name in whole],
    }[kind]


@pytest.mark.parametrize("kind", ["uuid", "uuid_", "UPPER", "hash", "cut", "prefix", "git"])
def test_random_names_tell_no_camera(tmp_path, kind):
    everyone = names(kind, 400)
    draw(tmp_path, *(f"p{number % 20}/{name}.jpg" for number, name in enumerate(everyone)))
    domain = open_domain(tmp_path)
    assert (domain.cameras, domain.same_camera) == (("0",), "keep")
    assert len(domain.query)


@pytest.mark.parametrize("kind", ["uuid", "uuid_", "hash", "prefix"])
def test_a_camera_beside_a_random_name_is_read(tmp_path, kind):
    for number, name in enumerate(names(kind, 100)):
        assert camera_of(f"{name}_c7.jpg") == camera_of(f"cam7_{name}.jpg") == "7", number


@pytest.mark.parametrize(
    ("told", "untold", "cameras"),
    [
        (0, 10, ("0",)),
        (1, 9, ("0",)),
        (4, 6, ("0",)),
        (5, 5, ("1", "2", "unknown")),
        (9, 1, ("1", "2", "unknown")),
        (10, 0, ("1", "2")),
    ],
)
def test_a_minority_does_not_decide_for_all(tmp_path, told, untold, cameras):
    draw(
        tmp_path, *(f"train/p/{n}_c{n % 2 + 1}.jpg" for n in range(told)), *(f"train/q/{n}.jpg" for n in range(untold))
    )
    domain = open_domain(tmp_path)
    assert domain.cameras == cameras
    assert domain.same_camera == ("keep" if cameras == ("0",) else "drop")
    assert any(f"only {told} of 10 file names" in note for note in domain.notes) == (0 < told < 5)


PEOPLE = ("anna", "ben", "cleo", "dora", "emil", "fritz")
RUNNING = {
    "c0000 in each folder": [f"{person}/c{n:04d}.jpg" for person in PEOPLE for n in range(4)],
    "c000 in each folder": [f"{person}/c{n:03d}.jpg" for person in PEOPLE for n in range(4)],
    "cam_000000 in each folder": [f"{person}/cam_{n:06d}.jpg" for person in PEOPLE for n in range(4)],
    "a word before": [f"{person}/crop_c{n:04d}.jpg" for person in PEOPLE for n in range(3)],
    "not filled up, in each folder": [f"{person}/c{n}.jpg" for person in PEOPLE for n in range(20)],
    "not filled up, in all": [f"{person}/c{4 * p + n}.jpg" for p, person in enumerate(PEOPLE) for n in range(4)],
    "one each": [f"p{n}/c{n}.jpg" for n in range(12)],
    "with a time": [f"{person}/10300{n}_c{n}.jpg" for person in PEOPLE for n in range(30)],
    "with a person": [f"{p:04d}/{p:04d}_cam{n:05d}.jpg" for p in range(6) for n in range(7)],
    "folders of different length": [f"{person}/c{n}.jpg" for p, person in enumerate(PEOPLE) for n in range(3 * p + 1)],
    "in splits": [f"{split}/{person}/c{n:04d}.jpg" for split in SPLITS for person in PEOPLE for n in range(3)],
}
CAMERAS = {
    "one crop for each of two": [f"{person}/0_c{n}.jpg" for person in PEOPLE for n in (1, 2)],
    "one crop for each of six": [f"{person}/0_c{n}.jpg" for person in PEOPLE for n in range(1, 7)],
    "nothing but the camera": [f"{person}/c{n}.jpg" for person in PEOPLE for n in range(1, 5)],
    "two digits": [f"{person}/c{n:02d}.jpg" for person in PEOPLE for n in range(1, 7)],
    "three digits": [f"{person}/0_cam{n:03d}.jpg" for person in PEOPLE for n in range(1, 5)],
    "twelve, with a time": [f"{person}/10300{n}_c{n}.jpg" for person in PEOPLE for n in range(12)],
    "four digits that come again": [f"{person}/{n}_c{n % 2:04d}.jpg" for person in PEOPLE for n in range(4)],
    "Market-1501's names": [
        f"{p:04d}/{p:04d}_c{c}s1_00{n}.jpg" for p in range(6) for c in range(1, 7) for n in range(2)
    ],
    "some of many": [f"{person}/0_c{(p + 3 * n) % 15}.jpg" for p, person in enumerate(PEOPLE) for n in range(4)],
    "one person of many crops": [f"anna/{n}_c{n % 3}.jpg" for n in range(40)] + ["ben/0_c1.jpg"],
}


@pytest.mark.parametrize("case", RUNNING)
def test_running_numbers_are_no_cameras(tmp_path, case):
    draw(tmp_path, *RUNNING[case])
    domain = open_domain(tmp_path)
    assert (domain.cameras, domain.same_camera) == (("0",), "keep")
    assert any("hardly any of them twice in a folder" in note and "taken for chance" in note for note in domain.notes)


@pytest.mark.parametrize("case", CAMERAS)
def test_numbers_that_come_again_are_cameras(tmp_path, case):
    draw(tmp_path, *CAMERAS[case])
    domain = open_domain(tmp_path)
    assert set(domain.cameras) == {camera_of(path) for path in CAMERAS[case]}
    assert not any("taken for chance" in note for note in domain.notes)


@pytest.mark.parametrize(
    ("name", "camera"),
    [
        ("0002_c1s1_000451_03.jpg", "1"),
        ("0005_c2_f0046985.jpg", "2"),
        ("x_c2f0046985.jpg", "2"),
        ("c3t0001f001.jpg", "3"),
        ("c41d.jpg", None),
        ("c4ca4238a0b923820dcc509a6f75849b.jpg", None),
        ("a-c12ab.jpg", None),
        ("ipcam04.jpg", "4"),
        ("camera.jpg", None),
    ],
)
def test_a_camera_is_a_word_of_its_own(name, camera):
    assert camera_of(name) == camera


# --------------------------------------------------------------------------------------------------------- one camera


def plain(name):
    """Rows without the camera and with the camera taken out of the path."""
    return {
        (split, path.replace("_c1", "").replace("_cam1", ""), person) for (split, path), (person, _) in name.items()
    }


@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("mark", ["_c1", "_cam1"])
@pytest.mark.parametrize(
    "rule",
    [lambda *_: True, lambda person, _: person % 2, lambda person, number: person == number == 0],
    ids=["all", "half", "one"],
)
def test_the_same_pictures_are_scored_alike_whether_or_not_names_tell_their_one_camera(tmp_path, splits, mark, rule):
    """All names tell it, half of them, or a single one."""

    def at(root, marked):
        for person in range(12):
            for number in range(3):
                split = ("train", "query", "gallery")[0 if person < 6 else 1 + (number > 0)] if splits else ""
                name = f"{number}{mark if marked(person, number) else ''}.jpg"
                draw(root, f"{split}/p{person}/{name}" if splits else f"p{person}/{name}")
        return open_domain(root)

    without, told = at(tmp_path / "without", lambda *_: False), at(tmp_path / "told", rule)
    assert without.same_camera == told.same_camera == "keep"
    assert plain(rows(without)) == plain(rows(told))


def test_people_of_one_camera_each_are_still_asked_for(tmp_path):
    draw(tmp_path, *(f"p{person}/{number}_c{person % 2}.jpg" for person in range(12) for number in range(3)))
    domain = open_domain(tmp_path)
    assert domain.same_camera == "keep"
    assert len(domain.query)
    assert any("nobody was seen by two cameras" in note for note in domain.notes)


# -------------------------------------------------------------------------------------------------------- few people


@pytest.mark.parametrize("people", [4, 5, 8, 12, 30])
@pytest.mark.parametrize("mark", ["", "_c{camera}"])
def test_few_people_are_divided_so_that_there_is_something_to_learn_and_to_ask(tmp_path, people, mark):
    for seed in range(12):
        root, named = tmp_path / str(seed), random.Random(seed)
        draw(
            root,
            *(
                f"{named.randrange(10**9)}/{number}{mark.format(camera=number % 2)}.jpg"
                for _ in range(people)
                for number in [0]
            ),
        )
        for folder in list(root.iterdir()):
            draw(root, *(f"{folder.name}/{number}{mark.format(camera=number % 2)}.jpg" for number in (1, 2)))
        domain = open_domain(root)
        trained = set(domain.train.pids.tolist())
        assert len(trained) >= 2
        assert len(domain.query) >= min(2, people - 2)
        assert len(trained) >= min(4, people // 4)
        assert not trained & set(domain.query.pids.tolist())


def test_who_has_one_crop_is_neither_all_that_trains_nor_asked_for(tmp_path):
    for seed in range(12):
        named = random.Random(seed)
        several, once = ([f"{named.randrange(10**9)}" for _ in range(4)] for _ in range(2))
        draw(tmp_path / str(seed), *(f"{person}/{n}.jpg" for person in several for n in (1, 2)))
        draw(tmp_path / str(seed), *(f"{person}/1.jpg" for person in once))
        domain = open_domain(tmp_path / str(seed))
        trained = [domain.identities[pid] for pid in domain.train.pids]
        assert sum(trained.count(person) > 1 for person in set(trained)) == 2
        assert len(domain.query) == 2


@pytest.mark.parametrize("people", [1, 2, 3])
def test_two_people_train_before_anybody_is_asked_for(tmp_path, people):
    draw(tmp_path, *(f"p{person}/{n}.jpg" for person in range(people) for n in (1, 2)))
    if people == 1:
        with pytest.raises(DataError, match="not a camera domain"):
            open_domain(tmp_path)
        return
    domain = open_domain(tmp_path)
    assert len(set(domain.train.pids.tolist())) == 2
    assert len(domain.query) == people - 2
