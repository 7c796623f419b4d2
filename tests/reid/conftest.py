"""A new run, and three tiny sites."""

import pytest
from running import SETTINGS

from reid.config import build_config
from reid.run import Run


@pytest.fixture
def sites(tiny_domain, tmp_path):
    return [tiny_domain(tmp_path / "data" / name, seed=seed) for seed, name in enumerate(("first", "second", "third"))]


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", build_config(SETTINGS))
