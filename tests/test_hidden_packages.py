"""A folder beside a user's script, called like one of the packages, in the environment that ``make`` builds."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("domains", "prototypes", "deploy", "reid")
USE = """
import domains, prototypes, deploy, reid
from reid.config import read_method, read_settings, read_stream
assert callable(domains.open) and deploy.Encoder and prototypes.Memory and reid.Config
assert read_method("default").terms and read_settings("dkp") and read_stream("small5")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What ``make`` builds from a copy of this tree; what the packages need is borrowed from the present environment,
    all but its own entries for this project.
    """
    home = tmp_path_factory.mktemp("checkout")
    for name in (*NAMES, "configs", "packaging"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, home)
    borrowed, version = sysconfig.get_path("purelib"), sysconfig.get_python_version()
    python = home / "python3"
    borrow = (
        f"""echo 'import sys; sys.path.insert(0, "{borrowed}")' > "$3"/lib/python{version}/site-packages/lent.pth"""
    )
    python.write_text(f'#!/bin/sh\n"{sys.executable}" "$@" || exit 1\n[ "$2" = venv ] || exit 0\n{borrow}\n')
    python.chmod(0o755)
    flags = "PIP_FLAGS=--no-deps --no-build-isolation --no-index"
    made = subprocess.run(
        ["make", ".venv/.ready", f"PYTHON={python}", flags], cwd=home, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return home


def call(environment, folder, *words, stdin=None):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    python = environment / ".venv" / "bin" / "python"
    return subprocess.run(
        [str(python), *words],
        cwd=folder,
        env=variables | {"LIFELONG_REID_DATA": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=120,
        input=stdin,
    )


WAYS = {
    "script": ["script.py"],
    "command": ["-c", USE],
    "module": ["-m", "script"],
    "stdin": ["-"],
    "pytest": ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_script.py"],
    "notebook": ["-c", f"import sys, os; sys.path[:0] = [os.getcwd(), '']\n{USE}"],
    "reid": ["-m", "reid", "--version"],
}


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["nothing", "pictures", "code"])
def test_a_folder_that_is_no_package_hides_nothing(environment, tmp_path, inside):
    for name in (*NAMES, "configs"):
        (tmp_path / name / "site").mkdir(parents=True)
        if inside == "pictures":
            (tmp_path / name / "site" / "0001_c1_0.jpg").write_bytes(b"\xff\xd8")
        if inside == "code":
            (tmp_path / name / "open.py").write_text("raise SystemExit('taken')\n")
    (tmp_path / "configs" / "mine.py").write_text("value = 1\n")
    (tmp_path / "script.py").write_text(f"{USE}\nimport configs.mine\n")  # a user's own name stays the user's
    (tmp_path / "test_script.py").write_text(f"def test_it():\n    {USE.strip().replace(chr(10), chr(10) + '    ')}\n")
    for way, words in WAYS.items():
        done = call(environment, tmp_path, *words, stdin=USE)
        assert done.returncode == 0, f"{way}: {done.stdout}{done.stderr}"
        assert "hides" not in done.stderr, way
        assert way != "reid" or done.stdout.startswith("lifelong-reid "), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_python_prefers_is_named(environment, tmp_path, name, kind):
    """With ``__init__.py`` the user's own is imported, as everywhere in Python, and the user is told."""
    hiding = tmp_path / name / "__init__.py" if kind == "package" else tmp_path / f"{name}.py"
    hiding.parent.mkdir(exist_ok=True)
    hiding.write_text("mine = True\n")
    (tmp_path / "script.py").write_text(f"import {name}\nassert {name}.mine\n{name}.open\n")
    done = call(environment, tmp_path, "script.py")
    assert done.returncode == 1
    said = (
        f"'import {name}' takes {hiding}, which hides the package {name} of lifelong-reid in {environment}; rename it"
    )
    assert said in done.stderr
    assert "script.py:1: UserWarning" in done.stderr, "it points at the user's line"
    assert done.stderr.count("hides the package") == 1


@pytest.mark.slow
def test_what_installs_in_place_knows_no_finder(environment):
    """An editor's and a type checker's view of the path is Python's: one plain entry."""
    (entry,) = (environment / ".venv").glob("lib/python3.*/site-packages/__editable__*.pth")
    assert Path(entry.read_text().strip()) == environment
    done = call(environment, environment.parent, "-X", "importtime", "-c", "pass")
    assert "hidden_packages" in done.stderr
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not {*NAMES, "lifelong_reid"} & loaded, "every start of Python pays for what it loads"
