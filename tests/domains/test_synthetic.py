"""Drawn people and cameras: seeded, readable back, alike where they should be and different where they should."""

import csv
import hashlib
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

import domains
from domains.crops import CropSpec, read_crop
from domains.errors import DataError
from domains.scoring import Labels, score_domain
from domains.synthetic import STYLES, draw_camera, draw_crop, draw_person, golden_crops, make_domain
from domains.synthetic.body import render
from domains.synthetic.camera import style_of
from domains.synthetic.person import draw_pose


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def crop_of(person, camera, shot, style="plaza"):
    lens = draw_camera(style, np.random.default_rng((1, camera)))
    return draw_crop(
        draw_person(np.random.default_rng((2, person))), lens, np.random.default_rng((3, person, camera, shot))
    )


def painted(person, **pose):
    """The person alone, [256, 128, 3], standing; black where there is nobody."""
    still = replace(draw_pose(np.random.default_rng(0)), yaw=0.0, stride=0.0, lean=0.0, arms="swing", tilt=0.0)
    return render(person, replace(still, **pose), 256, 128, (64.0, 250.0), 240.0)


def somebody(**change):
    plain = {
        "pattern": "plain",
        "jacket": None,
        "scarf": None,
        "bag": "none",
        "hairstyle": "short",
        "bottom_kind": "trousers",
        "stature": 1.0,
    }
    return replace(draw_person(np.random.default_rng(3)), **(plain | change))


def share_of(colours, cover, wanted):
    """Share of the person's pixels whose colour points the way ``wanted`` does, however they are lit."""
    wanted = np.array(wanted) / np.linalg.norm(wanted)
    body = colours[cover > 0.9]
    return (body @ wanted > 0.98 * np.linalg.norm(body, axis=1)).mean()


# -- seeds


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_domain(tmp_path / name, "snow", identities=6, cameras=2, per_camera=1, seed=4)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    make_domain(tmp_path / "c", "snow", identities=6, cameras=2, per_camera=1, seed=5)
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_one_crop_is_drawn_alone_as_it_was_among_others():
    """Neither what was drawn before nor a cached backdrop may show in a crop."""
    alone = crop_of(5, 1, 0)
    for person in range(3):
        crop_of(person, person % 2, 1)
    assert np.array_equal(alone, crop_of(5, 1, 0))


def test_a_larger_domain_begins_with_the_crops_of_a_smaller(tmp_path):
    """Each crop has a seed of its own, so more people or shots change none of the others."""
    small = make_domain(tmp_path / "small", "park", identities=4, cameras=1, per_camera=1)
    make_domain(tmp_path / "large", "park", identities=6, cameras=1, per_camera=2)
    for path in small.train.paths + small.query.paths:
        assert (small.root / path).read_bytes() == (tmp_path / "large" / path).read_bytes()


# -- people


def test_a_person_has_front_and_back():
    """A logo is seen from the front only, a print from behind only, a backpack mostly from behind."""
    red, white = (200.0, 10.0, 10.0), (150.0, 150.0, 150.0)
    base = {
        "top": white,
        "top_second": red,
        "bottom": white,
        "shoes": white,
        "skin": white,
        "hair": white,
        "scale": 1.2,
    }
    for pattern, seen, hidden in (("logo", 0.0, math.pi), ("back print", math.pi, 0.0)):
        person = somebody(pattern=pattern, **base)
        assert share_of(*painted(person, yaw=seen), red) > 0.01
        assert share_of(*painted(person, yaw=hidden), red) == 0
    person = somebody(bag="backpack", bag_colour=red, **base)
    assert share_of(*painted(person, yaw=math.pi), red) > 2 * share_of(*painted(person, yaw=0.0), red) > 0


def test_a_profile_is_narrower_than_a_front():
    width = [(painted(somebody(), yaw=yaw)[1][70:120] > 0.5).sum(1).mean() for yaw in (0.0, math.pi / 2)]
    assert width[1] < 0.8 * width[0]


def test_walking_opens_the_legs_in_profile():
    stance = [
        (painted(somebody(), yaw=math.pi / 2, stride=stride, phase=math.pi / 2)[1][200:245] > 0.5).any(0).sum()
        for stride in (0.0, 1.0)
    ]
    assert stance[1] > 1.5 * stance[0]


