"""A run, a bundle and a gallery made before the packages had rooms: read, learned on, exported and upgraded.

``data/first_layout.zip`` was made by the script that lies in it (``made_by.py``), with the code of that day.
"""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawing import draw_tiny_domain

import domains
from deploy import Encoder, Gallery
from reid.config import Method
from reid.export import Serving, export_run
from reid.run import Run


@pytest.fixture
def old(tmp_path):
    shutil.unpack_archive(Path(__file__).parent / "data" / "first_layout.zip", tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture
def expected(old):
    return json.loads((old / "expected.json").read_text())


@pytest.fixture
def sites(tmp_path):
    return [
        domains.open(draw_tiny_domain(tmp_path / "sites" / name, seed=seed))
        for seed, name in enumerate(("first", "second", "third"))
    ]


def queries(site):
    return [cv2.imread(str(file))[..., ::-1] for file in site.files(site.query)]


def test_a_run_is_read_scored_and_learned_on(old, expected, sites):
    run = Run.open(old / "run")
    assert run.learned == ["first", "second"]
    assert [step.feature_space for step in run.steps] == expected["spaces"]
    assert [run.model(step)[0].feature_space(run.config.crop.spec()) for step in range(3)] == expected["spaces"]
    for name, values in expected["mAP"].items():
        assert [run.scores.value(row, name) for row in range(3)] == values
    for step, (site, values) in enumerate(zip(sites[:2], expected["mAP"].values(), strict=True), 1):
        assert run.evaluate(site, step=step)["mAP"] == pytest.approx(values[step], abs=0.01)
    assert run.memories(renew=True)[0].feature_space == expected["spaces"][2]
    assert run.route("second") is not None
    sealed = run.learn(sites[2], method="default")
    run.fill_scores(sites)
    assert sealed.learned == ("third",)
    assert run.scores.value(3, "third") is not None


def test_its_adapters_are_held_when_another_site_is_learned_with_one(old, sites):
    run = Run.open(old / "run")
    method = Method.model_validate(run.steps[2].card["method"])
    assert method.name == "hyper_default"
    run.learn(sites[2], method=method)
    assert run.route("second") is not None
    assert run.route("third") is not None


def test_an_identity_is_erased_from_it(old):
    run = Run.open(old / "run")
    label = run.steps[1].card["classes"][0]
    run.forget(identity=f"{label}@first")
    assert label not in Run.open(old / "run").steps[1].card["classes"]


def test_a_bundle_answers_as_it_did(old, expected):
    encoder = Encoder.load(old / "bundle", provider="cpu")
    assert encoder.feature_space == expected["bundle"] == expected["spaces"][1]
    golden = encoder.bundle.golden()
    np.testing.assert_allclose(np.asarray(encoder(list(golden.crops))), golden.embeddings, atol=1e-3)


def test_a_gallery_answers_as_it_did_and_is_upgraded(old, expected, sites, tmp_path):
    encoder = Encoder.load(old / "bundle", provider="cpu")
    with Gallery.open(old / "gallery") as gallery:
        assert gallery.ids() == expected["ids"]
        assert gallery.keeps_crops
        gallery.verify()
        found = gallery.search(encoder(queries(sites[0])), k=3)
        for matches, wanted in zip(found, expected["answers"], strict=True):
            assert [[match.id, match.camera, match.label] for match in matches] == [[a, c, d] for a, _, c, d in wanted]
            assert [match.score for match in matches] == pytest.approx([score for _, score, _, _ in wanted], abs=1e-3)
        later = export_run(Run.open(old / "run"), tmp_path / "later", serving=Serving(since=1))
        assert gallery.upgrade(later.folder) == len(expected["ids"])
        assert gallery.feature_space == expected["spaces"][2]
        assert gallery.ids() == expected["ids"]
        gallery.verify()
        gallery.add(Encoder.load(later.folder, provider="cpu")(queries(sites[0])[:1]), camera="new", source=["now"])
