"""One gallery of many sites: a pooled bundle carries their statistics, and a query is answered in its site's metric."""

import json
import shutil

import numpy as np
import pytest
from drawing import draw_tiny_domain
from numpy.testing import assert_allclose
from running import SETTINGS

import domains
from deploy import Bundle, Encoder, Gallery
from deploy.answers.refine import Refinement, search
from deploy.answers.site_metric import SiteMetrics
from deploy.answers.thresholds import Thresholds, answer
from deploy.answers.transitions import Sighting, Transitions
from deploy.bundle.signature import make_key
from deploy.gallery import open_or_create
from domains.artefact import content_id
from domains.errors import ArtefactError, GalleryError, UsageError
from domains.reranking import k_reciprocal
from prototypes.metric import sites_to_bytes
from reid.config import build_config
from reid.export import Provenance, Serving, export_run
from reid.run import Run

pytest.importorskip("faiss", reason="FAISS is not installed")
HALF = 3e-3


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    root = tmp_path_factory.mktemp("sites")
    return [domains.open(draw_tiny_domain(root / name, seed=seed)) for seed, name in enumerate(("north", "south", "w"))]


@pytest.fixture(scope="module")
def run(sites, tmp_path_factory):
    run = Run.create(tmp_path_factory.mktemp("runs") / "run", build_config(SETTINGS))
    for site in sites:
        run.learn(site, method="metric")
    return run


