"""Drawn people and cameras: seeded, readable back, alike where they should be and different where they should."""

import hashlib

import numpy as np
import pytest

import domains
from domains.errors import DataError
from domains.synthetic import STYLES, draw_camera, draw_crop, draw_person, golden_crops, make_domain


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def crop_of(person, camera, shot, style="plaza"):
    lens = draw_camera(style, np.random.default_rng((1, camera)))
    return draw_crop(draw_person(np.random.default_rng((2, person))), lens, np.random.default_rng((3, person, camera, shot)))


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_domain(tmp_path / name, "snow", identities=6, cameras=2, per_camera=1, seed=4)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    make_domain(tmp_path / "c", "snow", identities=6, cameras=2, per_camera=1, seed=5)
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


@pytest.mark.parametrize("style", STYLES)
def test_a_domain_reads_back_as_it_was_made(tmp_path, style):
    made = make_domain(tmp_path / style, style, identities=8, cameras=2)
    read = domains.open(tmp_path / style)
    assert read.fingerprint == made.fingerprint
    assert read.identities == made.identities
    assert read.train.times == made.train.times
    assert made.train.times[0].endswith("+00:00")
    train, query, gallery = (set(split.pids.tolist()) for _, split in made.splits())
    assert not train & (query | gallery)
    assert query <= gallery
    assert len(made.query) == len(query), "one query per person"


def test_distractors_are_in_the_gallery_only(tmp_path):
    made = make_domain(tmp_path / "park", "park", identities=40, cameras=2, per_camera=1)
    assert set(made.gallery.pids.tolist()) - set(made.query.pids.tolist())


@pytest.mark.parametrize(("height", "width"), [(128, 64), (256, 128), (64, 32), (77, 41)])
def test_a_crop_is_uint8_rgb_of_the_asked_size(height, width):
    rng = np.random.default_rng(0)
    crop = draw_crop(draw_person(rng), draw_camera("carpark", rng), rng, height=height, width=width)
    assert crop.shape == (height, width, 3)
    assert crop.dtype == np.uint8
    assert crop.std() > 8


def test_one_person_looks_more_like_themself_than_like_others():
    """Mean clothes colour, one camera: shots of one person lie closer together than different people do."""
    colours = np.array([[crop_of(person, 0, shot)[40:110, 22:42].mean((0, 1)) for shot in range(6)] for person in range(12)])
    within = np.linalg.norm(colours - colours.mean(1, keepdims=True), axis=2).mean()
    between = np.linalg.norm(colours.mean(1)[:, None] - colours.mean(1)[None], axis=2)[np.triu_indices(12, 1)].mean()
    assert within < 0.5 * between


def test_colour_alone_does_not_solve_a_domain(tmp_path):
    """A histogram of hues in stripes finds some people across cameras and far from all: there is something to learn."""
    import cv2

    from domains.crops import CropSpec
    from domains.scoring import Labels, score_domain

    site = make_domain(tmp_path / "station", "station", identities=40, cameras=3, per_camera=1)
    spec = CropSpec(96, 48)

    def features(split):
        rows = []
        for path in site.files(split):
            tones = cv2.cvtColor(spec.read(path), cv2.COLOR_RGB2HSV)
            rows.append(np.concatenate([cv2.calcHist([stripe], [0, 1], None, [12, 4], [0, 180, 0, 256]).ravel() for stripe in np.split(tones, 6)]))
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32)

    found = score_domain(features(site.query), features(site.gallery), Labels.from_split(site.query), Labels.from_split(site.gallery))
    assert 8 < found.mAP < 75


def test_styles_differ_in_brightness_or_colour():
    means = np.array([np.mean([crop_of(person, camera, 0, style).mean((0, 1)) for person in range(4) for camera in range(2)], 0) for style in STYLES])
    apart = np.linalg.norm(means[:, None] - means[None], axis=2)[np.triu_indices(len(STYLES), 1)]
    assert apart.min() > 4
    assert np.median(apart) > 30


def test_golden_crops_are_fixed_and_different():
    first, again = golden_crops(16, height=64, width=32), golden_crops(4, height=64, width=32)
    assert first.shape == (16, 64, 32, 3)
    assert np.array_equal(first[:4], again)
    assert len({row.tobytes() for row in first}) == 16
    assert golden_crops(2, height=20, width=10).shape == (2, 20, 10, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"style": "plazza"}, "did you mean 'plaza'"),
        ({"identities": 3}, "identities must be a whole number of at least 4"),
        ({"cameras": 0}, "cameras"),
        ({"per_camera": 1.5}, "per_camera"),
        ({"train_fraction": 1.0}, "between 0 and 1"),
        ({"height": 8}, "32×16"),
    ],
)
def test_wrong_arguments_are_one_clear_line(tmp_path, change, said):
    arguments = {"style": "plaza", "identities": 4, "cameras": 1, "per_camera": 1} | change
    with pytest.raises(DataError, match=said):
        make_domain(tmp_path / "out", arguments.pop("style"), **arguments)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(DataError, match="no empty folder"):
        make_domain(tmp_path, "plaza")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
