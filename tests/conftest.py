"""Shared fixtures: tiny domains on disk, the real ones where they are at hand, and the command line in this process."""

import os
import sys
from pathlib import Path

import pytest
from drawing import draw_tiny_domain

import domains


def pytest_configure(config):
    for name in ("COLUMNS", "LINES"):  # a console made while they are set keeps them
        os.environ.pop(name, None)
    try:
        import torch
    except ModuleNotFoundError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_tokens_of_ones_own(tmp_path_factory):
    """Whoever runs the tests may have made tokens with ``reid token``; services started here, in processes of their own
    too, must not see them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REID_TOKENS", str(tmp_path_factory.mktemp("tokens") / "tokens.json"))
        yield


@pytest.fixture
def tiny_domain():
    """Return a function (folder, **options) that draws a tiny domain there and opens it."""
    return lambda root, **options: domains.open(draw_tiny_domain(root, **options))


@pytest.fixture(scope="session")
def real_data():
    """Return the folder of real domains, or skip."""
    folder = os.environ.get("LIFELONG_REID_DATA")
    if not folder:
        pytest.skip("LIFELONG_REID_DATA does not name the folder of real domains")
    return Path(folder)


@pytest.fixture
def reid(monkeypatch, capsys):
    """Return a function (*words) that runs ``reid`` with them; it returns the exit code, stdout and stderr."""

    from reid.cli import main

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["reid", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return call
