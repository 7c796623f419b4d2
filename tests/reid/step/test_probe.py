"""Which crops a transport is fitted on, and that agreement is never measured on a recoloured copy of what was
fitted.
"""

import numpy as np
import pytest
import torch

import reid.step.probe
from domains.errors import ConfigError
from prototypes.transport import fit_transport
from reid.batches.loader import CropStore
from reid.config import Method, build_config
from reid.network.build import build_model
from reid.step.ending import check_parts
from reid.step.probe import Probes, TransportSettings, learn_transport
from reid.terms.survey import Survey

SETTINGS = {"model": {"backbone": "test_resnet", "weights": "none", "dim": 16}, "crop": {"height": 32, "width": 16}}


@pytest.fixture
def survey(tiny_domain, tmp_path):
    site = tiny_domain(tmp_path / "site")
    store = CropStore.decode(site, site.train, build_config(SETTINGS).crop.spec())
    return Survey(store, np.arange(len(store)), np.zeros(len(store), np.int64), torch.device("cpu"))


def test_probes_are_the_crops_the_same_with_their_colours_exchanged_and_drawn_people(survey):
    probes = Probes(survey, build_config(SETTINGS).crop.spec(), recoloured=2, drawn=3)
    shown = np.concatenate([batch.numpy() for batch in probes])
    own = survey.store.crops[survey.positions]
    assert len(shown) == 3 * len(own) + 3 == len(probes.sources)
    np.testing.assert_array_equal(shown[: len(own)], own)
    for place in (1, 2):
        part = shown[place * len(own) : (place + 1) * len(own)]
        np.testing.assert_array_equal(np.sort(part, axis=-1), np.sort(own, axis=-1))
        assert (part != own).any()
    assert len(np.unique(shown[-3:], axis=0)) == 3
    np.testing.assert_array_equal(probes.sources, [*np.tile(np.arange(len(own)), 3), *(len(own) + np.arange(3))])


def test_without_further_probes_it_is_the_map_fitted_on_the_steps_crops(survey):
    config = build_config(SETTINGS)
    old, new = (build_model(config.model, config.crop.spec(), seed=seed).eval() for seed in (0, 1))
    found = learn_transport(
        survey, old, new, config.crop.spec(), TransportSettings(recoloured=0, drawn=0, shrinkage=1.0)
    )
    np.testing.assert_array_equal(
        found.matrix, fit_transport(survey.embeddings(old), survey.embeddings(new), shrinkage=1.0).matrix
    )
    assert not np.array_equal(
        learn_transport(
            survey, old, new, config.crop.spec(), TransportSettings(recoloured=5, drawn=0, shrinkage=1.0)
        ).matrix,
        found.matrix,
    )


def test_of_a_large_domain_a_sample_of_the_crops_is_mapped(survey, monkeypatch):
    config = build_config(SETTINGS)
    old, new = (build_model(config.model, config.crop.spec(), seed=seed).eval() for seed in (0, 1))
    whole = learn_transport(survey, old, new, config.crop.spec(), TransportSettings(recoloured=1, drawn=2), seed=3)
    monkeypatch.setattr("reid.step.probe.OWN", len(survey))
    np.testing.assert_array_equal(
        learn_transport(survey, old, new, config.crop.spec(), TransportSettings(recoloured=1, drawn=2), seed=4).matrix,
        whole.matrix,
    )
    monkeypatch.setattr("reid.step.probe.OWN", 9)
    embedded, embed = [], reid.step.probe.embeddings
    monkeypatch.setattr(
        "reid.step.probe.embeddings", lambda model, probes: embedded.append(embed(model, probes)) or embedded[-1]
    )
    found = learn_transport(survey, old, new, config.crop.spec(), TransportSettings(recoloured=1, drawn=2), seed=3)
    assert [len(vectors) for vectors in embedded] == [2 * 9 + 2] * 2
    some = Probes(survey.sample(9, 3, "transport"), config.crop.spec(), recoloured=1, drawn=2)
    np.testing.assert_array_equal(
        found.matrix, fit_transport(embed(old, some), embed(new, some), sources=some.sources).matrix
    )


def test_agreement_is_measured_on_originals_that_were_held_out():
    rng = np.random.default_rng(0)
    old, new = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for vectors in rng.standard_normal((2, 40, 64)).astype(np.float32)
    )
    copies = [np.tile(vectors, (3, 1)) for vectors in (old, new)]
    honest = fit_transport(*copies, shrinkage=1e-3, sources=np.tile(np.arange(40), 3)).cosine[0]
    assert honest == pytest.approx(
        fit_transport(old, new, shrinkage=1e-3).cosine[0], abs=0.05
    )  # noise predicts nothing
    assert fit_transport(*copies, shrinkage=1e-3).cosine[0] > honest + 0.5  # the same rows in the fit


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"recoloured": 6}, r"0\.\.5"), ({"drawn": -1}, r"0\.\.4096"), ({"drawn": 1.5}, "whole number")],
)
def test_impossible_probes_are_refused_before_training(parameters, said):
    with pytest.raises(ConfigError, match=said):
        check_parts(
            Method.model_validate(
                {"name": "made up", "about": "For a test.", "terms": ["triplet"], "transport": [{"ridge": parameters}]}
            )
        )
