"""The README's commands, typed as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"<!-- runs[^>]*-->\n```sh\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    quick = tmp_path / "configs" / "quick.yaml"
    quick.write_text(
        re.sub(r"iterations: \d+", "iterations: 4", quick.read_text())
    )  # the commands are under test here, not the training
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    commands = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
    assert len(commands) >= 9
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "out.png").is_file()
    assert (tmp_path / "runs" / "site" / "scores.json").is_file()


def test_every_file_the_documents_show_is_there():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}, which is not there"


def test_the_settings_that_the_documents_name_exist():
    from reid.config import KNOWN_KEYS

    text = README + (ROOT / "docs" / "learning.md").read_text("utf-8")
    named = set(re.findall(r"`((?:model|crop|train|storage|augment)\.[a-z_]+)(?:=[^`]*)?`", text))
    assert named
    assert named <= set(KNOWN_KEYS)
