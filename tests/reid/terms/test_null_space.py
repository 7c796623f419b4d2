"""Null-space updates: the moments of a layer's inputs, what a projection leaves, and what whole steps keep."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import SETTINGS, Stop, StopAt, same, weights
from torch import nn

from domains.crops import CropSpec
from domains.domain import Split
from domains.errors import ArtefactError, ConfigError
from prototypes.memory import Memory
from reid.batches.loader import CropStore
from reid.config import Method, ModelConfig, build_config
from reid.network.backbone import Backbone, InputRule
from reid.network.build import build_backbone
from reid.network.model import ReidModel
from reid.network.runtime import Runtime
from reid.run import Run
from reid.terms import Step, build_terms, idle_terms
from reid.terms.null_space import eligible_layers, moments, projection
from reid.terms.survey import Survey

CPU = torch.device("cpu")
WIDTHS = {"layer0": 8, "layer1": 6, "layer2": 10}


class Net(nn.Module):
    """One convolution of each sort: full, 1×1, depthwise, and 1×1 with a stride."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.point = nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 1, groups=6)
        self.last = nn.Conv2d(6, 10, 1, stride=2)

    def forward(self, images):
        return self.last(self.depth(self.norm(self.point(self.stem(images).relu())).relu()))


@pytest.fixture
def model():
    torch.manual_seed(0)
    rule = InputRule("rgb", (120.0, 110.0, 100.0), (60.0, 50.0, 40.0))
    made = ReidModel(Backbone(Net(), width=10, rule=rule), pooling="average", dim=5, classes=4)
    made(crops(30))  # moves BatchNorm's statistics
    return made


def crops(count, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 12, 8, 3), dtype=np.uint8))


def term(**parameters):
    return build_terms(({"null_space": parameters},))["null_space"]


def a_step(model, memories=(), index=2):
    store = CropStore(crops(40).numpy(), Split(), ())
    survey = Survey(store, np.arange(40), np.arange(40) % 4, CPU)
    config = SimpleNamespace(seed=3)
    runtime = Runtime(CPU, torch.float32)
    return Step(index, SimpleNamespace(name="site"), config, runtime, model, {}, 0, memories, survey)


def memory(**arrays):
    return Memory("earlier", "space", {f"null_space.{name}": array for name, array in arrays.items()})


def moment(size, seed=0, rank=None):
    rows = np.random.default_rng(seed).standard_normal((rank or 2 * size, size))
    return rows.T @ rows / len(rows)


def every_moment():
    return {name: moment(size, seed) for seed, (name, size) in enumerate(WIDTHS.items())}


