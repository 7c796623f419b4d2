"""Augmentation: nothing where nothing is asked, bounds where something is, and seeded."""

import numpy as np
import pytest
import torch

from reid.batches.augment import (
    Augment,
    painted_at_once,
    painted_one_by_one,
    taken_at_once,
    taken_one_by_one,
)
from reid.config import AugmentConfig

NOTHING = {"flip": 0, "shift": 0, "colour": 0, "erase": 0}
FILL = (10.0, 20.0, 30.0)


def crops(batch=6, height=32, width=16):
    return torch.from_numpy(np.random.default_rng(0).integers(60, 256, (batch, height, width, 3), dtype=np.uint8))


def run(images, seed=0, **settings):
    return Augment(AugmentConfig(**(NOTHING | settings)), FILL)(images, torch.Generator().manual_seed(seed))


def test_all_off_is_the_identity():
    assert torch.equal(run(crops()), crops())


def test_a_certain_flip_mirrors_every_crop():
    assert torch.equal(run(crops(), flip=1), crops().flip(2))


def test_flips_are_per_crop_and_as_likely_as_asked():
    out = run(crops(400, 4, 4), flip=0.3)
    flipped = [torch.equal(new, old.flip(1)) for new, old in zip(out, crops(400, 4, 4), strict=True)]
    assert 80 < sum(flipped) < 160
    assert all(flip or torch.equal(new, old) for flip, new, old in zip(flipped, out, crops(400, 4, 4), strict=True))


