"""The HTML page: whole for any run, escaped, without a script or a network address."""

import re

import numpy as np
import pytest

from reid.config import build_config
from reid.run import Run
from reid.run.report import picture_section, write_report
from reid.scores.matrix import Cell

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 16},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 2, "identities": 3, "instances": 2},
    "method": "fusion",
}


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", build_config(SETTINGS))


def test_a_new_run_has_a_page(run, tmp_path):
    write_report(run, tmp_path / "page.html")
    assert "Nothing has been learned yet" in (tmp_path / "page.html").read_text()


def test_the_page_holds_the_matrix_and_is_closed(run, tiny_domain, tmp_path):
    sites = [tiny_domain(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    for site in sites:
        run.learn(site)
    run.fill_scores(sites)
    picture = picture_section("People", "drawn <people>", np.zeros((8, 8, 3), np.uint8))
    write_report(run, tmp_path / "page.html", extra=[picture])
    page = (tmp_path / "page.html").read_text()
    for row in range(3):
        for site in sites:
            assert f"{run.scores.value(row, site.name):.1f}" in page
    assert "<script" not in page
    assert "http" not in page
    assert "drawn &lt;people&gt;" in page
    for tag in ("table", "svg", "section", "div"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>")


def test_names_are_escaped_and_gaps_are_shown(run, tmp_path):
    run.scores.scored["<img src=x>"] = {"path": "/x", "same_camera": "drop"}
    run.scores.scored["gap"] = {"path": "/y", "same_camera": "drop"}
    scores = {"mAP": 12.3, "rank1": 4.5, "rank5": 6.0, "rank10": 7.0, "mINP": 1.0, "queries": 3}
    run.scores.cells[0, "<img src=x>"] = Cell(scores, np.array([0.1, 0.2, 0.069]))
    write_report(run, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page
    assert "–" in page
