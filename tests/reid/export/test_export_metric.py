"""Bundles that end with a metric, and galleries that change from one metric of a network to another."""

import json
from itertools import pairwise

import numpy as np
import onnx
import pytest
from drawing import draw_tiny_domain
from numpy.testing import assert_allclose
from running import MEASURED, SETTINGS

import domains
from deploy import Bundle, Encoder, Gallery
from deploy.gallery import open_or_create
from domains.errors import ArtefactError, ExportError, GalleryError, UsageError
from reid.config import build_config
from reid.export import Serving, export_run
from reid.export.lowering import Lowering
from reid.run import Run


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    root = tmp_path_factory.mktemp("sites")
    return [domains.open(draw_tiny_domain(root / f"site{number}", seed=number)) for number in range(3)]


@pytest.fixture(scope="module")
def run(sites, tmp_path_factory):
    """Two sites measured, then a third learned and measured."""
    run = Run.create(tmp_path_factory.mktemp("runs") / "run", build_config(SETTINGS))
    for site, method in zip(sites, ("metric", "metric", MEASURED), strict=True):
        run.learn(site, method=method)
    return run


@pytest.fixture(scope="module")
def bundles(run, sites, tmp_path_factory):
    """One of each metric of the second step, and two of the third."""
    root = tmp_path_factory.mktemp("bundles")
    name = sites[0].name
    asked = {"none": "none", "pooled": "pooled", "own": f"site:{name}", "mixed": f"mixed:{name}"}
    for folder, metric in asked.items():
        export_run(run, root / folder, step=2, serving=Serving(metric=metric))
    export_run(run, root / "later", serving=Serving(metric="pooled"))
    export_run(run, root / "later_none", serving=Serving(metric="none"))
    return root


def crops(run, sites):
    return np.concatenate([run.stores.get(site, site.gallery).crops for site in sites])


@pytest.mark.parametrize("name", ["none", "pooled", "own", "mixed"])
def test_the_graph_gives_what_the_run_says(run, sites, bundles, name):
    bundle = Bundle.load(bundles / name)
    shown = crops(run, sites[:1])
    metric = run.metric(bundle.metric_name or "none", 2)
    plain = run.embedder(2)(shown)
    assert_allclose(
        np.asarray(Encoder.load(bundles / name)(shown)), plain if metric is None else metric(plain), atol=1e-5
    )
    assert min(bundle.manifest["parity"].values()) > 0.9999


def test_metrics_of_one_network_are_kin_in_spaces_of_their_own(bundles):
    opened = [Bundle.load(bundles / name) for name in ("none", "pooled", "own", "mixed")]
    assert len({bundle.feature_space for bundle in opened}) == 4
    assert {bundle.network for bundle in opened} == {opened[0].feature_space}
    assert opened[0].metric() is None
    assert Bundle.load(bundles / "later").network != opened[0].network


def test_the_metric_of_a_bundle_is_that_of_its_graph(run, sites, bundles):
    plain = np.asarray(Encoder.load(bundles / "none")(crops(run, sites)))
    for name in ("pooled", "own", "mixed"):
        found = np.asarray(Encoder.load(bundles / name)(crops(run, sites)))
        assert_allclose(Bundle.load(bundles / name).metric()(plain), found, atol=1e-5)


def test_the_metric_is_the_last_part_of_the_graph(bundles):
    nodes = {name: onnx.load(bundles / name / "model.onnx").graph.node for name in ("none", "own")}
    added = [node for node in nodes["own"] if node.name.startswith("/metric/")]
    assert added
    assert sum(node.op_type in ("MatMul", "Gemm") for node in added) == 2
    assert all("metric" not in node.name for node in nodes["none"])


def test_without_a_name_a_bundle_is_pooled_where_there_are_statistics(run, sites, tmp_path):
    assert export_run(run, tmp_path / "pooled").metric_name == "pooled"
    assert export_run(run, tmp_path / "start", step=0).metric_name == ""
    with pytest.raises(ExportError, match=f"or name its metric \\(site:{sites[0].name}\\)"):
        export_run(run, tmp_path / "none", serving=Serving(site=sites[0].name))
    with pytest.raises(UsageError, match="has no statistics of 'nowhere'"):
        export_run(run, tmp_path / "none", serving=Serving(metric="site:nowhere"))
    assert not (tmp_path / "none").exists()