def test_a_shift_moves_the_picture_and_paints_the_rest():
    images, pad = crops(), round(0.1 * 32)
    for new, old in zip(run(images, shift=0.1), images, strict=True):
        padded = torch.tensor(FILL).to(torch.uint8).expand(32 + 2 * pad, 16 + 2 * pad, 3).clone()
        padded[pad:-pad, pad:-pad] = old
        windows = [padded[y : y + 32, x : x + 16] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        assert any(torch.equal(new, window) for window in windows)


@pytest.mark.parametrize("seed", range(4))
def test_flip_and_shift_pixel_by_pixel(seed):
    """The same draws, crop by crop and pixel by pixel, in plain loops."""
    images, (batch, height, width) = crops(5, 12, 8), (5, 12, 8)
    pad = round(0.25 * height)
    draw = torch.Generator().manual_seed(seed)
    flips = (torch.rand(batch, generator=draw) < 0.5).tolist()
    down = torch.randint(-pad, pad + 1, (batch, 1), generator=draw)[:, 0].tolist()
    right = torch.randint(-pad, pad + 1, (batch, 1), generator=draw)[:, 0].tolist()
    wanted = torch.empty_like(images)
    for at, row, column in np.ndindex(batch, height, width):
        y, x = row + down[at], column + right[at]
        x = width - 1 - x if flips[at] else x
        inside = 0 <= y < height and 0 <= x < width
        wanted[at, row, column] = images[at, y, x] if inside else torch.tensor(FILL).to(torch.uint8)
    assert torch.equal(run(images, seed, flip=0.5, shift=0.25), wanted)
    assert set(flips) == {True, False} or seed


def test_shifts_reach_both_ends_of_their_range():
    images = torch.full((400, 10, 10, 3), 200, dtype=torch.uint8)
    painted = (run(images, shift=0.2)[..., 0] == 10).numpy()
    for edge in (painted[:, :2].all(2), painted[:, -2:].all(2), painted[:, :, :2].all(1), painted[:, :, -2:].all(1)):
        assert edge.all(1).any(), "two rows or columns"
        assert (edge.sum(1) == 1).any()
    assert not painted[:, 2:-2, 2:-2].any()


@pytest.mark.parametrize("area", [(0.1, 0.1), (0.3, 0.4)])
def test_the_erased_area_is_the_one_asked_for(area):
    images = torch.full((60, 80, 40, 3), 200, dtype=torch.uint8)
    out = run(images, erase=1, erase_area=area, erase_ratio=0.5)
    share = (out[..., 0] == 10).float().mean((1, 2))
    assert ((share > area[0] - 0.02) & (share < area[1] + 0.02)).all()
    assert (
        (out[..., 0] == 10).sum((1, 2)) == (out[..., 0] == 10).any(2).sum(1) * (out[..., 0] == 10).any(1).sum(1)
    ).all(), "one rectangle"


def test_erasing_reaches_every_edge():
    images = torch.full((400, 20, 20, 3), 200, dtype=torch.uint8)
    painted = run(images, erase=1)[..., 0] == 10
    for edge in (painted[:, 0], painted[:, -1], painted[:, :, 0], painted[:, :, -1]):
        assert edge.any()


def test_erasing_is_per_crop_and_as_likely_as_asked():
    images = torch.full((600, 32, 16, 3), 200, dtype=torch.uint8)
    erased = (run(images, erase=0.3) != images).flatten(1).any(1).sum().item()
    assert 135 < erased < 225


def test_a_rectangle_that_cannot_fit_is_left_out():
    assert torch.equal(run(crops(), erase=1, erase_area=(3, 4)), crops())


def test_strong_colours_keep_the_range_and_the_shape():
    out = run(crops(), colour=1.0)
    assert out.shape == crops().shape
    assert out.min() >= 0
    assert out.max() <= 255
    grey = torch.full((4, 8, 8, 3), 90, dtype=torch.uint8)
    painted = run(grey, colour=0.2)
    assert torch.allclose(painted, painted[:, :1, :1, :1].expand_as(painted), atol=1e-3), "one grey stays one grey"


def test_erasing_paints_one_rectangle_within_its_bounds():
    images = crops(40, 64, 32)
    for new, old in zip(run(images, erase=1), images, strict=True):
        rows, columns = torch.nonzero((new != old).any(-1), as_tuple=True)
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert (
            new[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == torch.tensor(FILL).to(torch.uint8)
        ).all()
        assert 0.015 < height * width / (64 * 32) < 0.43
        assert 0.2 < height / width < 4.2


def test_colours_change_within_strength():
    out = run(crops(), colour=0.2)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 255
    ratio = out.mean((1, 2, 3)) / crops().float().mean((1, 2, 3))
    assert ((ratio > 0.7) & (ratio < 1.3)).all()
    assert ratio.std() > 0.01


@pytest.mark.parametrize("settings", [{"flip": 0.5, "shift": 0.1, "erase": 0.5}, {"colour": 0.3, "flip": 0.5}])
def test_the_same_generator_gives_the_same_bits_and_the_input_is_left_alone(settings):
    images = crops()
    before = images.clone()
    assert torch.equal(run(images, seed=3, **settings), run(images, seed=3, **settings))
    assert not torch.equal(run(images, seed=3, **settings), run(images, seed=4, **settings))
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_what_a_gpu_does_at_once_is_what_a_processor_does_crop_by_crop(dtype):
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (9, 12, 7, 3), generator=generator).to(dtype)
    rows, columns = (torch.randint(0, size, (9, size), generator=generator) for size in (12, 7))
    assert torch.equal(taken_at_once(crops, rows, columns), taken_one_by_one(crops, rows, columns))
    top, left = (torch.randint(0, size, (9,), generator=generator) for size in (12, 7))
    tall, wide = (torch.randint(0, size, (9,), generator=generator) for size in (6, 4))
    boxes = torch.stack([top, top + tall, left, left + wide], 1)
    boxes[0] = 0
    paint = torch.tensor([1, 2, 3]).to(dtype)
    before = crops.clone()
    assert torch.equal(painted_at_once(crops, boxes, paint), painted_one_by_one(crops, boxes, paint))
    assert torch.equal(crops, before)
    assert torch.equal(painted_at_once(crops, boxes, paint)[0], crops[0])
