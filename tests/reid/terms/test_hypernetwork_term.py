"""The hypernetwork term over whole steps: what it trains, keeps, gives back, and refuses."""

import numpy as np
import pytest
import torch

from domains.crops import CropSpec
from domains.errors import ConfigError
from reid.config import Method, build_config, read_method
from reid.network.adapter import changes, find_slots
from reid.network.hypernetwork import HyperNetwork, drift
from reid.run import Run
from reid.terms import TERMS, build_terms
from reid.terms.hypernetwork import BASE, KIND

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "dim": 16},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 4, "identities": 4, "instances": 2, "lr": 0.01, "precision": "fp32"},
}
LONGER = {**SETTINGS, "train": {**SETTINGS["train"], "iterations": 25}}
VIT = {
    **SETTINGS,
    "model": {"backbone": "test_vit", "weights": "none", "dim": 16},
    "crop": {"height": 160, "width": 160},
}


def hyper(fusion=(), **parameters):
    terms = [{"cross_entropy": {}}, {"hypernetwork": {"chunk": 256, "hidden": 8, **parameters}}, "style_statistics"]
    return Method.model_validate({"name": "made up", "about": "For a test.", "terms": terms, "fusion": list(fusion)})


def learned(folder, sites, method, settings=SETTINGS):
    config = build_config(settings)
    run = Run.create(folder, config)
    for site in sites:
        run.learn(site, method=method, config=config)
    return run


@pytest.fixture
def sites(tiny_domain, tmp_path):
    return [tiny_domain(tmp_path / f"site{number}", seed=number) for number in range(4)]


def weights(run, step):
    return run.model(step)[0].backbone.state_dict()


def test_all_that_a_domain_leaves_is_128_bytes(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], hyper(guide="h"))
    for memory in run.memories():
        assert memory.arrays[f"{KIND}.embedding"].nbytes == 128
    assert "hypernetwork" in run.steps[2].kept()
    assert not run.steps[1].kept()


def test_a_frozen_backbone_learns_through_its_adapter_alone(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], hyper())
    before, after = weights(run, 1), weights(run, 2)
    slots = find_slots(run.model(2)[0].backbone, rank=4, where=("convolution", "norm"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert moved <= {slot.name for slot in slots}
    net = HyperNetwork(sum(slot.length for slot in slots), chunk=256, hidden=8)
    net.load_state_dict(run.steps[2].kept()[KIND])
    with torch.no_grad():
        written = changes(slots, net(torch.from_numpy(run.memories()[1].arrays[f"{KIND}.embedding"])))
    for name, change in written.items():
        torch.testing.assert_close(after[name], before[name] + change, atol=1e-6, rtol=0)


def test_with_a_backbone_that_is_trained_all_weights_move(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], hyper(frozen=False))
    stem = next(name for name in weights(run, 1) if name.endswith("conv1.weight") or "stem" in name)
    assert not torch.equal(weights(run, 1)[stem], weights(run, 2)[stem])


@pytest.mark.parametrize("use", ["averaged", "routed"])
def test_the_weights_below_stay_those_of_the_first_step(sites, tmp_path, use):
    run = learned(tmp_path / "run", sites[:3], hyper(use=use))
    base = weights(run, 1)
    for step in (2, 3):
        kept = run.steps[step].kept()
        for name, weight in kept[BASE].items():
            torch.testing.assert_close(weight, base[name], atol=0, rtol=0)
    slots = find_slots(run.model(3)[0].backbone, rank=4, where=("convolution", "norm"))
    net = HyperNetwork(sum(slot.length for slot in slots), chunk=256, hidden=8)
    net.load_state_dict(run.steps[3].kept()[KIND])
    mean = torch.stack([torch.from_numpy(memory.arrays[f"{KIND}.embedding"]) for memory in run.memories()]).mean(0)
    with torch.no_grad():
        written = changes(slots, net(mean))
    for name, change in written.items():
        torch.testing.assert_close(weights(run, 3)[name], base[name] + change, atol=1e-6, rtol=0)


def relative_drift(run, embedding):
    """How far a domain's adapter is from what the hypernetwork wrote before the last step."""
    slots = find_slots(run.model(2)[0].backbone, rank=4, where=("convolution", "norm"))
    nets = []
    for step in (2, 3):
        nets.append(HyperNetwork(sum(slot.length for slot in slots), chunk=256, hidden=8))
        nets[-1].load_state_dict(run.steps[step].kept()[KIND])
    with torch.no_grad():
        before, after = (net(torch.from_numpy(embedding)) for net in nets)
    return float(drift(after[None], before[None]).sqrt() / before.norm())


@pytest.mark.parametrize("look_ahead", [False, True])
def test_held_adapters_drift_less(sites, tmp_path, look_ahead):
    drifts = []
    for beta in (0.0, 100.0):
        run = learned(tmp_path / f"run{beta}", sites[:3], hyper(beta=beta, look_ahead=look_ahead), LONGER)
        drifts.append(relative_drift(run, run.memories()[1].arrays[f"{KIND}.embedding"]))
    assert drifts[1] < 0.6 * drifts[0]


def test_the_guides_differ_and_each_repeats(sites, tmp_path):
    found = {}
    for guide in ("none", "random", "h"):
        for again in (1, 2):
            run = learned(tmp_path / f"{guide}{again}", sites[:3], hyper(guide=guide))
            found.setdefault(guide, []).append(run.memories()[2].arrays[f"{KIND}.embedding"])
        np.testing.assert_array_equal(*found[guide])
    first = [pair[0] for pair in found.values()]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[1], first[2])