@pytest.mark.parametrize("seed", range(12))
def test_everybody_stands_on_the_ground_at_their_height(seed):
    person = replace(
        draw_person(np.random.default_rng(seed), season=("summer", "mild", "winter")[seed % 3]), stature=1.0
    )
    colours, cover = painted(person, yaw=0.5 * seed, stride=1.0, phase=0.5 * seed)
    rows = np.flatnonzero((cover > 0.5).any(1))
    assert rows[0] == pytest.approx(10, abs=14)
    assert rows[-1] == pytest.approx(250, abs=8)
    assert cover.min() >= 0
    assert cover.max() <= 1 + 1e-6
    assert np.isfinite(colours).all()
    assert not colours[cover == 0].any()


def test_seasons_dress_people():
    crowd = {
        season: [draw_person(np.random.default_rng((9, n)), season=season) for n in range(80)]
        for season in ("summer", "winter")
    }
    coats = {season: np.mean([person.jacket is not None for person in people]) for season, people in crowd.items()}
    assert coats["winter"] > 0.6 > 0.2 > coats["summer"]
    assert not any(person.scarf or person.hairstyle in ("hood", "beanie") for person in crowd["summer"])


def test_one_person_looks_more_like_themself_than_like_others():
    """Mean clothes colour, one camera: shots of one person lie closer together than different people do."""
    colours = np.array(
        [[crop_of(person, 0, shot)[40:110, 22:42].mean((0, 1)) for shot in range(6)] for person in range(12)]
    )
    within = np.linalg.norm(colours - colours.mean(1, keepdims=True), axis=2).mean()
    between = np.linalg.norm(colours.mean(1)[:, None] - colours.mean(1)[None], axis=2)[np.triu_indices(12, 1)].mean()
    assert within < 0.6 * between


# -- crops and cameras


@pytest.mark.parametrize(("height", "width"), [(128, 64), (256, 128), (64, 32), (77, 41), (32, 16), (40, 300)])
@pytest.mark.parametrize("style", ["carpark", "snow"])
def test_a_crop_is_uint8_rgb_of_the_asked_size(style, height, width):
    rng = np.random.default_rng(0)
    crop = draw_crop(draw_person(rng), draw_camera(style, rng), rng, height=height, width=width)
    assert crop.shape == (height, width, 3)
    assert crop.dtype == np.uint8
    assert crop.std() > 8


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_drawn_at_the_smallest_size(style):
    for number in range(8):
        rng = np.random.default_rng(number)
        draw_crop(draw_person(rng), draw_camera(style, rng), rng, height=32, width=16)


def test_styles_differ_in_brightness_or_colour():
    means = np.array(
        [
            np.mean([crop_of(person, camera, 0, style).mean((0, 1)) for person in range(4) for camera in range(2)], 0)
            for style in STYLES
        ]
    )
    apart = np.linalg.norm(means[:, None] - means[None], axis=2)[np.triu_indices(len(STYLES), 1)]
    assert apart.min() > 4
    assert np.median(apart) > 30


def test_cameras_of_a_style_differ():
    lenses = [draw_camera("plaza", np.random.default_rng(number)) for number in range(6)]
    assert len({lens.seed for lens in lenses}) == 6
    assert np.ptp([lens.light for lens in lenses]) > 0.02
    assert np.ptp([lens.tilt for lens in lenses]) > 0.05


# -- domains


@pytest.mark.parametrize("style", STYLES)
def test_a_domain_reads_back_as_it_was_made(tmp_path, style):
    made = make_domain(tmp_path / style, style, identities=8, cameras=2)
    read = domains.open(tmp_path / style)
    assert (read.name, read.format, read.fingerprint) == (made.name, made.format, made.fingerprint)
    assert read.identities == made.identities
    assert read.cameras == made.cameras
    for (_, ours), (_, theirs) in zip(made.splits(), read.splits(), strict=True):
        assert ours.paths == theirs.paths
        assert np.array_equal(ours.pids, theirs.pids)
        assert np.array_equal(ours.camids, theirs.camids)
        assert ours.times == theirs.times
    assert made.train.times[0].endswith("+00:00")


