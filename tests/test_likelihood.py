"""The scores and offsets that ``benchmarks.metrics`` measures, against what defines them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.cameras import Crops, Offsets
from benchmarks.likelihood import LikelihoodRatio, Pairs


def test_the_ratio_is_that_of_the_two_gaussians() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(2, 5, 5))
    within, between, mean = (
        parts[0] @ parts[0].T + 0.1 * np.eye(5),
        parts[1, :, :2] @ parts[1, :, :2].T,
        rng.normal(size=5),
    )
    asked, held = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    total = within + between
    together = np.block([[total, between], [between, total]])

    def likelihood(vector, centre, covariance):
        away = vector - centre
        return -0.5 * (away @ np.linalg.solve(covariance, away) + np.linalg.slogdet(covariance)[1])

    expected = [
        [
            likelihood(np.r_[q, g], np.r_[mean, mean], together)
            - likelihood(q, mean, total)
            - likelihood(g, mean, total)
            for g in held
        ]
        for q in asked
    ]
    assert LikelihoodRatio.of(mean, within, between)(asked, held) == pytest.approx(np.array(expected), abs=1e-9)


def test_a_threshold_lets_no_more_impostors_through_than_asked_for() -> None:
    rng = np.random.default_rng(0)
    pairs = Pairs(rng.normal(2, 1, 4000), rng.normal(0, 1, 4000))
    assert pairs.above(pairs.threshold(0.01))[1] == pytest.approx(1.0)
    assert pairs.equal_error() == pytest.approx(15.9, abs=1)
    scale, shift = pairs.calibration()
    assert (scale, shift) == pytest.approx((2, -2), abs=0.15)
    assert pairs.cost(scale, shift) <= pairs.cost(2, -2) < pairs.cost()


def test_an_offset_is_made_of_the_other_crops_of_the_camera() -> None:
    rng = np.random.default_rng(0)
    crops = Crops(rng.normal(size=(12, 3)).astype(np.float32), np.array([0] * 8 + [1] * 4))
    offsets = Offsets(part=1.0, few=0, least=1).of(crops, crops, np.ones(12, bool))
    others = np.arange(12) != 2
    expected = crops.vectors[others & (crops.cameras == 0)].mean(0) - crops.vectors[others].mean(0)
    assert offsets[2] == pytest.approx(expected, abs=1e-6)
    assert not Offsets(few=0, least=5).of(crops, crops)[8:].any()
