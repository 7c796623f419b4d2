"""A new run, three tiny sites, and the command line in this process."""

import sys

import pytest
from running import SETTINGS

from reid.cli import main
from reid.config import build_config
from reid.run import Run


@pytest.fixture
def sites(tiny_domain, tmp_path):
    return [tiny_domain(tmp_path / "data" / name, seed=seed) for seed, name in enumerate(("first", "second", "third"))]


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", build_config(SETTINGS))


@pytest.fixture
def reid(monkeypatch, capsys):
    """Return a function (*words) that runs ``reid`` with them; it returns the exit code, stdout and stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["reid", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return call