@pytest.fixture(scope="module")
def bundles(run, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    for name, serving in {
        "pooled": Serving(metric="pooled"),
        "slim": Serving(metric="pooled", sites=False),
        "own": Serving(metric="site:north"),
        "none": Serving(metric="none"),
    }.items():
        export_run(run, root / name, serving=serving)
    return root


@pytest.fixture(scope="module")
def shown(run, sites):
    """Crops of all sites, and the site of each."""
    found = [run.stores.get(site, site.gallery).crops for site in sites]
    return np.concatenate(found), [site.name for site, crops in zip(sites, found, strict=True) for _ in crops]


@pytest.fixture(scope="module")
def asked(run, sites):
    return run.stores.get(sites[0], sites[0].query).crops


@pytest.fixture
def gallery(bundles, shown, tmp_path):
    with filled(tmp_path / "gallery", bundles / "pooled", shown) as opened:
        yield opened


def filled(folder, bundle, shown):
    gallery = open_or_create(folder, bundle)
    crops, names = shown
    times = [f"2026-01-01T00:00:{number % 60:02d}Z" for number in range(len(crops))]
    gallery.add(Encoder.load(bundle)(crops), names, [f"{number}.jpg" for number in range(len(crops))], times)
    return gallery


def in_site(bundles, name="north"):
    return Refinement(site=SiteMetrics(Bundle.load(bundles / "pooled")).of(name))


def oracle(run, name, shown, asked):
    """Cosines ``[Q, G]`` of everything embedded by the network without a metric, then put into the mixed one."""
    mixed, embed = run.metric(f"mixed:{name}"), run.embedder(-1)
    return mixed(embed(asked)) @ mixed(embed(shown[0])).T


def check(found, scores):
    """Scores are those of the oracle within fp16, and the order is theirs, wherever they differ by more."""
    for matches, row in zip(found, scores, strict=True):
        assert [match.rank for match in matches] == list(range(1, len(matches) + 1))
        wanted = row[[match.id - 1 for match in matches]]
        assert_allclose([match.score for match in matches], wanted, atol=HALF)
        assert (np.diff(wanted) < 2 * HALF).all()
        assert min(wanted, default=1) >= np.sort(row)[::-1][len(matches) - 1] - 2 * HALF


# --------------------------------------------------------------------------------------------------------- in a bundle


def test_a_pooled_bundle_carries_the_statistics_of_its_sites(run, bundles):
    wanted, found = run.statistics(), Bundle.load(bundles / "pooled").sites()
    assert list(found) == list(wanted) == ["north", "south", "w"]
    for name, site in found.items():
        assert_allclose(site.mean, wanted[name].mean, atol=1e-3)
        assert_allclose(site.covariance, wanted[name].covariance, atol=1e-3)
    size = (bundles / "pooled" / "sites.npz").stat().st_size
    card = (bundles / "pooled" / "CARD.md").read_text()
    assert f"| statistics of sites | north, south, w: {size / 1000:.0f} kB" in card


@pytest.mark.parametrize("name", ["slim", "own", "none"])
def test_others_carry_none(bundles, name):
    assert Bundle.load(bundles / name).sites() == {}
    assert not (bundles / name / "sites.npz").exists()
    assert "statistics of sites" not in (bundles / name / "CARD.md").read_text()
    with pytest.raises(UsageError, match="has no statistics of sites: export it with --metric pooled"):
        SiteMetrics(Bundle.load(bundles / name)).of("north")


def test_with_or_without_them_a_bundle_has_the_same_feature_space(bundles):
    assert Bundle.load(bundles / "slim").feature_space == Bundle.load(bundles / "pooled").feature_space


def test_a_bundle_of_before_opens(bundles, tmp_path):
    shutil.copytree(bundles / "slim", tmp_path / "bundle")
    reseal(
        tmp_path / "bundle",
        lambda body: (body.update(schema=2), body.pop("metric"), body["files"].pop("metric.npz")),
    )
    (tmp_path / "bundle" / "metric.npz").unlink()
    assert Bundle.load(tmp_path / "bundle").sites() == {}


def test_a_signature_covers_them(run, tmp_path):
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    make_key(tmp_path / "maker.key")
    export_run(run, tmp_path / "bundle", provenance=Provenance(key=tmp_path / "maker.key"))
    assert len(Bundle.load(tmp_path / "bundle", trusted=tmp_path / "maker.key.pub").sites()) == 3
    file = tmp_path / "bundle" / "sites.npz"
    file.write_bytes(sites_to_bytes({"north": run.statistics()["south"]}))
    reseal(tmp_path / "bundle", lambda body: None)
    with pytest.raises(ArtefactError, match="was changed after it was signed"):
        Bundle.load(tmp_path / "bundle")


def reseal(folder, change):
    """Change a manifest as someone would who can compute hashes."""
    import hashlib

    file = folder / "bundle.json"
    body = json.loads(file.read_text())
    body["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in body["files"]
        if (folder / name).exists()
    }
    change(body)
    del body["id"]
    file.write_text(json.dumps({"id": content_id(body), **body}))


def test_changed_statistics_are_noticed(bundles, tmp_path):
    shutil.copytree(bundles / "pooled", tmp_path / "bundle")
    file = tmp_path / "bundle" / "sites.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"sites\.npz was changed after it was sealed"):
        Bundle.load(tmp_path / "bundle")
    with pytest.raises(ArtefactError, match=r"sites\.npz was changed after it was sealed"):
        Bundle.load(tmp_path / "bundle", verify=False).sites()


def damaged(arrays, **changes):
    return {name: changes.get(name.split(".")[-1], lambda array: array)(array) for name, array in arrays.items()}


def spoilt(array, value):
    array = array.copy()
    array.flat[0] = value
    return array


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {},
        lambda arrays: dict(list(arrays.items())[:-1]),
        lambda arrays: {**arrays, "3.metric.mean": arrays["0.metric.mean"]},
        lambda arrays: damaged(arrays, mean=lambda array: array[:-1]),
        lambda arrays: damaged(arrays, mean=lambda array: array[None]),
        lambda arrays: damaged(arrays, mean=lambda array: array.astype(np.float32)),
        lambda arrays: damaged(arrays, mean=lambda array: array * 0 + 1),
        lambda arrays: damaged(arrays, mean=lambda array: spoilt(array, np.nan)),
        lambda arrays: damaged(arrays, factors=lambda array: array[:, :-1]),
        lambda arrays: damaged(arrays, factors=lambda array: array[0]),
        lambda arrays: damaged(arrays, factors=lambda array: array.astype(np.float64)),
        lambda arrays: damaged(arrays, factors=lambda array: np.zeros((33, 32), np.float16)),
        lambda arrays: damaged(arrays, factors=lambda array: spoilt(array, np.inf)),
        lambda arrays: damaged(arrays, factors=lambda array: array * 0 + 1),
    ],
)
def test_statistics_that_are_none_are_refused_in_one_line(bundles, tmp_path, change):
    shutil.copytree(bundles / "pooled", tmp_path / "bundle")
    file = tmp_path / "bundle" / "sites.npz"
    with np.load(file) as stored:
        arrays = change(dict(stored))
    np.savez(file, **arrays)
    reseal(tmp_path / "bundle", lambda body: None)
    with pytest.raises(ArtefactError, match=r"sites\.npz can't be read") as caught:
        Bundle.load(tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert "export the bundle again" in str(caught.value)


def test_pickled_statistics_are_not_opened(bundles, tmp_path):
    shutil.copytree(bundles / "pooled", tmp_path / "bundle")
    file = tmp_path / "bundle" / "sites.npz"
    with np.load(file) as stored:
        np.savez(file, **{name: np.array([object()], object) for name in stored.files})
    reseal(tmp_path / "bundle", lambda body: None)
    with pytest.raises(ArtefactError, match="not numbers or text"):
        Bundle.load(tmp_path / "bundle")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["metric"].pop("sites"),
        lambda body: body["metric"].update(sites=[]),
        lambda body: body["metric"].update(sites=["north", "south"]),
        lambda body: body["metric"].update(sites=["north", "south", "north"]),
        lambda body: body["metric"].update(sites=["north", "south", 3]),
        lambda body: body["metric"].update(sites=["north", "south", ["w"]]),
        lambda body: body["metric"].update(sites=["north", "south", " "]),
        lambda body: body["metric"].update(sites=["north", "south", "w" * 256]),
        lambda body: body["metric"].update(sites="now"),
        lambda body: body["metric"].update(sites={"north": 1}),
        lambda body: body["metric"].update(sites=[str(number) for number in range(1025)]),
        lambda body: body["metric"].update(name="site:north"),
        lambda body: body.update(metric=["sites"]),
        lambda body: body["files"].pop("sites.npz"),
        lambda body: (body.pop("metric"), body["files"].pop("metric.npz")),
    ],
)
def test_a_manifest_whose_sites_are_not_right_is_refused_in_one_line(bundles, tmp_path, change):
    shutil.copytree(bundles / "pooled", tmp_path / "bundle")
    reseal(tmp_path / "bundle", change)
    with pytest.raises(ArtefactError) as caught:
        Bundle.load(tmp_path / "bundle")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", ["north", "south"])
