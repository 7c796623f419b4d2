"""Blocks that are computed again: the same losses, gradients and statistics, under the same names."""

import copy

import pytest
import torch
from torch import nn

from domains.errors import ConfigError
from reid.config import build_config
from reid.network.build import build_model
from reid.network.recompute import Recomputed, recomputing
from reid.run import Run

SIZES = {"test_resnet": 64, "mobilenetv2_050": 64, "test_vit": 160}


def model_of(name):
    config = build_config(
        {
            "model": {"backbone": name, "weights": "none", "dim": 16},
            "crop": {"height": SIZES[name], "width": SIZES[name]},
        }
    )
    return build_model(config.model, config.crop.spec(), classes=3).train()


def step_of(model, crops):
    for _ in range(2):
        torch.manual_seed(1)
        model.zero_grad()
        model(crops).logits.square().sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}, dict(
        model.state_dict()
    )


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_and_statistics_are_the_same_bit_for_bit(name, count):
    crops = torch.randint(0, 256, (4, SIZES[name], SIZES[name], 3), generator=torch.Generator().manual_seed(0)).byte()
    plain, other = model_of(name), model_of(name)
    for module in (*plain.modules(), *other.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    wanted = step_of(plain, crops)
    with recomputing(other.backbone, count):
        assert list(other.state_dict()) == list(plain.state_dict())
        found = step_of(other, crops)
    for left, right in zip(wanted, found, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert not any(isinstance(module, Recomputed) for module in other.modules())
    assert other.training
    assert all(module.training for module in other.modules())


def test_what_is_kept_is_less():
    crops = torch.zeros(8, 64, 64, 3, dtype=torch.uint8)

    def kept(count):
        model, held = model_of("mobilenetv2_050"), []
        with (
            recomputing(model.backbone, count),
            torch.autograd.graph.saved_tensors_hooks(lambda one: held.append(one.numel()) or one, lambda one: one),
        ):
            model(crops)
        return sum(held)

    assert kept(6) < 0.6 * kept(0)


def test_modes_of_single_layers_are_left_alone_and_copies_are_whole():
    model = model_of("test_resnet")
    norm = next(module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    norm.eval()
    with recomputing(model.backbone, 2):
        assert not norm.training
        twin = copy.deepcopy(model)
        crops = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
        assert torch.equal(twin.eval()(crops).embedding, model.eval()(crops).embedding)
    assert not norm.training


def test_too_many_blocks_are_refused():
    model = model_of("test_resnet")
    with (
        pytest.raises(ConfigError, match=r"train\.recompute=9 is more than this backbone's 4 blocks"),
        recomputing(model.backbone, 9),
    ):
        pass


def test_a_step_learns_the_same_and_refuses_what_does_not_go_together(tmp_path, tiny_domain):
    settings = {
        "model": {"backbone": "test_resnet", "weights": "none", "dim": 32},
        "crop": {"height": 64, "width": 32},
        "train": {"iterations": 3, "identities": 4, "instances": 2, "precision": "fp32"},
        "method": "default",
    }
    sites = [tiny_domain(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    runs = []
    for count in (0, 2):
        run = Run.create(tmp_path / f"run{count}", build_config(settings))
        for site in sites:
            run.learn(site, config=build_config(settings, {"train": {"recompute": count}}))
        runs.append(run)
    assert runs[0].steps[-1].feature_space == runs[1].steps[-1].feature_space
    with pytest.raises(ConfigError, match="can't be used together"):
        runs[0].learn(
            tiny_domain(tmp_path / "three"), config=build_config(settings, {"train": {"recompute": 2, "compile": True}})
        )
