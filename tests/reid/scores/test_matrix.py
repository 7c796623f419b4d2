"""The score matrix against plain loops, and its files."""

import json

import numpy as np
import pytest

from domains.errors import ArtefactError
from reid.scores.matrix import Cell, ScoreMatrix


def cell(values):
    ap = np.asarray(values, np.float64)
    scores = {"mAP": 100 * ap.mean(), "rank1": 50.0, "rank5": 60.0, "rank10": 70.0, "mINP": 10.0, "queries": len(ap)}
    return Cell(scores, ap)


def drawn(seed):
    rng = np.random.default_rng(seed)
    made = ScoreMatrix([(), ("a",), ("b",), ("c",)])
    made.scored = {name: {"path": f"/{name}", "same_camera": "drop"} for name in ("a", "b", "c", "u", "v")}
    for row in range(4):
        for name in made.scored:
            made.cells[row, name] = cell(rng.random(20))
    return made


@pytest.fixture
def matrix():
    return drawn(7)


@pytest.mark.parametrize("seed", range(8))
def test_averages_and_measures_by_hand(seed):
    matrix = drawn(seed)
    a = {key: 100 * value.ap.mean() for key, value in matrix.cells.items()}
    summary = matrix.summary()
    for row, names in enumerate(["", "a", "ab", "abc"]):
        seen = summary["rows"][row]["seen"]["mAP"]
        assert seen is None if not names else seen == pytest.approx(sum(a[row, name] for name in names) / len(names))
        assert summary["rows"][row]["unseen"]["mAP"] == pytest.approx((a[row, "u"] + a[row, "v"]) / 2)
    step = {"a": 1, "b": 2, "c": 3}
    assert summary["plasticity"]["mAP"] == pytest.approx(sum(a[row, name] for name, row in step.items()) / 3, abs=1e-3)
    all_rows = sum(max(a[row, name] for row in range(3)) - a[3, name] for name in "ab") / 2
    since = sum(max(a[row, name] for row in range(step[name], 3)) - a[3, name] for name in "ab") / 2
    moved = sum(a[3, name] - a[step[name], name] for name in "ab") / 2
    assert summary["forgetting_all_rows"]["mAP"] == pytest.approx(all_rows, abs=1e-3)
    assert summary["forgetting_since_learned"]["mAP"] == pytest.approx(since, abs=1e-3)
    assert summary["backward_transfer"]["mAP"] == pytest.approx(moved, abs=1e-3)


def test_a_domain_that_only_gained_has_negative_forgetting():
    matrix = drawn(0)
    for row, level in enumerate((0.1, 0.2, 0.3, 0.6)):
        for name in "abc":
            matrix.cells[row, name] = cell(np.full(20, level))
    summary = matrix.summary()
    assert summary["forgetting_all_rows"]["mAP"] == summary["forgetting_since_learned"]["mAP"] == pytest.approx(-30)
    assert summary["backward_transfer"]["mAP"] == pytest.approx((40 + 30) / 2)
    matrix.cells[0, "a"] = cell(np.full(20, 0.9))
    summary = matrix.summary()
    assert summary["forgetting_all_rows"]["mAP"] == pytest.approx((30 - 30) / 2)
    assert summary["forgetting_since_learned"]["mAP"] == pytest.approx(-30)


def test_every_interval_holds_its_point():
    summary = drawn(3).summary()
    for entry in [
        *(row[group] for row in summary["rows"] for group in ("seen", "unseen")),
        *(summary[name] for name in summary if name != "rows"),
    ]:
        assert (entry["interval"] is None) == (entry["mAP"] is None)
        if entry["interval"]:
            assert entry["interval"][0] <= entry["mAP"] <= entry["interval"][1]


def test_intervals_hold_the_point_and_shrink_with_queries(matrix):
    low, high = matrix.summary()["rows"][3]["seen"]["interval"]
    assert low < matrix.average(3, ["a", "b", "c"]) < high
    rng = np.random.default_rng(0)
    for key in matrix.cells:
        matrix.cells[key] = cell(rng.random(2000))
    low2, high2 = matrix.summary()["rows"][3]["seen"]["interval"]
    assert high2 - low2 < (high - low) / 4