@pytest.mark.parametrize(("cameras", "per_camera"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_splits_are_sane(tmp_path, cameras, per_camera):
    made = make_domain(tmp_path / "park", "park", identities=12, cameras=cameras, per_camera=per_camera, size=(64, 32))
    train, query, gallery = (set(split.pids.tolist()) for _, split in made.splits())
    assert not train & (query | gallery)
    assert len(made.query) == len(query), "one query per person"
    assert len(train) == 6
    with (made.root / "domain.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == sum(len(split) for _, split in made.splits())
    assert read_crop(made.root / rows[0]["path"]).shape == (64, 32, 3)
    if cameras * per_camera > 1:
        assert query <= gallery
    for pid in query:  # asked from the first camera that saw them
        assert made.query.camids[made.query.pids == pid] <= made.gallery.camids[made.gallery.pids == pid].min(
            initial=cameras
        )


def test_some_are_seen_by_one_camera_only(tmp_path):
    made = make_domain(tmp_path / "park", "park", identities=120, cameras=2, per_camera=1, size=(32, 16))
    distractors = set(made.gallery.pids.tolist()) - set(made.query.pids.tolist())
    assert len(distractors) == 6
    seen = [len(set(made.train.camids[made.train.pids == pid].tolist())) for pid in set(made.train.pids.tolist())]
    assert 0 < seen.count(1) < 0.3 * len(seen)


@pytest.mark.parametrize("style", STYLES)
def test_colour_alone_neither_fails_nor_solves_a_domain(style, tmp_path):
    """A histogram of hue, saturation and value in six stripes of the middle columns, where the person stands: there is
    something to learn.
    """
    scores = []
    for seed in (1, 2):
        site = make_domain(tmp_path / f"{style}{seed}", style, identities=60, cameras=3, per_camera=1, seed=seed)
        found = score_domain(
            _stripes(site, site.query),
            _stripes(site, site.gallery),
            Labels.from_split(site.query),
            Labels.from_split(site.gallery),
        )
        scores.append(found.mAP)
    assert 10 < np.mean(scores) < 60


def _stripes(site, split):
    spec, rows = CropSpec(96, 48), []
    for path in site.files(split):
        tones = cv2.cvtColor(spec.read(path), cv2.COLOR_RGB2HSV)[:, 14:34]
        stripes = [np.ascontiguousarray(stripe) for stripe in np.split(tones, 6)]
        counts = [
            cv2.calcHist([stripe], [0, 1, 2], None, [8, 4, 4], [0, 180, 0, 256, 0, 256]).ravel() for stripe in stripes
        ]
        rows.append(np.sqrt(np.concatenate(counts)))
    return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


def test_golden_crops_are_fixed_and_different():
    first, again = golden_crops(16, height=64, width=32), golden_crops(4, height=64, width=32)
    assert first.shape == (16, 64, 32, 3)
    assert np.array_equal(first[:4], again)
    assert len({row.tobytes() for row in first}) == 16
    assert golden_crops(2, height=20, width=10).shape == (2, 20, 10, 3)


# -- wrong use


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"style": "plazza"}, "did you mean 'plaza'"),
        ({"style": None}, "unknown style None"),
        ({"identities": 3}, "identities must be a whole number of at least 4"),
        ({"identities": True}, "identities"),
        ({"cameras": 0}, "cameras"),
        ({"per_camera": 1.5}, "per_camera"),
        ({"seed": -1}, "seed"),
        ({"train_fraction": 1.0}, "between 0 and 1"),
        ({"train_fraction": math.nan}, "between 0 and 1"),
        ({"train_fraction": "half"}, "between 0 and 1"),
        ({"size": (8, 64)}, "32×16"),
        ({"size": (128, 2000)}, "32×16"),
        ({"size": (64.5, 64)}, "32×16"),
    ],
)
def test_wrong_arguments_are_one_clear_line_and_leave_nothing(tmp_path, change, said):
    arguments = {"style": "plaza", "identities": 4, "cameras": 1, "per_camera": 1} | change
    with pytest.raises(DataError, match=said) as caught:
        make_domain(tmp_path / "out", arguments.pop("style"), **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(DataError, match="not an empty folder"):
            make_domain(place, "plaza")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert len(make_domain(tmp_path / "empty", "plaza", identities=4, cameras=1, per_camera=1).train) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda rng: draw_person(rng, season="sumer"), "did you mean 'summer'"),
        (lambda rng: draw_person(rng, muted=1.5), "muted must lie between 0 and 1"),
        (lambda rng: draw_camera("snoww", rng), "did you mean 'snow'"),
        (lambda rng: golden_crops(0, height=64, width=32), "count"),
        (lambda rng: golden_crops(2, height=0, width=32), "height"),
        (lambda rng: golden_crops(2, height=64, width=32.0), "width"),
        (lambda rng: draw_crop(draw_person(rng), draw_camera("snow", rng), rng, width=8), "32×16"),
    ],
)
def test_wrong_drawings_are_refused(wrong, said):
    assert style_of("snow")
    with pytest.raises(DataError, match=said):
        wrong(np.random.default_rng(0))
