"""Speed: what counts are the iterations after the first, by one clock, so that it can't come out endless."""

import itertools

import pytest

import reid.step.speed
from reid.config import build_config, read_method, shipped

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 16},
    "crop": {"height": 32, "width": 16},
    "train": {"identities": 2, "instances": 2},
    "method": "default",
}


def test_the_iterations_between_warming_up_and_the_last_are_timed(monkeypatch):
    clock = itertools.accumulate(
        [100.0, 7.0, 0.5, 0.5, 90.0, *[0.0] * 50]
    )  # the first warms up, the last writes a snapshot
    monkeypatch.setattr(reid.step.speed, "perf_counter", lambda: next(clock))
    found = reid.step.speed.measure_speed(build_config(SETTINGS))
    assert found.crops_per_second == pytest.approx(reid.step.speed.MEASURED * 4 / (7.0 + 0.5))
    assert found.peak_bytes > 0


@pytest.mark.parametrize("name", [name for name in sorted(shipped("methods")) if read_method(name).terms])
def test_every_method_that_trains_can_be_timed(name):
    large = {"model": {"stages": 3}, "crop": {"height": 256, "width": 128}} if name.endswith("-published") else {}
    config = build_config(SETTINGS, {"method": name}, large)
    assert reid.step.speed.measure_speed(config).crops_per_second > 0
