"""Which pictures can't be one person's crop: frames, strips and specks, and no real or drawn crop."""

from pathlib import Path

import image_files as files
import numpy as np
import pytest

import domains
from domains.check import check_domain
from domains.crop_shape import FLATTEST, FRAME_WIDTH, LEAST_HEIGHT, LEAST_WIDTH, TALLEST, doubt, doubt_about_file
from domains.crops import CropSpec, image_size
from domains.synthetic import golden_crops

REAL = ("3dpes", "caviar4reid", "ilids", "prid2011", "sarc3d", "towncentre", "viper")


def sizes(text):
    """Widths and heights."""
    return [tuple(map(int, size.split("x"))) for size in text.split()]


FRAMES = sizes(
    "320x240 320x180 352x288 640x360 640x480 640x640 704x576 720x576 800x600 1024x768 1280x720 1280x960 "
    "1920x1080 2560x1440 3840x2160 4096x2160 4032x3024 6000x4000 480x640 600x800 720x1280 768x1024 1080x1920 "
    "2160x3840 3024x4032 4000x6000 "
    "360x640 450x800 480x848 480x854 540x960 576x1024 640x1136 640x960 720x1079 720x1480 720x1520 720x1560 720x1600 "
    "720x1440 720x1680 750x1334 768x1366 828x1792 1080x2400 1125x2436 540x1170 540x1200 "
    "320x176 320x213 352x240 352x264 360x240 368x208 384x216 384x288 "
)
STRIPS = [(300, 40), (200, 50), (90, 30), (20, 200), (40, 400), (8, 128), (1000, 100), (100, 1000)]
SPECKS = [(1, 1), (4, 4), (7, 64), (64, 15), (2, 300), (300, 2)]
CROPS = sizes(
    "8x16 16x39 32x64 48x128 64x128 64x64 128x256 128x384 223x126 143x80 272x300 272x170 250x188 390x300 "
    "37x178 42x175 256x256 250x600 400x1000 350x420 420x500 500x1000 800x2000 384x512 512x1024 "
    "60x160 128x384 256x512 144x256 180x320 270x480 288x512 300x400 240x320 320x640 400x800 400x880 360x800 360x780 "
    "384x768 600x900 500x750 256x448 300x533 640x1600 600x1500 540x1300 700x1400 224x224 299x299 384x384 "
)


@pytest.mark.parametrize(("width", "height"), FRAMES)
def test_frames(width, height):
    assert doubt(height, width) == f"{width}×{height} pixels look like a whole frame and not like one person"


@pytest.mark.parametrize(("width", "height"), STRIPS)
def test_strips(width, height):
    assert "pixels look like a" in doubt(height, width)


@pytest.mark.parametrize(("width", "height"), SPECKS)
def test_specks(width, height):
    assert doubt(height, width) == f"{width}×{height} pixels are too few to show a person (at least 8×16)"


@pytest.mark.parametrize(("width", "height"), CROPS)
def test_crops(width, height):
    assert doubt(height, width) is None


@pytest.mark.parametrize("name", REAL)
def test_every_real_crop_passes_with_a_margin(real_data, name):
    domain = domains.open(Path(real_data) / name)
    sizes = [image_size((domain.root / path).read_bytes()) for _, split in domain.splits() for path in split.paths]
    assert [size for size in sizes if doubt(*size)] == []
    heights, widths = np.array(sizes).T
    assert heights.min() >= 2 * LEAST_HEIGHT
    assert widths.min() >= 2 * LEAST_WIDTH
    assert (heights / widths).max() * 1.5 <= TALLEST
    assert (heights / widths).min() >= FLATTEST * 1.35
    assert widths[heights <= widths].max(initial=0) * 1.4 <= FRAME_WIDTH


def test_drawn_crops_pass():
    assert [crop.shape for crop in golden_crops(8, height=256, width=128) if doubt(*crop.shape[:2])] == []


def test_the_picture_as_it_is_shown_counts(tmp_path):
    file = tmp_path / "a"
    frame = np.zeros((480, 200, 3), np.uint8)
    for suffix in (".jpg", ".png", ".webp"):
        file.write_bytes(files.with_exif(suffix, files.tiff(1), frame))
        assert doubt_about_file(file) is None
        file.write_bytes(files.with_exif(suffix, files.tiff(6), frame))
        assert "480×200 pixels look like a whole frame" in doubt_about_file(file)
    file.write_bytes(b"nothing")
    assert doubt_about_file(file) is None  # whoever decodes it says what is wrong
    assert doubt_about_file(tmp_path / "b") is None


def test_a_check_of_a_domain_reports_them(tiny_domain, tmp_path):
    domain = tiny_domain(tmp_path / "site")
    assert check_domain(domain, crop=CropSpec(64, 32)).unlikely == ()
    frame, strip = domain.train.paths[0], domain.query.paths[0]
    (domain.root / frame).write_bytes(files.encoded(".png", np.zeros((480, 640, 3), np.uint8)))
    (domain.root / strip).write_bytes(files.encoded(".png", np.zeros((20, 90, 3), np.uint8)))
    report = check_domain(domain, crop=CropSpec(64, 32))
    assert {(item.split, item.path) for item in report.unlikely} == {("train", frame), ("query", strip)}
    assert report.to_dict()["unlikely"][0]["reason"] == "640×480 pixels look like a whole frame and not like one person"
    lines = "\n".join(report.lines())
    assert "2 pictures that can't be one person's crop:" in lines
    assert f"train: {frame}: 640×480 pixels" in lines
