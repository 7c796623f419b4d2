"""``reid run``: what a run has learned is shown without learning, scoring or changing anything."""

import json

import pytest
from running import Stop, StopAt


def cells(out):
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


def test_a_new_run_has_learned_nothing(run, reid):
    code, out, _ = reid("run", "show", run.folder)
    assert code == 0
    assert out.replace("\n", " ").endswith("learned nothing ")
    assert "┏" not in out, "no empty table"


def test_steps_scores_and_costs_are_those_of_the_run(run, sites, reid):
    for site in sites[:2]:
        run.learn(site)
    run.fill_scores(sites)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    code, out, _ = reid("run", "show", run.folder)
    assert code == 0
    rows = {row[0]: row[1:] for row in cells(out)[:3]}
    assert list(rows) == ["00-start", "01-first", "02-second"]
    for row, name in enumerate(rows):
        assert rows[name][:3] == [f"{run.scores.value(row, site.name):.1f}" for site in sites]
    assert rows["02-second"][3] == f"{run.scores.average(2, ['first', 'second']):.1f}"
    assert rows["02-second"][4] == f"{run.scores.value(2, 'third'):.1f}"
    assert "forgetting since learned" in out
    crops = [str(len(site.train)) for site in sites]
    assert [row[:3] for row in cells(out)[3:]] == [["01-first", "fusion", crops[0]], ["02-second", "fusion", crops[1]]]
    told = json.loads(reid("run", "show", run.folder, "--json")[1])
    assert [step["id"] for step in told["steps"]] == [step.card["id"] for step in run.steps]
    assert told["scores"]["2/third"]["mAP"] == run.scores.value(2, "third")
    assert told["unfinished"] == []
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_an_unfinished_step_is_named(run, sites, reid):
    run.learn(sites[0])
    with pytest.raises(Stop):
        run.learn(sites[1], progress=StopAt(4))
    assert "02-second was started but is not finished" in reid("run", "show", run.folder)[1]
    assert json.loads(reid("run", "show", run.folder, "--json")[1])["unfinished"] == ["02-second"]


def test_no_run_is_one_line(tmp_path, reid):
    code, out, err = reid("run", "show", tmp_path)
    assert (code, out) == (1, "")
    assert "is not a run" in err
    assert err.count("\n") == 1