def updates(model, acting, step, count=3):
    """Train a little on noise, with momentum, as the learner does."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for number in range(count):
        optimiser.zero_grad(set_to_none=True)
        model(crops(8, number)).embedding.square().sum().backward()
        if acting:
            acting.after_backward(step)
        optimiser.step()
        if acting:
            acting.after_update(step)


# -------------------------------------------------------------------------------------------------------------- moments


def test_moments_are_those_of_the_inputs_that_each_layer_reads(model):
    assert list(eligible_layers(model).values()) == [model.backbone.net.point, model.backbone.net.last, model.embedding]
    model.train()
    given = crops(20)
    found = moments(model, eligible_layers(model), iter(given.split(7)))
    assert model.training, "its mode is restored"
    assert not any(layer._forward_pre_hooks for layer in eligible_layers(model).values())

    net = model.eval().backbone.net
    seen = {name: [] for name in WIDTHS}
    with torch.no_grad():
        for crop in given:
            first = net.stem(model.normalise(crop[None])).relu()[0]
            second = net.depth(net.norm(net.point(first[None])).relu())[0]
            pooled = net.last(second[None]).mean((2, 3))[0]
            seen["layer0"] += [first[:, y, x] for y in range(first.shape[1]) for x in range(first.shape[2])]
            seen["layer1"] += [second[:, y, x] for y in range(0, 6, 2) for x in range(0, 4, 2)]
            seen["layer2"] += [pooled]
    assert found.keys() == seen.keys()
    for name, inputs in seen.items():
        wanted = torch.stack([torch.outer(row, row) for row in inputs]).double().mean(0)
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_linear_layer_of_a_transformer_sees_tokens():
    backbone = build_backbone(ModelConfig(backbone="test_vit", weights="none"), CropSpec(160, 160), load_weights=True)
    model = ReidModel(backbone, pooling="auto", dim=5)
    layers = eligible_layers(model)
    assert layers
    assert all(isinstance(layer, nn.Linear) for layer in layers.values())
    found = moments(model, layers, [torch.randint(0, 256, (2, 160, 160, 3), dtype=torch.uint8)])
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: (layer.in_features,) * 2 for name, layer in layers.items()
    }


def test_a_layer_that_is_not_called_has_no_moment(model):
    model.backbone.net.spare = nn.Linear(3, 3)
    assert moments(model, eligible_layers(model), [crops(2)]).keys() == {"layer0", "layer1", "layer3"}


def test_what_is_kept_has_a_mean_energy_of_one_in_half_precision(model):
    step = a_step(model)
    kept = term().end(step)
    whole = moments(model, eligible_layers(model), [crops(40)])
    assert {name: (value.dtype, tuple(value.shape)) for name, value in kept.items()} == {
        name: (torch.float16, (size, size)) for name, size in WIDTHS.items()
    }
    for name, value in kept.items():
        assert value.double().diagonal().mean() == pytest.approx(1, abs=2e-3)
        wanted = whole[name] / whole[name].trace() * len(value)
        torch.testing.assert_close(value.float(), wanted, rtol=2e-3, atol=1e-3)
    model.backbone.requires_grad_(False)
    assert term().end(step).keys() == {"layer2"}, "a layer that is not trained keeps its number and no moment"
    step.survey = None
    with pytest.raises(ValueError, match="survey"):
        term().end(step)


# ----------------------------------------------------------------------------------------------------------- projection


@pytest.mark.parametrize("amount", [0.01, 0.1, 1, 30.0])
def test_a_projection_is_the_inverse_that_defines_it(amount):
    given = torch.from_numpy(moment(12))
    epsilon = amount * given.trace() / 12
    wanted = epsilon * torch.linalg.inv(given + epsilon * torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(projection(given, amount), wanted, rtol=1e-9, atol=1e-12)


def test_a_small_amount_keeps_old_outputs_and_leaves_other_directions_free():
    torch.manual_seed(0)
    old = torch.randn(200, 6) @ torch.randn(6, 20)  # 6 of 20 dimensions
    free = torch.linalg.svd(old)[2][6:]
    matrix = projection(old.double().T @ old.double() / 200, 1e-9).float()
    update = torch.randn(7, 20)
    assert (old @ (update @ matrix).T).abs().max() < 1e-5
    torch.testing.assert_close(free @ (update @ matrix).T, free @ update.T, rtol=1e-4, atol=1e-5)
    assert matrix.trace() == pytest.approx(14, abs=1e-3)
    plain = projection(old.T @ old / 200, 1e9)
    torch.testing.assert_close(plain, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-6)


def test_rounding_to_half_precision_never_makes_an_update_grow():
    rounded = torch.from_numpy(moment(64, rank=3).astype(np.float16))
    assert torch.linalg.eigvalsh(rounded.double()).min() < 0
    values = torch.linalg.eigvalsh(projection(rounded, 1e-5))
    assert values.min() > 0
    assert values.max() <= 1 + 1e-12


def test_without_energy_everything_is_free():
    assert torch.equal(projection(torch.zeros(4, 4), 0.1), torch.eye(4, dtype=torch.float64))


# -------------------------------------------------------------------------------------------------------------- updates


def test_one_update_is_projected_and_other_layers_move_as_they_would(model):
    arrays = every_moment()
    other = {name: moment(size, 7) for name, size in WIDTHS.items()}
    step, acting = a_step(model, [memory(**arrays), Memory("bare", "space", {}), memory(**other)]), term(amount=0.5)
    acting.begin(step)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    updates(model, None, step, 1)
    free = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(before)
    updates(model, acting, step, 1)
    places = {"layer0": "backbone.net.point", "layer1": "backbone.net.last", "layer2": "embedding"}
    shares = []
    for layer, name in places.items():
        key = f"{name}.weight"
        total = arrays[layer] + other[layer]
        epsilon = 0.5 * np.trace(total) / len(total)
        matrix = epsilon * np.linalg.inv(total + epsilon * np.eye(len(total)))
        shares.append(np.trace(matrix) / len(matrix))
        old, new = (state[key].double().numpy().reshape(len(before[key]), -1) for state in (before, free))
        wanted = torch.from_numpy(old + (new - old) @ matrix).view_as(before[key])
        torch.testing.assert_close(model.state_dict()[key].double(), wanted, rtol=0, atol=1e-6)
        assert not torch.allclose(free[key], model.state_dict()[key], atol=1e-4)
    assert acting.free_share == pytest.approx(np.mean(shares), abs=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, free[name]) or name in {f"{place}.weight" for place in places.values()}


def test_updates_are_projected_once_each(model):
    """A gradient that is constant moves the weights by as much in every iteration."""
    step, acting = a_step(model, [memory(layer2=moment(10))]), term()
    acting.begin(step)
    weight, begun = model.embedding.weight, model.embedding.weight.detach().clone()
    moved = []
    for _ in range(3):
        acting.after_backward(step)
        with torch.no_grad():
            weight += torch.ones_like(weight)
        acting.after_update(step)
        moved.append(weight.detach() - begun)
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved[2], 3 * moved[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "memories",
    [
        [],
        [Memory("bare", "space", {})],
        [memory(**{name: np.zeros((size, size), np.float16) for name, size in WIDTHS.items()})],
    ],
)
def test_without_moments_training_is_plain_bit_for_bit(model, memories):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step, acting = a_step(model, memories), term()
    updates(model, None, step)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(before)
    acting.begin(step)
    updates(model, acting, step)
    assert same(plain, model.state_dict())
    assert acting.free_share == 1


def test_a_frozen_layer_stays(model):
    model.backbone.requires_grad_(False)
    step, acting = a_step(model, [memory(**every_moment())]), term()
    before = {name: value.clone() for name, value in model.backbone.named_parameters()}
    acting.begin(step)
    updates(model, acting, step)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.named_parameters())


@pytest.mark.parametrize("wrong", [moment(9), np.zeros(8), np.full((8, 8), np.nan)])
def test_a_memory_that_does_not_fit_is_refused(model, wrong):
    with pytest.raises(ArtefactError, match=r"null_space.layer0 of the memory of earlier should be a finite matrix"):
        term().begin(a_step(model, [memory(layer0=wrong)]))


@pytest.mark.parametrize("amount", [0, -0.1, True, "much", float("inf"), float("nan"), None])
def test_an_amount_that_is_none_is_refused(amount):
    with pytest.raises(ConfigError, match="amount must be a number above 0"):
        term(amount=amount)


def test_it_has_no_loss_and_a_part_in_the_first_step():
    assert term().loss(None) is None
    assert idle_terms({"null_space": term()}, 1, []) == {}
    with pytest.raises(ConfigError, match="unknown parameter 'weight'"):
        term(weight=2.0)


# ---------------------------------------------------------------------------------------------------------- whole steps


def method(*extra, terms=("cross_entropy", "triplet")):
    return Method.model_validate(
        {
            "name": "made up",
            "about": "For a test.",
            "terms": [*terms, *extra],
            "fusion": ["average"],
            "transport": ["ridge"],
        }
    )


def same_arrays(left, right):
    return same(*({name: torch.from_numpy(array) for name, array in one.arrays.items()} for one in (left, right)))


HELD = ({"null_space": {"amount": 0.05}}, "moving_average")


def learned(folder, sites, *extra):
    config = build_config(SETTINGS)
    run = Run.create(folder, config)
    for site in sites:
        run.learn(site, method=method(*extra), config=config)
    return run


@pytest.fixture
def sites(tiny_domain, tmp_path):
    return [tiny_domain(tmp_path / f"site{seed}", seed=seed) for seed in range(2)]


def test_whole_steps_keep_the_moments_of_the_finished_model(sites, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "reid.terms.null_space.moments",
        lambda model, layers, batches: moments(model, layers, asked.append(list(batches)) or asked[-1]),
    )
    held = learned(tmp_path / "held", sites, *HELD)
    assert len(held.memories()) == len(asked) == 2
    for index, (kept, batches) in enumerate(zip(held.memories(), asked, strict=True), 1):
        model, _ = held.model(index)
        layers = eligible_layers(model)
        assert set(kept.arrays) == {f"null_space.{name}" for name in layers}
        assert kept.bytes == sum(2 * layer.weight.shape[1] ** 2 for layer in layers.values())
        assert held.steps[index].card["bytes"]["memory"] == kept.bytes
        for name, wanted in moments(model, layers, batches).items():
            array = kept.arrays[f"null_space.{name}"]
            assert array.dtype == np.float16
            scaled = wanted / wanted.diagonal().mean()
            torch.testing.assert_close(torch.from_numpy(array).float(), scaled, rtol=2e-3, atol=1e-3)
    assert same_arrays(held.memories()[0], held.steps[1].memory()), "a transport leaves them as they are"


def test_only_later_steps_are_held_and_an_interrupted_one_goes_on(sites, tmp_path):
    plain, held = learned(tmp_path / "plain", sites, "moving_average"), learned(tmp_path / "held", sites, *HELD)
    assert same(weights(plain, 1), weights(held, 1))
    assert not same(weights(plain, 2), weights(held, 2))
    stopped = learned(tmp_path / "stopped", sites[:1], *HELD)
    with pytest.raises(Stop):
        stopped.learn(sites[1], method=method(*HELD), config=build_config(SETTINGS), progress=StopAt(3))
    Run.open(stopped.folder).learn(sites[1], method=method(*HELD), config=build_config(SETTINGS))
    stopped = Run.open(stopped.folder)
    assert same(weights(stopped, 2), weights(held, 2))
    assert same_arrays(stopped.memories()[1], held.memories()[1])