def test_a_vit_from_random_weights_learns_through_its_attention(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], hyper(), VIT)
    before, after = weights(run, 1), weights(run, 2)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".attn." in name for name in moved)


def test_a_run_that_goes_on_without_the_hypernetwork_can_not_come_back_to_it(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], hyper())
    config = build_config(SETTINGS)
    run.learn(sites[2], method="fine_tune", config=config)
    with pytest.raises(ConfigError, match="kept no hypernetwork"):
        run.learn(sites[3], method=hyper(), config=config)


def test_a_hypernetwork_of_another_size_is_refused(sites, tmp_path):
    run = learned(tmp_path / "run", sites[:2], hyper())
    with pytest.raises(ConfigError, match="another size"):
        run.learn(sites[2], method=hyper(hidden=9), config=build_config(SETTINGS))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"use": "mixed"}, "use must be"),
        ({"guide": "x"}, "guide must be"),
        ({"beta": -1}, "beta must be"),
        ({"use": "beside", "share": float("nan")}, "share must be"),
        ({"share": 0.5}, "beside the finished weights"),
        ({"use": "routed", "frozen": False}, "frozen"),
    ],
)
def test_impossible_parameters_are_refused(parameters, said):
    with pytest.raises(ValueError, match=said):
        TERMS["hypernetwork"].build(**parameters)


@pytest.mark.parametrize("name", ["hyper_merged", "hyper_averaged", "hyper_routed", "hyper_default"])
def test_the_shipped_methods_learn(sites, tmp_path, name):
    run = learned(tmp_path / "run", sites[:2], read_method(name))
    assert run.learned == [site.name for site in sites[:2]]


@pytest.mark.parametrize("listed", ["terms", "adapter"])
def test_a_backbone_with_nothing_to_adapt_is_refused_before_anything_is_decoded(tmp_path, sites, listed, monkeypatch):
    entry = {"hypernetwork": {"where": ["mlp"], **({"use": "beside"} if listed == "adapter" else {})}}
    chosen = Method.model_validate(
        {
            "name": "made up",
            "about": "For a test.",
            "terms": ["cross_entropy", *([entry] if listed == "terms" else [])],
            "adapter": [entry, "cross_entropy"] if listed == "adapter" else [],
        }
    )
    run = Run.create(tmp_path / "run", build_config(SETTINGS))
    monkeypatch.setattr("reid.batches.loader.CropStore.decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ConfigError, match="nothing to adapt in mlp"):
        run.learn(sites[0], method=chosen)


@pytest.mark.parametrize("terms", [["moving_average", "hypernetwork"], ["hypernetwork", "moving_average"]])
def test_the_moving_average_may_stand_before_or_after(tmp_path, sites, terms):
    chosen = Method.model_validate(
        {
            "name": "made up",
            "about": "For a test.",
            "terms": [
                "cross_entropy",
                *({"hypernetwork": {"chunk": 256, "hidden": 8}} if term == "hypernetwork" else term for term in terms),
            ],
        }
    )
    run = learned(tmp_path / "run", sites[:2], chosen)
    assert run.learned == ["site0", "site1"]


def test_a_transformer_whose_features_are_a_map_is_adapted_in_its_attention():
    from reid.config import ModelConfig
    from reid.network.build import build_model

    model = build_model(
        ModelConfig(backbone="swin_tiny_patch4_window7_224", weights="none", dim=16), CropSpec(224, 224)
    )
    (term,) = build_terms(({"hypernetwork": {}},)).values()
    assert not model.backbone.has_tokens
    assert term.places(model.backbone) == ("attention",)
    term.check(model)