def test_a_step_that_only_measures_needs_no_transport(sites, tmp_path):
    run = Run.create(tmp_path / "run", build_config(SETTINGS))
    for site, method in zip(sites, (MEASURED, "metric", MEASURED), strict=True):
        run.learn(site, method=method)
    first, second, third = run.steps[1:]
    assert first.feature_space == second.feature_space != third.feature_space
    for since in (None, 1, 2):
        transport = export_run(run, tmp_path / f"since{since}", serving=Serving(since=since)).transport()
        assert (transport.source, transport.target) == (second.feature_space, third.feature_space)
    measured = export_run(run, tmp_path / "measured", step=2)
    assert measured.network == first.feature_space
    assert measured.transport().source == run.steps[0].feature_space
    assert export_run(run, tmp_path / "same", step=2, serving=Serving(since=1)).transport() is None


def test_half_precision_ends_with_the_same_metric(run, sites, tmp_path):
    half = export_run(run, tmp_path / "half", serving=Serving(metric="pooled"), lowering=Lowering(half=True))
    whole = export_run(run, tmp_path / "whole", serving=Serving(metric="pooled"))
    assert (half.feature_space, half.network) == (whole.feature_space, whole.network)
    found, wanted = (np.asarray(Encoder.load(tmp_path / name)(crops(run, sites))) for name in ("half", "whole"))
    assert (found * wanted).sum(1).min() > 0.998


def test_eight_bits_keep_the_metric_in_float32(run, sites, tmp_path):
    made = export_run(run, tmp_path / "int8", serving=Serving(metric="pooled"), lowering=Lowering(int8=sites[0]))
    graph = onnx.load(tmp_path / "int8" / "model.onnx").graph
    quantised = {
        name for node in graph.node if "QuantizeLinear" in node.op_type for name in (*node.input, *node.output)
    }
    metric = [node for node in graph.node if node.name.startswith("/metric/")]
    assert metric
    assert not quantised & {name for node in metric for name in (*node.input, *node.output)}
    transport = made.transport()
    assert transport is None or transport.target == made.network
    assert made.metric_name == "pooled"


# ------------------------------------------------------------------------------------------------------------ galleries


def gallery_of(folder, bundle, shown):
    gallery = open_or_create(folder, bundle)
    gallery.add(Encoder.load(bundle)(shown), ["yard"] * len(shown), [f"{number}.jpg" for number in range(len(shown))])
    return gallery


def ranked(gallery, bundle, asked):
    return [[(match.id, match.score) for match in row] for row in gallery.search(Encoder.load(bundle)(asked), k=12)]


def same_order(found, wanted, within=2e-3):
    """Scores agree within fp16, and so does the order wherever scores differ by more."""
    for left, right in zip(found, wanted, strict=True):
        assert_allclose([score for _, score in left], [score for _, score in right], atol=within)
        scores = dict(right)
        assert all(
            scores[one] >= scores[other] - 2 * within
            for (one, _), (other, _) in pairwise(left)
            if one in scores and other in scores
        )


CHANGES = [(one, other) for one in ("none", "pooled", "own", "mixed") for other in ("none", "pooled", "own", "mixed")]


@pytest.mark.parametrize(("before", "after"), [pair for pair in CHANGES if pair[0] != pair[1]])
def test_between_metrics_of_one_network_nothing_is_lost(run, sites, bundles, tmp_path, before, after):
    shown, asked = crops(run, sites), run.stores.get(sites[0], sites[0].query).crops
    with gallery_of(tmp_path / "moved", bundles / before, shown) as moved:
        plan = moved.plan_upgrade(bundles / after)
        assert "nothing is lost" in plan.lines()[1]
        assert moved.upgrade(bundles / after) == len(shown)
        found = ranked(moved, bundles / after, asked)
        moved.verify()
    with gallery_of(tmp_path / "again", bundles / after, shown) as again:
        same_order(found, ranked(again, bundles / after, asked))


def test_there_and_on_and_back_again(run, sites, bundles, tmp_path):
    shown, asked = crops(run, sites), run.stores.get(sites[0], sites[0].query).crops
    with gallery_of(tmp_path / "gallery", bundles / "pooled", shown) as gallery:
        first = ranked(gallery, bundles / "pooled", asked)
        for name in ("own", "none", "mixed"):
            gallery.upgrade(bundles / name)
        gallery.drop_old()
        gallery.upgrade(bundles / "pooled")
        same_order(ranked(gallery, bundles / "pooled", asked), first, 5e-3)


