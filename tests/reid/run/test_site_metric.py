"""A site's metric through a run: measured, sealed, carried, served, scored and erased."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pydantic import ValidationError
from running import MEASURED, SETTINGS, same, weights

from domains.errors import ConfigError, UsageError
from prototypes.metric import FACTORS, MEAN, Metric, SiteStatistics, pairs_of_crops
from prototypes.renewal import renewed
from reid.config import Method, build_config, read_method, validated
from reid.run import Run
from reid.scores.evaluate import Retrieval, evaluate
from reid.scores.union import score_union
from reid.step.measuring import check_metric


@pytest.fixture
def sites(tiny_domain, tmp_path):
    return [tiny_domain(tmp_path / f"site{number}", seed=number) for number in range(3)]


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", build_config(SETTINGS))


def by_hand(run, site, step=-1):
    """The statistics of a site, from its train crops as a step's model embeds them."""
    store = run.stores.get(site, site.train)
    found = run.embedder(step)(store.crops)
    people = np.searchsorted(store.split.people, store.split.pids)
    pairs = pairs_of_crops(people, store.split.camids, seed=run.config.seed)
    return SiteStatistics.of(found, found[pairs[:, 0]] - found[pairs[:, 1]], len(np.unique(people)))


def test_measuring_a_site_leaves_the_network_as_it_was(run, sites):
    before = weights(run)
    sealed = run.learn(sites[0], method="metric")
    after = weights(run)
    moved = [
        name for name in before if not name.startswith("classifier.") and not torch.equal(before[name], after[name])
    ]
    assert moved == []
    assert sealed.feature_space == run.steps[0].feature_space
    assert sealed.card["train"]["seconds"] == 0
    assert sealed.card["bytes"]["memory"] == sum(array.nbytes for array in sealed.memory().arrays.values())
    assert set(sealed.memory().arrays) == {MEAN, FACTORS}
    assert not (sealed.folder / ".inprogress").exists()


def test_the_sealed_statistics_are_those_of_the_train_crops_alone(run, sites):
    run.learn(sites[0], method="metric")
    found, wanted = run.statistics()[sites[0].name], by_hand(run, sites[0])
    assert_allclose(found.mean, wanted.mean, atol=1e-3)
    assert_allclose(found.covariance, wanted.covariance, atol=1e-3)


