"""Augmentation: nothing where nothing is asked, bounds where something is, and seeded."""

import numpy as np
import pytest
import torch

from reid.augment import Augment
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


def test_erasing_paints_one_rectangle_within_its_bounds():
    images = crops(40, 64, 32)
    for new, old in zip(run(images, erase=1), images, strict=True):
        rows, columns = torch.nonzero((new != old).any(-1), as_tuple=True)
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert (new[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == torch.tensor(FILL).to(torch.uint8)).all()
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