def test_entries_added_since_go_back_too(run, sites, bundles, tmp_path):
    shown, asked = crops(run, sites), run.stores.get(sites[0], sites[0].query).crops
    with gallery_of(tmp_path / "gallery", bundles / "pooled", shown[:10]) as gallery:
        gallery.upgrade(bundles / "own")
        more = [f"{number}.jpg" for number in range(10, len(shown))]
        gallery.add(Encoder.load(bundles / "own")(shown[10:]), ["yard"] * len(more), more)
        gallery.go_back()
        found = ranked(gallery, bundles / "pooled", asked)
    with gallery_of(tmp_path / "again", bundles / "pooled", shown) as again:
        same_order(found, ranked(again, bundles / "pooled", asked))


def test_to_a_later_network_the_metric_is_taken_off_before_the_transport(run, sites, bundles, tmp_path):
    shown = crops(run, sites)
    with gallery_of(tmp_path / "gallery", bundles / "own", shown) as gallery:
        assert "1 transport, into the metric 'pooled'" in gallery.plan_upgrade(bundles / "later").lines()[0]
        gallery.upgrade(bundles / "later")
        carried = np.asarray(gallery.vectors(range(1, len(shown) + 1))[1])
    transport = Bundle.load(bundles / "later").transport()
    plain = np.asarray(Encoder.load(bundles / "none")(shown))
    wanted = Bundle.load(bundles / "later").metric()(transport(plain))
    assert (carried * wanted).sum(1).min() > 0.999


def test_a_gallery_made_without_its_bundle_learns_its_metric_from_one_that_is_named(run, sites, bundles, tmp_path):
    shown = crops(run, sites)
    own = Encoder.load(bundles / "own")
    with Gallery.create(tmp_path / "gallery", own.dim, own.feature_space) as gallery:
        gallery.add(own(shown), ["yard"] * len(shown), [f"{number}.jpg" for number in range(len(shown))])
        with pytest.raises(GalleryError, match="no transport leads on"):
            gallery.upgrade(bundles / "pooled")
        gallery.upgrade(bundles / "pooled", via=[bundles / "own"])
        carried = np.asarray(gallery.vectors(range(1, len(shown) + 1))[1])
    assert (carried * np.asarray(Encoder.load(bundles / "pooled")(shown))).sum(1).min() > 0.9999


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("metric"),
        lambda body: body.update(metric="pooled"),
        lambda body: body["metric"].pop("network"),
        lambda body: body["metric"].update(network="no hash"),
        lambda body: body["metric"].update(name=""),
        lambda body: body["metric"].update(name="two\nlines"),
        lambda body: body["metric"].update(name=7),
        lambda body: body["files"].pop("metric.npz"),
    ],
)
def test_a_manifest_whose_metric_is_not_right_is_refused_in_one_line(bundles, tmp_path, change):
    import shutil

    from domains.artefact import content_id

    shutil.copytree(bundles / "own", tmp_path / "bundle")
    file = tmp_path / "bundle" / "bundle.json"
    body = json.loads(file.read_text())
    change(body)
    del body["id"]
    file.write_text(json.dumps({"id": content_id(body), **body}))
    with pytest.raises(ArtefactError) as caught:
        Bundle.load(tmp_path / "bundle")
    assert "\n" not in str(caught.value)


def test_the_card_names_the_metric_and_shows_scores_in_it_alone(run, sites, tmp_path):
    run.fill_scores(sites)
    pooled = export_run(run, tmp_path / "pooled", serving=Serving(metric="pooled"))
    own = export_run(run, tmp_path / "own", serving=Serving(metric=f"site:{sites[1].name}"))
    cards = {bundle.metric_name: (bundle.folder / "CARD.md").read_text() for bundle in (pooled, own)}
    assert "| metric | pooled" in cards["pooled"]
    assert "No domain was scored with this network in this metric" in cards["pooled"]
    scored = cards[f"site:{sites[1].name}"].split("## Scores")[1]
    assert f"| {sites[1].name} | yes" in scored
    assert f"| {sites[0].name} |" not in scored
