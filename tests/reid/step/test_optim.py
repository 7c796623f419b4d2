"""Rates by their closed forms, parameter groups, and the choice of precision."""

import math

import pytest
import timm
import torch
from torch import nn

from domains.crops import CropSpec
from domains.errors import DeviceError
from reid.config import ModelConfig, TrainConfig, learning_rate
from reid.network import runtime
from reid.network.build import build_model
from reid.network.runtime import Runtime, is_depthwise
from reid.step.optim import build_optimiser, set_rate


def rates(**settings):
    config = TrainConfig(**settings)
    return [learning_rate(config, iteration) for iteration in range(config.iterations)]


def test_warm_up_rises_in_equal_steps_to_the_full_rate():
    assert rates(iterations=100, lr=0.5, warmup=0.1)[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_cosine_by_its_closed_form(warmup):
    found, rising = rates(iterations=100, lr=0.5, warmup=warmup), round(100 * warmup)
    assert found[rising] == 0.5
    assert found[(100 + rising) // 2] == pytest.approx(0.25)
    for iteration in range(rising, 100):
        assert found[iteration] == pytest.approx(
            0.5 * math.cos(math.pi / 2 * (iteration - rising) / (100 - rising)) ** 2
        )
    assert all(left >= right for left, right in zip(found[rising:], found[rising + 1 :], strict=False))
    assert 0 < found[-1] < 0.002


def test_steps_and_constant():
    found = rates(iterations=10, lr=1.0, warmup=0, schedule="multistep", milestones=(0.5, 0.8), gamma=0.1)
    assert found == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)
    assert rates(iterations=4, lr=0.3, warmup=0, schedule="constant") == [0.3] * 4


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_short_steps_have_a_positive_finite_rate(schedule, warmup, iterations):
    assert all(0 < rate <= 1.0 for rate in rates(iterations=iterations, lr=1.0, warmup=warmup, schedule=schedule))


class Net(nn.Module):
    """Shaped as the re-ID model, as far as an optimiser sees it."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.embedding = nn.Linear(4, 8)
        self.neck = nn.BatchNorm1d(8)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(8, 5, bias=False)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_every_trainable_parameter_is_in_one_group_with_its_rate_and_decay(kind):
    net, extra = Net(), nn.Parameter(torch.ones(3))
    config = TrainConfig(optimiser=kind, lr=0.1, backbone_lr=0.5, weight_decay=0.02)
    optimiser = build_optimiser(net, config, [extra])
    assert isinstance(optimiser, torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)
    wanted = {
        parameter: (0.5 if name.startswith("backbone") else 1.0, 0.02 if parameter.ndim > 1 else 0.0)
        for name, parameter in net.named_parameters()
    }
    del wanted[net.neck.bias]
    wanted[extra] = (1.0, 0.02)
    listed = [
        (parameter, (group["scale"], group["weight_decay"]))
        for group in optimiser.param_groups
        for parameter in group["params"]
    ]
    assert len(listed) == len(wanted)
    assert dict(listed) == wanted
    set_rate(optimiser, 0.04)
    assert {group["scale"]: group["lr"] for group in optimiser.param_groups} == {0.5: 0.02, 1.0: 0.04}


def test_no_decay_leaves_one_group_per_rate():
    optimiser = build_optimiser(Net(), TrainConfig(weight_decay=0, backbone_lr=1.0), [nn.Parameter(torch.ones(2, 2))])
    assert len(optimiser.param_groups) == 1


def test_what_a_family_exempts_from_decay_does_not_decay():
    model = build_model(ModelConfig(backbone="test_vit", weights="none"), CropSpec(64, 32))
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimiser(model, TrainConfig(weight_decay=0.02)).param_groups
    decaying = {names[parameter] for group in groups if group["weight_decay"] for parameter in group["params"]}
    wanted = {name for parameter, name in names.items() if parameter.ndim > 1}
    assert wanted - decaying == {"backbone.net.model.pos_embed", "backbone.net.model.cls_token"}
    assert decaying <= wanted


def test_emulated_bf16_does_not_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert Runtime.choose("cuda", "auto", nn.Linear(2, 2)).dtype == torch.float32


def test_cuda_asked_and_absent_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="torch sees 0 CUDA devices"):
        Runtime.choose("cuda", "auto", nn.Linear(2, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="device cuda:1 was requested"):
        Runtime.choose("cuda:1", "auto", nn.Linear(2, 2))


DENSE, DEPTHWISE = nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))


@pytest.mark.parametrize(
    ("has_bf16", "net", "precision", "wanted"),
    [
        (True, DENSE, "auto", torch.bfloat16),
        (True, DEPTHWISE, "auto", torch.float32),
        (False, DENSE, "auto", torch.float32),
        (True, DENSE, "fp32", torch.float32),
        (False, DEPTHWISE, "bf16", torch.bfloat16),
        (True, nn.Linear(2, 2), "auto", torch.bfloat16),
    ],
)
def test_precision(monkeypatch, has_bf16, net, precision, wanted):
    monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: has_bf16)
    chosen = Runtime.choose("cpu", precision, net)
    assert chosen.dtype == wanted
    with chosen.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == wanted


def test_depthwise_means_a_quarter_of_the_convolutions():
    assert is_depthwise(DEPTHWISE)
    assert not is_depthwise(DENSE)
    assert is_depthwise(timm.create_model("mobilenetv2_050"))
    assert not is_depthwise(timm.create_model("test_resnet"))
    assert not is_depthwise(nn.Linear(2, 2))
    assert not is_depthwise(nn.Conv2d(1, 8, 3)), "one channel is not depthwise"
    assert not is_depthwise(nn.Conv2d(8, 8, 3, groups=2))
    assert not is_depthwise(nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(4)), nn.Conv2d(4, 4, 3, groups=4)))


def test_asking_for_bf16_support_answers_with_a_truth_value():
    assert runtime.cpu_has_bf16() in (True, False)