def test_answers_are_those_of_the_mixed_metric(run, bundles, gallery, shown, asked, name):
    embedded = Encoder.load(bundles / "pooled")(asked)
    for k in (3, len(shown[0])):
        found = search(gallery, embedded, k, in_site(bundles, name))
        assert [len(matches) for matches in found] == [k] * len(asked)
        check(found, oracle(run, name, shown, asked))
        assert {(match.metric, match.ranked_by) for row in found for match in row} == {(f"mixed:{name}", "cosine")}
    plain = gallery.search(embedded, len(shown[0]))
    for row, pooled in zip(found, plain, strict=True):
        assert {match.id: match.pooled for match in row} == {match.id: match.score for match in pooled}
        assert {match.metric for match in pooled} == {None}
    differ = [[m.id for m in row] != [m.id for m in pooled] for row, pooled in zip(found, plain, strict=True)]
    assert any(differ)


def test_what_is_stored_is_moved_exactly(run, bundles, gallery, asked):
    embedded = Encoder.load(bundles / "pooled")(asked)
    numbers, stored = gallery.vectors(gallery.ids())
    out, into = Bundle.load(bundles / "pooled").metric(), run.metric("mixed:north")
    scores = into(out.undone(np.asarray(embedded))) @ into(out.undone(np.asarray(stored))).T
    for matches, row in zip(search(gallery, embedded, 10, in_site(bundles)), scores, strict=True):
        wanted = sorted(zip(-row, numbers, strict=True))[:10]
        assert_allclose([match.score for match in matches], [-score for score, _ in wanted], atol=1e-3)
    assert_allclose(out(out.undone(np.asarray(stored))), np.asarray(stored), atol=1e-5)


def test_a_gallery_that_came_from_another_metric(run, bundles, shown, asked, tmp_path):
    with filled(tmp_path / "gallery", bundles / "own", shown) as gallery:
        with pytest.raises(GalleryError, match="the gallery's"):
            search(gallery, Encoder.load(bundles / "pooled")(asked), 5, in_site(bundles))
        with pytest.raises(GalleryError, match="mixed:north is of another feature space"):
            search(gallery, Encoder.load(bundles / "own")(asked), 5, in_site(bundles))
        gallery.upgrade(bundles / "pooled")
        found = search(gallery, Encoder.load(bundles / "pooled")(asked), len(shown[0]), in_site(bundles))
        check(found, oracle(run, "north", shown, asked))


def test_a_gallery_of_a_bundle_without_statistics_is_asked_with_one_that_has_them(run, bundles, shown, asked, tmp_path):
    with filled(tmp_path / "gallery", bundles / "slim", shown) as gallery:
        found = search(gallery, Encoder.load(bundles / "pooled")(asked), 7, in_site(bundles))
        check(found, oracle(run, "north", shown, asked))


def test_candidates_are_the_pooled_metrics_ten_for_each_match(bundles, gallery, asked, monkeypatch):
    sizes, plain = [], Gallery.search
    monkeypatch.setattr(
        Gallery, "search", lambda self, vectors, k, **more: sizes.append(k) or plain(self, vectors, k, **more)
    )
    embedded = Encoder.load(bundles / "pooled")(asked[:1])
    wanted = in_site(bundles)
    for k in (1, 20, 30):
        search(gallery, embedded, k, wanted)
    search(gallery, embedded, 1, Refinement(site=wanted.site, rerank=True, depth=500))
    assert sizes == [200, 200, 300, 500]


