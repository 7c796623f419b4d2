import os
from dataclasses import replace

import cv2
import numpy as np
import pytest

from deploy import Match
from deploy.answers import picture as module
from deploy.answers.picture import CELL_WIDTH, MAX_DRAWN, draw_matches, stack, write_picture
from domains.crops import read_crop
from domains.errors import DataError, UsageError

RED, GREEN = module._WRONG, module._RIGHT


def match(rank=1, source="/nowhere", camera="c1", time="2026-01-31T12:00:00+01:00", label=None):
    return Match(rank, 0.5, rank, str(source), camera, time, label)


def coloured(tmp_path, colour, name="a.png", height=40, width=20):
    path = tmp_path / name
    cv2.imwrite(str(path), np.full((height, width, 3), colour[::-1], np.uint8))
    return path


def has(image, colour):
    return bool((image == np.array(colour, np.uint8)).all(axis=2).any())


@pytest.fixture
def query():
    return np.full((64, 32, 3), (10, 20, 200), np.uint8)


def test_query_and_matches_are_in_it(tmp_path, query):
    sources = [coloured(tmp_path, colour, f"{colour[0]}.png") for colour in ((250, 9, 9), (8, 240, 8))]
    image = draw_matches(query, [match(1, sources[0]), match(2, sources[1])])
    assert image.dtype == np.uint8
    assert image.ndim == 3
    for colour in ((10, 20, 200), (250, 9, 9), (8, 240, 8)):
        assert has(image, colour)
    columns = [
        np.flatnonzero((image == colour).all(axis=2).any(axis=0)).mean()
        for colour in ((10, 20, 200), (250, 9, 9), (8, 240, 8))
    ]
    assert columns == sorted(columns)


@pytest.mark.parametrize("shape", [(64, 32), (10, 300), (300, 2), (1, 1), (2000, 900)])
def test_crops_are_not_distorted(shape):
    fitted = module._fitted(np.zeros((*shape, 3), np.uint8))
    rows, columns = (np.flatnonzero((fitted == 0).all(axis=2).any(axis=side)).size for side in (1, 0))
    assert (rows == module.CROP_HEIGHT) or (columns == module.CROP_WIDTH)
    scale = min(module.CROP_HEIGHT / shape[0], module.CROP_WIDTH / shape[1])
    assert abs(rows - max(1, shape[0] * scale)) <= 1
    assert abs(columns - max(1, shape[1] * scale)) <= 1


def test_frames_say_right_and_wrong_only_where_it_is_known(tmp_path, query):
    grey = coloured(tmp_path, (90, 90, 90))
    right, wrong, unknown = match(1, grey, label="Ann"), match(2, grey, label="Bob"), match(3, grey)
    assert [
        has(draw_matches(query, [m], known_label="Ann"), colour)
        for m in (right, wrong, unknown)
        for colour in (GREEN, RED)
    ] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    assert not has(draw_matches(query, [right, wrong]), GREEN)
    assert not has(draw_matches(query, [right, wrong]), RED)


def test_what_can_not_be_read_gets_a_placeholder(tmp_path, query):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for source in (
        "/nowhere",
        tmp_path,
        tmp_path / "pipe",
        tmp_path / "broken.png",
        "rtsp://camera/1",
        "nul\0",
        "x" * 5000,
        "/dev/zero",
        "\udc80",
    ):
        image = draw_matches(query, [match(source=source)])
        assert has(image, module._EDGE), source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c1",
        "W" * 300,
        "i" * 1000,
        "Küche",
        "摄像头",
        "entrance hall north side",
        "a\tb\nc",
        "\u202eabc",
        "2026-01-31",
        "12:00:00.123456+01:00",
        "🙂",
    ],
)
def test_text_stays_inside_its_cell(text):
    cell = module._cell(np.zeros((4, 2, 3), np.uint8), [text] * 4, None)
    below = cell[module.CROP_HEIGHT + 2 * module._BORDER :]
    ink = np.flatnonzero((below < 200).any(axis=(0, 2)))
    assert cell.shape[1] == CELL_WIDTH
    if text.strip():
        assert ink.size
        assert ink.max() <= CELL_WIDTH - module._MARGIN + 1
        assert ink.min() >= 1 or len(text) < 20
        assert np.ptp(below.min(axis=(1, 2))[: module._LINE].astype(int)) > 60  # dark enough to read
    assert (below[-module._MARGIN // 2 :] == 255).all()


wide = pytest.mark.skipif(
    int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV 4 draws wider letters, and a long caption is shortened"
)


@wide
def test_a_verdict_fits_beside_the_score():
    captions = [
        module._caption(replace(match(100), score=-0.888, verdict=verdict))[0]
        for verdict in (None, "same person", "unsure", "no match")
    ]
    assert captions == ["100.   -0.888", "100. -0.888 same", "100. -0.888 unsure", "100. -0.888 no match"]
    assert all(
        module._shortened(text.replace("100.", "10."), CELL_WIDTH - module._MARGIN) == text.replace("100.", "10.")
        for text in captions
    )


@wide
def test_a_date_and_a_time_of_day_are_never_cut():
    width = CELL_WIDTH - module._MARGIN
    for text in ("2026-12-28", "20:58:48.888888+00:00", "100.   -0.888"):
        assert module._shortened(text, width) == text
    assert module._shortened("Küche", width) == "Kuche"
    cut = module._shortened("camera-" + "x" * 60 + "-0017", width)
    assert cut.startswith("camera-")
    assert cut.endswith("-0017")
    assert ".." in cut


def test_captions():
    assert module._caption(match(3)) == ["3.   0.500", "c1", "2026-01-31", "12:00:00+01:00"]
    assert module._caption(match(time=None))[2:] == ["no time", ""]
    assert module._caption(match(time="2026-01-31 11:00Z"))[2:] == ["2026-01-31", "11:00Z"]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 25, 150])
def test_any_number_of_matches(query, count):
    image = draw_matches(query, [match(rank) for rank in range(1, count + 1)])
    rows = max(1, -(-min(count, MAX_DRAWN) // module.PER_ROW))
    cell = module._cell(query, [], None)
    assert image.shape[0] == module._MARGIN + rows * cell.shape[0]
    assert image.shape[1] == module._MARGIN + (min(max(count, 1), module.PER_ROW) + 1) * CELL_WIDTH
    assert stack([image, draw_matches(query, [])]).shape[1] == image.shape[1]


def test_wrong_input(query, tmp_path):
    with pytest.raises(DataError):
        draw_matches(query / 255, [])
    with pytest.raises(DataError):
        stack([])
    with pytest.raises(UsageError, match="png"):
        write_picture(tmp_path / "a.gif", query)
    with pytest.raises(DataError, match="does its folder exist"):
        write_picture(tmp_path / "no" / "a.png", query)
    with pytest.raises(DataError):
        write_picture(tmp_path / "a.png", query[..., 0])
    with pytest.raises(DataError, match="fewer matches"):
        write_picture(tmp_path / "a.jpg", np.zeros((70_000, 1, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.jpeg"])
def test_write(query, tmp_path, name):
    write_picture(tmp_path / name, query)
    np.testing.assert_allclose(read_crop(tmp_path / name).astype(int), query, atol=0 if name == "a.png" else 4)
    write_picture(str(tmp_path / name), query[:8])
    assert read_crop(tmp_path / name).shape == (8, 32, 3)
    assert [item.name for item in tmp_path.iterdir()] == [name]
