"""What a run's scores speak of: the same data under the same rule in every row, and nothing left out in silence."""

import json

import pytest

import domains
from domains.errors import DataError, UsageError
from reid.run import Run
from reid.run.report import write_report
from reid.scores.evaluate import Retrieval


def spoil(domain, split, count):
    for file in domain.files(split)[:count]:
        file.write_bytes(b"no image")
    return domains.open(domain.root)


def test_other_data_under_a_learned_name_is_refused(run, tiny_domain, tmp_path, sites):
    run.learn(sites[0])
    run.fill_scores(sites)
    before = (run.folder / "scores.json").read_bytes()
    for name in ("first", "second"):  # one learned, one only scored
        with pytest.raises(UsageError, match=f"knows {name} as different data"):
            run.fill_scores([tiny_domain(tmp_path / "elsewhere" / name, seed=9)])
    assert (run.folder / "scores.json").read_bytes() == before


def test_the_same_data_may_move_and_lose_its_train_images(run, sites, tmp_path):
    run.learn(sites[0])
    run.fill_scores()
    sites[0].root.rename(tmp_path / "data" / "moved")
    moved = domains.open(tmp_path / "data" / "moved", name="first")
    for file in moved.files(moved.train):
        file.unlink()
    moved = domains.open(moved.root, name="first")
    assert run.fill_scores([moved]) == []
    assert run.scores.scored["first"]["path"] == str(moved.root)


def test_another_camera_rule_scores_every_row_anew(run, sites):
    run.fill_scores(sites[:1])
    run.learn(sites[0])
    run.fill_scores()
    dropped = [run.scores.value(row, "first") for row in (0, 1)]
    (note,) = run.fill_scores([sites[0].scored_as("keep")], rows={1})
    assert "again in every row" in note
    kept = [run.scores.value(row, "first") for row in (0, 1)]
    assert all(old != new for old, new in zip(dropped, kept, strict=True))
    assert kept == [
        pytest.approx(run.evaluate(sites[0].scored_as("keep"), step=row)["mAP"], abs=1e-3) for row in (0, 1)
    ]
    assert run.fill_scores([sites[0].scored_as("keep")]) == []


def test_changed_test_crops_score_every_row_anew(run, sites, tiny_domain):
    run.fill_scores(sites[:1])
    run.learn(sites[0])
    run.fill_scores()
    queries = sites[0].files(sites[0].query)
    queries[0].write_bytes(queries[1].read_bytes() + b"\0" * 7)
    (note,) = run.fill_scores(rows={1})
    assert "again in every row" in note


def test_too_many_unreadable_images_are_no_score(run, sites):
    run.fill_scores(sites[:1])
    before = dict(run.scores.cells)
    spoiled = spoil(sites[0], sites[0].gallery, len(sites[0].gallery) // 2)
    (note,) = run.fill_scores([spoiled])
    assert "first is not scored" in note
    assert f"{len(sites[0].gallery) // 2} of its" in note
    assert run.scores.cells == before, "what was scored stays"
    with pytest.raises(DataError, match="can't be read"):
        run.evaluate(spoiled)


def test_a_few_unreadable_images_are_named(run, tiny_domain, tmp_path, caplog):
    big = tiny_domain(tmp_path / "big", people=70, each=2)
    big = spoil(big, big.gallery, 1)
    assert len(big.query) + len(big.gallery) > 100
    (note,) = run.fill_scores([big])
    assert big.gallery.paths[0] in note
    assert run.scores.value(0, "big") is not None
    run.evaluate(big)
    assert big.gallery.paths[0] in caplog.text
    assert len(Retrieval.of(big, run.embedder(-1), run.stores).left_out) == 1


def test_a_run_that_was_taught_and_never_scored_has_a_report(run, sites, tmp_path):
    for site in sites[:2]:
        run.learn(site)
    for opened in (run, Run.open(run.folder)):
        assert opened.scores.learned == [(), ("first",), ("second",)]
        write_report(opened, tmp_path / "report.html")


def test_a_loss_that_some_iterations_lack_is_drawn(run, sites, tmp_path):
    sealed = run.learn(sites[0])
    log = sealed.folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    del lines[0]["losses"]["triplet"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(run, tmp_path / "report.html")
    assert "triplet" in (tmp_path / "report.html").read_text()