def test_filters_narrow_the_candidates(run, bundles, gallery, shown, asked):
    found = search(gallery, Encoder.load(bundles / "pooled")(asked), 100, in_site(bundles), camera="south")
    allowed = [number for number, name in enumerate(shown[1]) if name == "south"]
    for matches, row in zip(found, oracle(run, "north", shown, asked), strict=True):
        assert {match.id - 1 for match in matches} == set(allowed)
        assert_allclose([match.score for match in matches], row[[match.id - 1 for match in matches]], atol=HALF)


@pytest.mark.parametrize("together", ["mean", "max"])
def test_several_images_are_one_query(run, bundles, gallery, shown, asked, together):
    wanted = Refinement(site=in_site(bundles).site, together=together)
    (found,) = search(gallery, Encoder.load(bundles / "pooled")(asked[:3]), len(shown[0]), wanted)
    scores = oracle(run, "north", shown, asked[:3])
    check([found], [scores.mean(0) if together == "mean" else scores.max(0)])


def test_reranking_takes_neighbours_in_the_mixed_metric(run, bundles, gallery, shown, asked):
    embedded = Encoder.load(bundles / "pooled")(asked[:4])
    site, settings, depth = in_site(bundles).site, {"k1": 6, "k2": 3}, 12
    found = search(gallery, embedded, 12, Refinement(site=site, rerank=True, depth=depth, **settings))
    plain = search(gallery, embedded, depth, Refinement(site=site))
    for query, matches, before in zip(np.asarray(embedded), found, plain, strict=True):
        by_id = dict(zip(*gallery.vectors([match.id for match in before]), strict=True))
        stored = site.passage(np.stack([np.asarray(by_id[match.id]) for match in before]))
        closeness = k_reciprocal(site.passage(query[None]), stored, **settings)[0]
        order = np.argsort(-closeness, kind="stable")
        assert [match.id for match in matches] == [before[index].id for index in order]
        assert {match.ranked_by for match in matches} == {"k-reciprocal"}
        assert {match.id: match.score for match in matches} == {match.id: match.score for match in before}


def test_impossible_matches_come_last(bundles, gallery, asked):
    wanted = Refinement(
        site=in_site(bundles).site,
        seen=Sighting("gate", "2026-01-01T00:00:10Z"),
        transitions=Transitions({("gate", "south"): ((0, 5),)}),
    )
    for matches in search(gallery, Encoder.load(bundles / "pooled")(asked), 200, wanted):
        ruled_out = [match.possible is False for match in matches]
        assert any(ruled_out)
        assert ruled_out == sorted(ruled_out)
        assert {match.metric for match in matches} == {"mixed:north"}


def test_expansion_is_refused(bundles):
    with pytest.raises(UsageError, match="leave out one of them"):
        Refinement(site=in_site(bundles).site, expand=3)


def test_entries_forgotten_meanwhile_are_left_out(bundles, gallery, asked, monkeypatch):
    plain = Gallery.vectors

    def late(self, ids):
        numbers, vectors = plain(self, ids)
        return numbers[1:], vectors[1:]

    monkeypatch.setattr(Gallery, "vectors", late)
    found = search(gallery, Encoder.load(bundles / "pooled")(asked), 200, in_site(bundles))
    assert all(1 not in {match.id for match in matches} for matches in found)
    monkeypatch.setattr(Gallery, "vectors", lambda self, ids: ([], plain(self, ids)[1][:0]))
    assert search(gallery, Encoder.load(bundles / "pooled")(asked[:1]), 5, in_site(bundles)) == [[]]


def test_an_empty_gallery_has_no_answer(bundles, asked, tmp_path):
    with open_or_create(tmp_path / "empty", bundles / "pooled") as gallery:
        assert search(gallery, Encoder.load(bundles / "pooled")(asked[:2]), 5, in_site(bundles)) == [[], []]


def test_verdicts_are_of_the_pooled_score(bundles, gallery, asked):
    found = search(gallery, Encoder.load(bundles / "pooled")(asked[:1]), 200, in_site(bundles))[0]
    limit = float(np.median([match.pooled for match in found]))
    judged = Thresholds(limit, limit, "made up").judge(found)
    assert [match.verdict == "same person" for match in judged] == [match.pooled >= limit for match in judged]
    assert any((match.verdict == "same person") != (match.score >= limit) for match in judged)
    assert answer(judged) == "same person"


@pytest.mark.parametrize(
    ("name", "hint"), [("nort", "did you mean 'north'"), ("x" * 300, "it has 'north', 'south', 'w'")]
)
def test_an_unknown_site_is_one_line_with_the_nearest(bundles, name, hint):
    with pytest.raises(UsageError, match=hint) as caught:
        SiteMetrics(Bundle.load(bundles / "pooled")).of(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
