"""Which network serves a site, and that a learned site's stays what it was."""

import numpy as np
import pytest
import torch

from domains.style import StyleStatistics
from reid.config import Method, build_config
from reid.run import Run
from reid.run.routing import REACH, Router

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 16},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 10, "identities": 4, "instances": 2, "lr": 0.01, "precision": "fp32"},
}
ROUTED = Method.model_validate(
    {
        "name": "made up",
        "about": "For a test.",
        "terms": [
            "cross_entropy",
            {"hypernetwork": {"use": "routed", "chunk": 256, "hidden": 8, "beta": 100.0}},
            "style_statistics",
        ],
    }
)


def look(level):
    return StyleStatistics(np.full((4, 3), level, np.float32))


@pytest.fixture
def router():
    embeddings = {name: torch.full((32,), float(number)) for number, name in enumerate(("a", "b"))}
    return Router(lambda place: {}, embeddings, {"a": look(100), "b": look(120)})


def test_a_learned_site_has_its_own_place_whatever_it_looks_like(router):
    assert torch.equal(router.place("b", look(100)), router.embeddings["b"])


def test_an_unknown_site_lies_among_the_learned_by_its_look(router):
    share = np.exp(-np.array([5.0**2, 15.0**2]) / (2 * REACH**2))
    np.testing.assert_allclose(router.place("new", look(105)), np.full(32, share[1] / share.sum()), rtol=1e-5)
    assert float(router.place("new", look(100))[0]) < float(router.place("new", look(110))[0])


def test_without_a_look_it_is_the_mean(router):
    np.testing.assert_allclose(router.place("new", None), np.full(32, 0.5))


@pytest.fixture
def run(tiny_domain, tmp_path):
    config = build_config(SETTINGS)
    made = Run.create(tmp_path / "run", config)
    made.sites = [tiny_domain(tmp_path / f"site{number}", seed=number) for number in range(4)]
    for site in made.sites[:3]:
        made.learn(site, method=ROUTED, config=config)
    return made


def test_the_first_site_is_served_by_the_weights_it_was_learned_with(run):
    def flat(model):
        return torch.cat([weight.flatten() for weight in model.backbone.parameters()])

    start, first, shared = flat(run.model(1)[0]), flat(run.route(run.sites[0])), flat(run.model(3)[0])
    assert (first - start).norm() < min(0.02 * start.norm(), 0.8 * (shared - start).norm())


def test_each_site_is_scored_through_its_own_route(run):
    crops = run.stores.get(run.sites[1], run.sites[1].query).crops
    own, shared = run.served(3)(run.sites[1])(crops), run.embedder(3)(crops)
    assert not np.allclose(own, shared, atol=1e-4)
    model = run.route(run.sites[1])
    with torch.no_grad():
        np.testing.assert_allclose(own, model.eval().embed(torch.from_numpy(crops)).numpy(), atol=1e-5)


def test_methods_without_routes_serve_every_site_alike(run):
    run.learn(run.sites[3], method="fine_tune", config=build_config(SETTINGS))
    assert run.route(run.sites[1]) is None


@pytest.mark.slow
def test_a_route_is_exported_as_any_model_is(run, tmp_path):
    from deploy.encoder import Encoder
    from domains.errors import ExportError, UsageError
    from reid.export import Serving, export_run

    crops = run.stores.get(run.sites[1], run.sites[1].query).crops
    export_run(run, tmp_path / "bundle", serving=Serving(site=run.sites[1].name))
    export_run(run, tmp_path / "shared")
    routed, shared = (Encoder.load(tmp_path / name) for name in ("bundle", "shared"))
    assert routed.feature_space != shared.feature_space, "embeddings of two routes can not end up in one gallery"
    np.testing.assert_allclose(np.asarray(routed(list(crops))), run.served(-1)(run.sites[1])(crops), atol=1e-4)
    with pytest.raises(UsageError, match="no route for elsewhere"):
        run.route("elsewhere")
    run.learn(run.sites[3], method="fine_tune", config=build_config(SETTINGS))
    with pytest.raises(ExportError, match="leave the site out"):
        export_run(run, tmp_path / "none", serving=Serving(site=run.sites[1]))
