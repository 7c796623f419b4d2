"""A site learned by its metric, one gallery for all sites, a gallery that changes its metric: as a user types them."""

import json

import pytest
import yaml
from running import SETTINGS

from deploy import Bundle, Gallery


@pytest.fixture
def learned(tiny_domain, tmp_path, reid):
    """A run that has measured two sites."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({**SETTINGS, "method": "metric"}))
    sites = [tiny_domain(tmp_path / "data" / name, seed=seed) for seed, name in enumerate(("north", "south"))]
    for site in sites:
        code, out, err = reid("learn", tmp_path / "run", site.root, "--config", settings)
        assert code == 0, err
        assert "training takes" not in err
        assert f"{site.name}" in out
    return tmp_path / "run", sites


def test_one_gallery_for_all_sites(learned, tmp_path, reid):
    run, sites = learned
    folders = [site.root for site in sites]
    found = json.loads(reid("evaluate", run, *folders, "--union", "--json")[1])
    for name in ("north", "south"):
        assert set(found[name]["union"]) == {"cosine", "pooled", "own", "mixed"}
        assert all(scores["queries"] == found[name]["queries"] for scores in found[name]["union"].values())
    code, out, err = reid("evaluate", run, *folders, "--union")
    assert (code, err) == (0, "")
    assert "one gallery of all these domains" in out
    shown = f"{found['north']['union']['mixed']['mAP']:.1f} / {found['north']['union']['mixed']['rank1']:.1f}"
    assert shown in out
    assert "union" not in json.loads(reid("evaluate", run, *folders, "--json")[1])["north"]
    assert reid("report", run)[0] == 0
    page = (run / "report.html").read_text("utf-8")
    assert "One gallery for all sites" in page
    assert f"{found['north']['union']['mixed']['mAP']:.1f}<br>" in page
    (run / "one_gallery.json").unlink()
    (run / "one_gallery.json").mkdir()
    code, _, err = reid("evaluate", run, *folders, "--union")
    assert code == 0
    assert "not kept for the report" in err
    assert err.count("\n") == 1
    code, _, err = reid("evaluate", run, *folders, "--union", "--rerank")
    assert code == 2
    assert "--union" in err


def test_a_bundle_is_scored_in_its_own_metric_alone(learned, tmp_path, reid):
    run, sites = learned
    assert reid("export", run, tmp_path / "bundle")[0] == 0
    found = json.loads(
        reid("evaluate", *(site.root for site in sites), "--bundle", tmp_path / "bundle", "--union", "--json")[1]
    )
    by_run = json.loads(reid("evaluate", run, *(site.root for site in sites), "--union", "--json")[1])
    for name in ("north", "south"):
        assert list(found[name]["union"]) == ["pooled"]
        wanted = by_run[name]["union"]["pooled"]["mAP"]
        assert found[name]["union"]["pooled"]["mAP"] == pytest.approx(wanted, abs=0.1)


def test_a_gallery_changes_its_metric_and_back(learned, tmp_path, reid):
    run, sites = learned
    for name, metric in (("pooled", None), ("own", "site:north"), ("mixed", "mixed:south"), ("none", "none")):
        words = [] if metric is None else ["--metric", metric]
        code, out, err = reid("export", run, tmp_path / name, *words)
        assert code == 0, err
        assert ("metric " in out) == (name != "none")
        assert Bundle.load(tmp_path / name).metric_name == (metric or "pooled").replace("none", "")
    gallery = tmp_path / "gallery"
    assert reid("gallery", "add", gallery, sites[0].root, "--bundle", tmp_path / "pooled")[0] == 0
    code, out, _ = reid("gallery", "upgrade", gallery, tmp_path / "own", "--dry-run")
    assert code == 0
    assert "to the metric 'site:north' of the same network" in out
    assert "nothing is lost" in out
    for name in ("own", "mixed", "none", "pooled"):
        assert reid("gallery", "upgrade", gallery, tmp_path / name)[0] == 0
        with Gallery.open(gallery) as opened:
            assert opened.feature_space == Bundle.load(tmp_path / name).feature_space
    assert reid("gallery", "upgrade", gallery, "--back")[0] == 0
    found = json.loads(reid("query", gallery, sites[0].files(sites[0].query)[0], "--json")[1])
    assert found


@pytest.mark.parametrize("metric", ["site:nowhere", "mixed:", "cosine", "site:north\x1b[2J", ""])
def test_a_metric_that_is_not_there_is_one_line(learned, tmp_path, reid, metric):
    code, out, err = reid("export", learned[0], tmp_path / "bundle", "--metric", metric)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert not (tmp_path / "bundle").exists()


def asked(site):
    return site.files(site.query)[0]


@pytest.fixture
def one_gallery(learned, tmp_path, reid):
    """One gallery of two sites in the pooled metric, its bundle, a bundle without statistics, and the sites."""
    run, sites = learned
    code, out, err = reid("export", run, tmp_path / "bundle")
    assert code == 0, err
    assert "statistics of north, south: " in out
    assert " kB, for reid query --site" in out
    code, out, err = reid("export", run, tmp_path / "slim", "--no-sites")
    assert code == 0, err
    assert "statistics" not in out
    for site in sites:
        code, _, err = reid("gallery", "add", tmp_path / "gallery", site.root, "--bundle", tmp_path / "bundle")
        assert code == 0, err
    return tmp_path / "gallery", tmp_path / "bundle", tmp_path / "slim", sites


def test_a_query_of_a_known_site_is_answered_in_the_mixed_metric(one_gallery, tmp_path, reid):
    gallery, _, _, sites = one_gallery
    image = asked(sites[0])
    plain = json.loads(reid("query", gallery, image, "--top", 1000, "--json")[1])
    code, out, err = reid("query", gallery, image, "--top", 1000, "--site", "north", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert {match["metric"] for match in found} == {"mixed:north"}
    assert {match["metric"] for match in plain} == {None}
    assert {match["id"]: match["pooled"] for match in found} == {match["id"]: match["score"] for match in plain}
    scores = [match["score"] for match in found]
    assert scores == sorted(scores, reverse=True)
    assert scores != [match["score"] for match in plain]
    code, out, err = reid("query", gallery, image, "--site", "north", "--threshold", plain[0]["score"] - 0.01)
    assert code == 0, err
    assert "metric: mixed:north; verdicts are by the pooled score" in " ".join(out.split())
    assert "pooled" in out
    code, out, err = reid("query", gallery, image, "--site", "north", "--threshold", 1)
    assert "the best pooled score is" in out
    assert "metric: " not in reid("query", gallery, image)[1]


def test_a_sites_metric_goes_with_the_other_options(one_gallery, tmp_path, reid):
    gallery, _, _, sites = one_gallery
    images, camera = sites[0].files(sites[0].query)[:2], sites[0].cameras[0]
    picture = tmp_path / "found.png"
    words = ["--together", "--rerank", "--site", "south", "--camera", camera, "--picture", picture]
    code, out, err = reid("query", gallery, *images, *words, "--json")
    assert code == 0, err
    assert {(match["metric"], match["ranked_by"]) for match in json.loads(out)} == {("mixed:south", "k-reciprocal")}
    assert picture.stat().st_size


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--site", "nrth"], "did you mean 'north'"),
        (["--site", "north\x1b[2J"], "it has 'north', 'south'"),
        (["--site", ""], "--site"),
        (["--site", "north", "--expand", "3"], "leave out one of them"),
        (["--site", "north", "--bundle", "slim"], "has no statistics of sites"),
    ],
)
def test_a_site_that_is_not_there_is_one_line(one_gallery, reid, words, reason):
    gallery, _, slim, sites = one_gallery
    code, out, err = reid("query", gallery, asked(sites[0]), *(slim if word == "slim" else word for word in words))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert reason in err
    assert "\x1b" not in err
