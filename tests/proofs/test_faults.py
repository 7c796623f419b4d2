"""Every write in turn fails, by a full disk and by an I/O error: one line and exit 1, the state before or after, and
the next run works.

A small library (faults.c) is preloaded into a process of its own and fails the n-th call that changes a file below a
folder, for n = 1, 2, 3 … The calls of SQLite, FAISS, NumPy and Python are all met. Some of the n are tried here, all of
them in the nightly tests.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a library is preloaded as Linux does"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler, so the library that fails calls can't be built"),
]
CASES = [
    "gallery create",
    "gallery add",
    "gallery query",
    "gallery forget",
    "gallery keep",
    "gallery upgrade",
    "gallery back",
    "gallery drop-old",
    "gallery backup",
    "gallery verify",
    "bundle",
    "run erase",
    "run seal",
]
FEW = ["gallery add", "gallery forget", "gallery upgrade", "bundle", "run erase"]


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("faults") / "faults.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", str(target), str(HERE / "faults.c"), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the C compiler can't build the library that fails calls: {built.stderr.splitlines()[:1]}")
    return target


def tried(library, tmp_path, case, most):
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "faulty.py"), case, str(tmp_path / "work"), str(most)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["wrong"], "\n".join(found["wrong"][:5])
    return found


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow) for case in FEW])
def test_some_writes_fail(library, tmp_path, case):
    found = tried(library, tmp_path, case, 8)
    assert found["tried"] >= 10
    assert found["refused"] >= 4


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_each_write_fails_in_turn(library, tmp_path, case):
    found = tried(library, tmp_path, case, 10**6)
    assert found["tried"] >= found["changes"], "every change was made to fail at least once"