def test_differences_are_paired(matrix):
    """A model that loses the same on every query has a forgetting without spread."""
    for name in "ab":
        matrix.cells[3, name] = cell(matrix.cells[2, name].ap - 0.01)
        matrix.cells[1, name] = cell(matrix.cells[2, name].ap - 0.02)
    low, high = matrix.summary()["forgetting_since_learned"]["interval"]
    assert high - low < 0.05


def test_a_joint_step_learns_several_at_once(matrix):
    matrix.learned = [(), ("a", "b", "c")]
    matrix.drop_rows(2)
    summary = matrix.summary()
    assert summary["plasticity"]["mAP"] == pytest.approx(summary["rows"][1]["seen"]["mAP"], abs=1e-3)
    assert summary["forgetting_since_learned"]["mAP"] is None


def test_a_missing_cell_is_none_and_never_zero(matrix):
    del matrix.cells[3, "a"]
    summary = matrix.summary()
    assert summary["rows"][3]["seen"] == {"mAP": None, "rank1": None, "interval": None}
    assert summary["backward_transfer"]["mAP"] is None
    assert matrix.effect(3)[0]["change"] is None


def test_changed_queries_give_no_interval(matrix):
    matrix.cells[3, "a"] = cell(np.ones(7))
    assert matrix.summary()["rows"][3]["seen"]["interval"] is None


def test_the_effect_of_a_step(matrix):
    rows = {row["domain"]: row for row in matrix.effect(2)}
    assert rows["b"]["role"] == "new"
    assert rows["a"]["role"] == "learned before"
    assert rows["c"]["role"] == rows["u"]["role"] == "not learned"
    assert rows["a"]["change"] == pytest.approx(
        100 * (matrix.cells[2, "a"].ap.mean() - matrix.cells[1, "a"].ap.mean()), abs=1e-3
    )


def test_it_reads_back_what_it_wrote(matrix, tmp_path):
    matrix.write(tmp_path)
    again = ScoreMatrix.read(tmp_path)
    assert again.learned == matrix.learned
    assert again.scored == matrix.scored
    assert set(again.cells) == set(matrix.cells)
    again.write(tmp_path)
    third = ScoreMatrix.read(tmp_path)
    assert third.summary() == again.summary()
    assert ScoreMatrix.read(tmp_path / "nothing").cells == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows", None),
        ("rows", 3),
        ("rows", ["text"]),
        ("domains", None),
        ("domains", 3),
        ("learned", None),
        ("scores", None),
        ("scores", 3),
    ],
)
@pytest.mark.parametrize("gone", [False, True])
def test_a_matrix_that_lacks_a_part_is_one_line(matrix, tmp_path, key, value, gone):
    matrix.write(tmp_path)
    stored = json.loads((tmp_path / "scores.json").read_text())
    place = stored if key in stored else stored["rows"][1]
    place[key] = value
    if gone:
        del place[key]
    (tmp_path / "scores.json").write_text(json.dumps(stored))
    with pytest.raises(ArtefactError, match=r"scores\.json"):
        ScoreMatrix.read(tmp_path)


@pytest.mark.parametrize("damage", ["kind", "json", "npz", "gone"])
def test_damaged_files_are_one_line(matrix, tmp_path, damage):
    matrix.write(tmp_path)
    if damage == "kind":
        (tmp_path / "scores.json").write_text(json.dumps({"kind": "run"}))
    elif damage == "json":
        (tmp_path / "scores.json").write_text("{")
    elif damage == "npz":
        (tmp_path / "queries.npz").write_bytes(b"PK\x03\x04 nothing")
    else:
        (tmp_path / "queries.npz").unlink()
    with pytest.raises(ArtefactError, match=r"scores\.json|queries\.npz"):
        ScoreMatrix.read(tmp_path)


def test_a_domain_is_taken_out_as_if_it_had_never_been(matrix, tmp_path):
    matrix.drop_domain("b")
    assert matrix.learned == [(), ("a",), (), ("c",)]
    assert not [name for _, name in matrix.cells if name == "b"]
    matrix.write(tmp_path)
    assert ScoreMatrix.read(tmp_path).summary() == matrix.summary()
    again = drawn(7)
    assert matrix.value(3, "u") == again.value(3, "u")
    assert matrix.summary()["plasticity"]["mAP"] == pytest.approx(
        (again.value(1, "a") + again.value(3, "c")) / 2, abs=1e-3
    )
    assert b"/b" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
