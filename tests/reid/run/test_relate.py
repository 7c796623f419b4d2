"""What is said of a new domain before training, and in which order several are proposed."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import reid.run.relate
from domains.domain import JUNK, Split
from domains.errors import ConfigError, DataError, UsageError
from domains.transferability import h_score
from prototypes.metric import Metric, SiteStatistics, pairs_of_crops
from reid.config import build_config
from reid.run import Run
from reid.run.metrics import in_metric
from reid.run.relate import metric_gain, order_domains, picture, predict, relate
from reid.run.stream import in_proposed_order
from reid.scores.evaluate import evaluate

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 16},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 3, "identities": 4, "instances": 2},
    "method": "fine_tune",
}


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    file = tmp_path / "pair_study.json"
    file.write_text(json.dumps({"weights": [1.0, 0.0, 0.5], "error": 7.0, "pairs": 20}))
    monkeypatch.setattr(reid.run.relate, "STUDY", file)
    return file


@pytest.fixture
def sites(tiny_domain, tmp_path):
    return [tiny_domain(tmp_path / name, seed=number) for number, name in enumerate(("one", "two", "new", "other"))]


@pytest.fixture
def run(sites, tmp_path):
    config = build_config(SETTINGS)
    made = Run.create(tmp_path / "run", config)
    for site in sites[:2]:
        made.learn(site, config=config)
    made.fill_scores(sites[:2])
    return made


def test_each_learned_domain_is_weighed_by_the_h_score_of_its_own_steps_model(run, sites):
    found = relate(run, sites[2])
    store = run.stores.get(sites[2], sites[2].train)
    for number, name in ((1, "one"), (2, "two")):
        near = next(near for near in found.helps if near.domain == name)
        assert near.score == pytest.approx(h_score(run.embedder(number)(store.crops), store.split.pids).share, rel=1e-4)
    assert sum(near.share for near in found.helps) == pytest.approx(1)
    assert [near.share for near in found.helps] == sorted((near.share for near in found.helps), reverse=True)
    assert found.score == pytest.approx(next(near.score for near in found.helps if near.domain == "two"))
    assert found.predicted.mAP == pytest.approx(1 + 0.5 * found.found)
    assert found.learned == run.scores.summary()["plasticity"]["mAP"]
    assert found.serves == (found.predicted.mAP - 7 >= found.learned)
    assert json.loads(json.dumps(found.to_dict()))["predicted"]["error"] == 7
    assert found == relate(run, sites[2])


def test_nothing_is_trained_or_written(run, sites):
    files = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    relate(run, sites[2])
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == files


def test_before_anything_is_learned_nothing_can_help(sites, tmp_path):
    found = relate(Run.create(tmp_path / "fresh", build_config(SETTINGS)), sites[2])
    assert found.helps == ()
    assert found.serves is None
    assert "nothing can help" in found.lines()[0]
    ET.fromstring(picture(found))


def test_a_picture_names_every_domain_and_is_valid_whatever_their_names(run, sites):
    found = relate(run, sites[2])
    drawn = ET.fromstring(picture(reid.run.relate.Relation(**{**found.__dict__, "domain": "<a & b>"})))
    texts = "".join(drawn.itertext())
    assert "<a & b>" in texts
    assert "one" in texts
    assert "two" in texts


def test_a_learned_domain_and_one_without_pairs_are_refused(run, sites, tmp_path):
    with pytest.raises(UsageError, match="already learned"):
        relate(run, sites[0])
    new = sites[2]
    alone = np.unique(new.train.pids, return_index=True)[1]
    with pytest.raises(DataError, match="two or more crops"):
        relate(
            run, new.__class__("new", new.root, new.format, new.identities, new.cameras, train=new.train.take(alone))
        )
    with pytest.raises(DataError, match="two or more crops"):
        relate(run, new.__class__("new", new.root, new.format, new.identities, new.cameras, train=Split()))


def test_junk_and_lone_crops_have_no_say(run, sites):
    new = sites[2]
    plain = relate(run, new)
    more = Split(
        (*new.train.paths, new.train.paths[0]),
        np.append(new.train.pids, JUNK),
        np.append(new.train.camids, new.train.camids[0]),
    )  # the store reads the file again
    assert relate(
        run, new.__class__("new", new.root, new.format, new.identities, new.cameras, train=more)
    ).score == pytest.approx(plain.score)


@pytest.fixture
def small_sample(monkeypatch):
    monkeypatch.setattr(reid.run.relate, "CROPS", 10)
    monkeypatch.setattr(reid.run.relate, "MOST", 4)


@pytest.fixture
def looked_at(monkeypatch):
    """Domains that were scored."""
    found, evaluate = [], reid.run.relate.evaluate

    def kept(domain, *rest):
        found.append(domain)
        return evaluate(domain, *rest)

    monkeypatch.setattr(reid.run.relate, "evaluate", kept)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_of_a_large_domain_people_are_drawn_and_none_is_left_with_one_crop(
    sites, tmp_path, small_sample, looked_at, seed
):
    run = Run.create(tmp_path / "fresh", build_config({**SETTINGS, "seed": seed}))
    found = relate(run, sites[2])
    assert found.crops == 8, "two people of four crops each are what fits in ten"
    (own,) = looked_at
    assert own.same_camera == "drop"
    assert (len(own.query), len(own.gallery), len(own.train)) == (2, 6, 0)


def test_the_rule_is_the_whole_domains_whoever_is_drawn(sites, tmp_path, small_sample, looked_at):
    new, rules = sites[2], set()
    camids = new.train.camids.copy()
    camids[new.train.pids == new.train.pids[0]] = 0  # one person was seen by one camera
    mixed = new.__class__(
        "new", new.root, new.format, new.identities, new.cameras, train=Split(new.train.paths, new.train.pids, camids)
    )
    for seed in range(4):
        relate(Run.create(tmp_path / f"fresh{seed}", build_config({**SETTINGS, "seed": seed})), mixed)
        rules.add(looked_at[-1].same_camera)
    assert rules == {"keep"}


def drawn(pids, camids, seed=0):
    pids, camids = np.asarray(pids), np.asarray(camids)
    split = Split(tuple(map(str, range(len(pids)))), pids, camids)
    return reid.run.relate.drawn_rows(split, np.arange(len(pids)), np.random.default_rng(seed))


@pytest.mark.parametrize("people", [2, 10, 49, 50, 300, 1041])
def test_drawn_rows_are_whole_people_up_to_the_cap(people):
    draw = np.random.default_rng(people)
    each = np.maximum(2, draw.integers(2, 60, people) if people > 100 else draw.integers(200, 2000, people))
    pids = draw.permutation(np.repeat(np.arange(people), each))
    camids = draw.integers(0, 15, len(pids))
    rows = drawn(pids, camids)
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(rows, drawn(pids, camids))
    most = max(reid.run.relate.MOST, reid.run.relate.CROPS // people)
    assert reid.run.relate.CROPS - most < len(rows) <= reid.run.relate.CROPS or len(np.unique(pids[rows])) == people
    for person, count in zip(*np.unique(pids[rows], return_counts=True), strict=True):
        assert count == min(most, each[person])
        assert (
            len(np.unique(camids[rows][pids[rows] == person])) == len(np.unique(camids[pids == person]))
            or each[person] > most
        )
        assert len(np.unique(camids[rows][pids[rows] == person])) > 1 or len(np.unique(camids[pids == person])) == 1


def test_up_to_the_cap_every_crop_is_looked_at():
    pids = np.repeat(np.arange(1000), 2)
    assert np.array_equal(drawn(pids, pids % 3), np.arange(2000))


def test_a_camera_that_saw_someone_once_among_thousands_stays():
    pids, camids = np.repeat([0, 1], 3000), np.zeros(6000, np.int64)
    camids[[17, 5000]] = 1
    assert {17, 5000} <= set(drawn(pids, camids).tolist())


def test_an_order_decodes_only_what_it_looks_at(run, sites, small_sample, monkeypatch):
    asked, get = [], run.stores.get

    def counted(domain, split):
        asked.append(len(split))
        return get(domain, split)

    monkeypatch.setattr(run.stores, "get", counted)
    proposed, _ = order_domains(run, sites[2:])
    assert asked == [8, 8]
    assert {domain.name for domain in proposed} == {"new", "other"}
    assert proposed[0] in sites[2:], "the domains themselves, not what was looked at of them"


def test_a_damaged_study_is_told(study):
    score = h_score(np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2)
    study.write_text("{}")
    with pytest.raises(ConfigError, match="reinstall lifelong-reid"):
        predict(score, 50.0)
    study.unlink()
    with pytest.raises(ConfigError, match="reinstall lifelong-reid"):
        predict(score, 50.0)


def test_a_prediction_stays_a_percentage(study):
    score = h_score(np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2)
    study.write_text(json.dumps({"weights": [0, 0, 5.0], "error": 1.0, "pairs": 4}))
    assert predict(score, 90.0).mAP == 100
    assert predict(score, -90.0).mAP == 0


def test_an_order_keeps_what_is_learned_first_and_holds_all_the_rest(run, sites):
    proposed, table = order_domains(run, sites[2:])
    assert sorted(domain.name for domain in proposed) == ["new", "other"]
    assert table.shape == (2, 2)
    everyone = in_proposed_order(run, [sites[3], sites[1], sites[2], sites[0]])
    assert [domain.name for domain in everyone[:2]] == ["one", "two"]
    assert [domain.name for domain in everyone[2:]] == [domain.name for domain in proposed]


def test_a_stream_of_new_sites_alone_goes_on_from_what_is_learned(run, sites):
    names = run.learned
    assert names, "the fixture's run has learned something"
    new = [site for site in sites if site.name not in names]
    assert [domain.name for domain in in_proposed_order(run, new)][: len(names)] == names


def test_what_the_own_metric_would_give_is_measured_on_people_it_has_not_seen(run, sites):
    found = relate(run, sites[2])
    store = run.stores.get(sites[2], sites[2].train)
    vectors = run.embedder(-1)(store.crops)
    people = np.random.default_rng(run.config.seed).permutation(np.unique(store.split.pids))
    gains = []
    for half in (people[::2], people[1::2]):
        rest = np.flatnonzero(~np.isin(store.split.pids, half))
        pairs = pairs_of_crops(store.split.pids[rest], store.split.camids[rest], seed=run.config.seed)
        differences = vectors[rest][pairs[:, 0]] - vectors[rest][pairs[:, 1]]
        metric = Metric.own(SiteStatistics.of(vectors[rest], differences, len(people) - len(half)))
        held = sites[2].with_held_out({sites[2].identities[person] for person in half}).scored_as(sites[2].same_camera)
        embed = run.embedder(-1)
        plain = evaluate(held, embed, run.stores).mAP
        gains.append(evaluate(held, in_metric(embed, metric), run.stores).mAP - plain)
    assert found.metric == pytest.approx(np.clip(found.predicted.mAP + np.mean(gains), 0, 100), abs=1e-3)
    assert any("--method metric" in line for line in found.lines())


def test_with_too_few_people_no_metric_is_predicted():
    vectors = np.eye(6, dtype=np.float32)
    split = Split(tuple("abcdef"), np.array([0, 0, 1, 1, 2, 2]), np.zeros(6, np.int64))
    assert metric_gain(vectors, split, "keep") is None
    same = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)
    split = Split(tuple("abcdefgh"), np.repeat(np.arange(4), 2), np.zeros(8, np.int64))
    assert metric_gain(same, split, "keep") is None, "no person's crops differ"
