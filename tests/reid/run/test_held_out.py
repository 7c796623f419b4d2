"""People kept out of a step's training judge it."""

import pytest

from domains.errors import DataError
from domains.synthetic import make_domain
from reid.config import build_config
from reid.run import Run, learning
from tests.reid.running import MEASURED, SETTINGS, same, weights


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    return [
        make_domain(folder / style, style, identities=32, cameras=2, per_camera=2, size=(64, 32))
        for style in ("plaza", "station")
    ]


def settings(*overrides):
    return build_config(SETTINGS, {"seed": 3}, overrides=list(overrides))


def learn(folder, sites, *overrides, method=MEASURED):
    run = Run.create(folder, settings(*overrides))
    for site in sites:
        run.learn(site, method=method)
    return run


def embedding(run, step):
    held = ("backbone.", "embedding.")
    return {
        name: value
        for name, value in weights(run, step).items()
        if name.startswith(held) and not name.endswith("num_batches_tracked")  # counters are never taken back
    }


@pytest.fixture
def judged(monkeypatch):
    """Let judges give these scores in turn; returns a function that takes them, and the domains that were judged."""

    class Judged:
        def __init__(self, value):
            self.mAP = value

    def scores(*values):
        asked, domains = iter(values), []

        def evaluate(domain, embed, stores):
            domains.append(domain)
            return Judged(next(asked))

        monkeypatch.setattr(learning, "evaluate", evaluate)
        return domains

    return scores


def test_people_kept_out_of_training_are_scored_by_both_networks(tmp_path, sites):
    run = learn(tmp_path / "run", sites[:1], "train.held_out=0.25", method="fusion")
    figures, changed = run.steps[1].card["figures"], run.steps[1].feature_space != run.steps[0].feature_space
    assert 0 < figures["held_out.before"] <= 100
    assert changed is (figures["held_out.after"] >= figures["held_out.before"])


@pytest.mark.parametrize(("scores", "kept"), [((50.0, 60.0), True), ((50.0, 50.0), True), ((50.0, 49.9), False)])
def test_the_better_network_is_kept(tmp_path, sites, judged, scores, kept):
    domains = judged(*scores)
    run = learn(tmp_path / "run", sites[:1], "train.held_out=0.25")
    start, step = run.steps
    figures, notes = step.card["figures"], step.card["notes"]
    assert (figures["held_out.before"], figures["held_out.after"]) == scores
    assert (step.feature_space != start.feature_space) is kept
    assert same(embedding(run, 0), embedding(run, 1)) is not kept
    assert any("made plaza worse" in note and "stays as it was" in note for note in notes) is not kept
    assert run.metric("site:plaza") is not None  # the site is measured all the same
    learned, (first, second) = set(step.card["classes"]), domains
    others = {first.identities[pid] for pid in first.query.people}
    assert first is second
    assert (len(learned), len(others)) == (12, 4)
    assert not learned & others
    assert learned | others == {sites[0].identities[pid] for pid in sites[0].train.people}


def test_a_second_step_goes_back_to_the_first_and_its_sites_stay(tmp_path, sites, judged):
    run = learn(tmp_path / "run", sites[:1])
    before = run.evaluate(sites[0])
    judged(50.0, 40.0)
    run.learn(sites[1], method=MEASURED, config=settings("train.held_out=0.25"))
    assert run.steps[2].feature_space == run.steps[1].feature_space
    assert run.evaluate(sites[0]) == before
    assert set(run.statistics()) == {"plaza", "station"}
    assert run.evaluate_without_reindexing(sites)["plaza"]["as_it_was"] == before["mAP"]


def test_nobody_is_held_out_unless_asked_or_where_nothing_is_trained(tmp_path, sites):
    plain = learn(tmp_path / "plain", sites[:1])
    assert "held_out.before" not in plain.steps[1].card["figures"]
    assert len(plain.steps[1].card["classes"]) == 16
    measured = learn(tmp_path / "measured", sites[:1], "train.held_out=0.25", method="metric")
    assert len(measured.steps[1].card["classes"]) == 16


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_too_few_judges_are_one_line(tmp_path, sites, share):
    with pytest.raises(DataError, match=r"at least 4 with two crops each are needed"):
        learn(tmp_path / "run", sites[:1], f"train.held_out={share}")
