"""The examples, run as their first lines say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Return a function that runs an example; all of one module share a folder, as they would for a reader."""
    folder = tmp_path_factory.mktemp("examples")

    def run(name):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.folder = folder / "example"
    return run


@pytest.mark.slow
def test_two_sites_are_learned_exported_and_searched(example):
    shown = example("learn_two_sites.py")
    assert "after corridor: plaza" in shown
    assert (example.folder / "bundle" / "model.onnx").is_file()
    shown = example("gallery_from_python.py")
    assert "1. " in shown
    assert "erased 5 entries" in shown


@pytest.mark.slow
def test_a_term_of_ones_own_is_learned_with(example):
    assert "own_term:CentreLoss" in example("own_term.py")


def test_every_example_is_tested_and_short():
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    tests = Path(__file__).read_text()
    assert names
    assert all(f'example("{name}")' in tests for name in names)
    assert all(len((EXAMPLES / name).read_text().splitlines()) <= 80 for name in names)