def test_the_same_run_seals_the_same_bytes(tmp_path, sites):
    found = []
    for name in ("one", "other"):
        run = Run.create(tmp_path / name, build_config(SETTINGS))
        run.learn(sites[0], method=MEASURED)
        found.append((run.steps[1].folder / "memory.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_measured_step_learns_what_the_same_method_learns_without_a_metric(tmp_path, sites):
    states = []
    for method in (MEASURED, MEASURED.model_copy(update={"metric": ()})):
        run = Run.create(tmp_path / f"run{len(states)}", build_config(SETTINGS))
        for site in sites[:2]:
            run.learn(site, method=method)
        states.append(weights(run))
    assert same(*states)


def test_a_site_is_embedded_and_scored_in_its_own_metric_and_others_are_not(run, sites):
    run.learn(sites[0], method="metric")
    crops = run.stores.get(sites[0], sites[0].query).crops
    plain = run.embedder(-1)(crops)
    wanted = Metric.own(run.statistics()[sites[0].name])(plain)
    assert_allclose(run.served(-1)(sites[0])(crops), wanted, atol=1e-6)
    assert np.array_equal(run.served(-1)(sites[1])(crops), plain)
    assert np.array_equal(run.served(-1, measured=False)(sites[0])(crops), plain)
    run.fill_scores(sites[:2])
    assert run.scores.cells[1, sites[0].name].scores["mAP"] == pytest.approx(
        evaluate(sites[0], run.served(1)(sites[0]), run.stores).mAP
    )
    assert run.scores.cells[1, sites[1].name].scores == run.scores.cells[0, sites[1].name].scores


def test_statistics_follow_the_model_through_every_transport(run, sites):
    for site in sites:
        run.learn(site, method=MEASURED)
    transports = [step.transport() for step in run.steps[1:]]
    first = run.steps[1].memory()
    wanted = SiteStatistics.from_arrays(renewed(first, transports[1:]).arrays)
    assert_allclose(run.statistics()[sites[0].name].covariance, wanted.covariance, atol=1e-6)
    at_two = SiteStatistics.from_arrays(renewed(first, transports[1:2]).arrays)
    assert_allclose(run.statistics(2)[sites[0].name].covariance, at_two.covariance, atol=1e-6)
    assert list(run.statistics(2)) == [site.name for site in sites[:2]]
    sealed = SiteStatistics.from_arrays(first.arrays)
    assert_allclose(run.statistics(1)[sites[0].name].covariance, sealed.covariance, atol=1e-6)


def test_a_later_step_that_only_measures_leaves_earlier_sites_as_they_were(run, sites):
    run.learn(sites[0], method=MEASURED)
    before = run.statistics()[sites[0].name]
    run.learn(sites[1], method="metric")
    assert np.array_equal(run.statistics()[sites[0].name].factors, before.factors)
    run.fill_scores(sites[:2])
    assert run.scores.cells[2, sites[0].name].scores == run.scores.cells[1, sites[0].name].scores


def test_what_a_step_serves_as_before_is_not_computed_again(run, sites, monkeypatch):
    run.learn(sites[0], method="metric")
    run.fill_scores(sites)
    run.learn(sites[1], method="metric")
    embedded = []
    embedder = run.embedder

    def counted(*words):
        embed = embedder(*words)
        return lambda crops: embedded.append(len(crops)) or embed(crops)

    monkeypatch.setattr(run, "embedder", counted)
    run.fill_scores(sites)
    assert embedded == [len(sites[1].query), len(sites[1].gallery)], "only the site that was measured now"
    monkeypatch.undo()
    again = Run.open(run.folder)
    for site in sites:
        wanted = evaluate(site, again.served(2)(site), again.stores).to_dict()
        assert again.scores.cells[2, site.name].scores == pytest.approx(wanted)


def test_galleries_follow_a_step_that_only_measures_and_need_no_transport_for_it(run, sites):
    for site, method in zip(sites, (MEASURED, "metric", MEASURED), strict=True):
        run.learn(site, method=method)
    found = run.evaluate_without_reindexing(sites)
    assert all(row["carried"] is not None for row in found.values())
    assert found[sites[2].name]["carried"] == found[sites[2].name]["reindexed"]


def test_a_carried_gallery_is_taken_out_of_its_old_metric_first(run, sites):
    """By hand: what a gallery holds is the old metric's; undone, carried, and put into the last one's."""
    for site in sites[:2]:
        run.learn(site, method=MEASURED)
    name = sites[0].name
    old, new = Metric.own(run.statistics(1)[name]), Metric.own(run.statistics(2)[name])
    transport = run.steps[2].transport()

    def gallery(crops):
        return new(transport(old.undone(old(run.embedder(1)(crops)))))

    wanted = evaluate(sites[0], run.served(2)(sites[0]), run.stores, gallery_embed=gallery).mAP
    assert run.evaluate_without_reindexing(sites)[name]["carried"] == pytest.approx(wanted, abs=0.2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("site:nowhere", "has no statistics of 'nowhere'"),
        ("mixed:nowhere", "has no statistics of 'nowhere'"),
        ("cosine", "a metric is one of none, pooled, site:NAME, mixed:NAME"),
        ("site", "a metric is one of"),
        ("", "a metric is one of"),
        ("pooled:north", "a metric is one of"),
    ],
)
def test_metrics_that_are_not_there_are_refused_in_one_line(run, sites, name, said):
    run.learn(sites[0], method="metric")
    with pytest.raises(UsageError, match=said):
        run.metric(name)


def test_metrics_by_name(run, sites):
    with pytest.raises(UsageError, match="no site's statistics"):
        run.metric("pooled")
    for site in sites[:2]:
        run.learn(site, method="metric")
    known = run.statistics()
    crops = run.embedder(-1)(run.stores.get(sites[2], sites[2].query).crops)
    name = sites[1].name
    for asked, wanted in (
        ("pooled", Metric.pooled(list(known.values()))),
        (f"site:{name}", Metric.own(known[name])),
        (f"mixed:{name}", Metric.mixed(known[name], list(known.values()))),
    ):
        assert np.array_equal(run.metric(asked)(crops), wanted(crops))
    assert run.metric("none") is None


def test_forgetting_a_site_erases_its_statistics(run, sites):
    for site in sites[:2]:
        run.learn(site, method="metric")
    run.forget(domain=sites[0].name)
    assert list(run.statistics()) == [sites[1].name]
    assert run.steps[1].memory().arrays == {}
    assert np.array_equal(run.metric("pooled").mean, Metric.own(run.statistics()[sites[1].name]).mean)


def test_a_site_where_nobody_has_two_crops_gets_no_metric_and_says_so(run, tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    first = np.unique(site.train.pids, return_index=True)[1]
    sealed = run.learn(replace(site, train=site.train.take(first)), method="metric")
    assert "the site gets no metric of its own: no person has two crops" in sealed.card["notes"]
    assert run.statistics() == {}
    assert run.served(-1)(site)(run.stores.get(site, site.query).crops).shape[1] == 32


def test_where_a_persons_crops_do_not_differ_they_are_augmented_first(run, tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    twice = np.repeat(np.unique(site.train.pids, return_index=True)[1], 2)
    sealed = run.learn(replace(site, train=site.train.take(twice)), method="metric")
    assert [note for note in sealed.card["notes"] if "augmented crops" in note]
    assert run.statistics()[site.name].factors.any()


def test_without_any_difference_a_site_gets_no_metric_and_says_so(tmp_path, tiny_domain):
    config = build_config(SETTINGS, {"augment": {"flip": 0, "shift": 0, "erase": 0}})
    run, site = Run.create(tmp_path / "run", config), tiny_domain(tmp_path / "site")
    twice = np.repeat(np.unique(site.train.pids, return_index=True)[1], 2)
    sealed = run.learn(replace(site, train=site.train.take(twice)), method="metric", config=config)
    assert [note for note in sealed.card["notes"] if "gets no metric of its own" in note]
    assert run.statistics() == {}


# ---------------------------------------------------------------------------------------------------------- one gallery


def test_one_gallery_of_one_site_is_that_sites_own(run, sites):
    run.learn(sites[0], method="metric")
    found = Retrieval.of(sites[0], run.embedder(-1), run.stores)
    own = score_union({"north": found}, lambda name: run.metric(f"site:{sites[0].name}"))["north"]
    wanted = evaluate(sites[0], run.served(-1)(sites[0]), run.stores)
    assert own.to_dict() == wanted.to_dict()


def test_in_one_gallery_other_sites_crops_are_strangers(run, sites):
    """By definition: each query against all crops, right where site and person are the same, its own camera apart."""
    found = {site.name: Retrieval.of(site, run.embedder(-1), run.stores) for site in sites}
    scores = score_union(found)
    for name, one in found.items():
        precisions = []
        for vector, person, camera in zip(one.asked, one.people[0].pids, one.people[0].camids, strict=True):
            ranked = []
            for other, there in found.items():
                for held, who, where in zip(there.held, there.people[1].pids, there.people[1].camids, strict=True):
                    if who < 0 or (other == name and who == person and where == camera):
                        continue
                    ranked.append((float(vector @ held), other == name and who == person))
            hits = np.array([right for _, right in sorted(ranked, key=lambda item: -item[0])])
            if hits.any():
                ranks = np.flatnonzero(hits) + 1
                precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        assert scores[name].mAP == pytest.approx(100 * np.mean(precisions), abs=1e-3)
        assert scores[name].mAP <= evaluate_alone(one) + 1e-6


def evaluate_alone(found):
    return found.scores().mAP


def test_only_the_sites_that_ask_are_scored_each_in_the_metric_named_for_it(run, sites):
    for site in sites[:2]:
        run.learn(site, method="metric")
    found = {site.name: Retrieval.of(site, run.embedder(-1), run.stores) for site in sites}
    asked = []

    def metric(name):
        asked.append(name)
        return run.metric("pooled")

    assert list(score_union(found, metric, [sites[1].name])) == asked == [sites[1].name]


# -------------------------------------------------------------------------------------------------------------- methods


def test_a_method_without_a_metric_is_written_as_before():
    assert "metric" not in read_method("default").model_copy(update={"metric": ()}).model_dump(mode="json")
    assert read_method("metric").model_dump(mode="json")["metric"] == [{"within_person": {}}]
    assert Method.model_validate(read_method("metric").model_dump(mode="json")) == read_method("metric")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "needs terms to learn from, or a metric"),
        ({"metric": []}, "needs terms to learn from, or a metric"),
        ({"metric": ["within_person"], "fusion": ["average"]}, "nothing to fuse"),
        ({"metric": ["within_person"], "transport": ["ridge"]}, "nothing to fuse"),
    ],
)
def test_a_method_that_does_nothing_is_refused(body, said):
    with pytest.raises(ConfigError, match=said) as caught:
        validated(Method, {"name": "made up", "about": "x", **body}, "method made up")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError):
        Method.model_validate({"name": "made up", "about": "x", **body})


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (["within_persn"], "did you mean 'within_person'"),
        ([{"within_person": {"rnk": 3}}], "did you mean 'rank'"),
        ([{"within_person": {"rank": 0}}], "rank must be positive"),
        ([{"within_person": {"pairs": 1.5}}], "pairs must be a whole number"),
        (["within_person", "within_person"], "listed 2 times"),
    ],
)
def test_mistakes_in_a_metric_are_told_before_any_training(metric, said):
    method = Method.model_validate({"name": "made up", "about": "x", "metric": metric})
    with pytest.raises(ConfigError, match=said):
        check_metric(method.metric)


# -------------------------------------------------------------------------------------------------------------- routes

HYPERNETWORK = {"hypernetwork": {"use": "beside", "chunk": 256, "hidden": 8}}
ADAPTED = Method.model_validate({**MEASURED.model_dump(), "adapter": ["cross_entropy", HYPERNETWORK]})


def test_a_step_that_only_measures_leaves_sites_their_own_networks(run, sites):
    run.learn(sites[0], method=ADAPTED)
    crops = run.stores.get(sites[0], sites[0].query).crops
    before, shared = run.served(-1)(sites[0])(crops), run.embedder(-1)(crops)
    plain = run.served(-1, measured=False)(sites[0])(crops)
    assert not np.allclose(plain, shared, atol=1e-4), "the site has a network of its own"
    run.learn(sites[1], method="metric")
    assert np.array_equal(run.served(-1)(sites[0])(crops), before)
    assert run.taught().index == 1
    run.learn(sites[2], method=ADAPTED)
    assert run.taught().index == 3
    after = run.served(-1, measured=False)(sites[0])(crops)
    assert not np.allclose(after, run.embedder(-1)(crops), atol=1e-4), "and keeps it when the next site is learned"
    assert run.route(sites[1]) is None
