"""Device, precision, optimiser groups and schedules."""

import math

import pytest
import torch

from domains.crops import CropSpec
from domains.errors import DeviceError
from reid.config import ModelConfig, TrainConfig
from reid.model import build_model
from reid.optim import Runtime, build_optimiser, cpu_has_bf16, is_depthwise, learning_rate, set_rate


def model_of(name):
    return build_model(ModelConfig(backbone=name, weights="none", dim=16), CropSpec(64, 32), classes=3)


def test_cuda_asked_and_absent_is_an_error_that_says_what_was_found():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(DeviceError, match="cuda:1 was asked for and torch sees 0 CUDA devices"):
        Runtime.choose("cuda:1", "fp32", torch.nn.Identity())


def test_precision_auto_depends_on_processor_and_network():
    assert is_depthwise(model_of("mobilenetv2_050"))
    assert not is_depthwise(model_of("test_resnet"))
    assert Runtime.choose("cpu", "auto", model_of("mobilenetv2_050")).dtype == torch.float32
    dense = Runtime.choose("cpu", "auto", model_of("test_resnet")).dtype
    assert dense == (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    assert Runtime.choose("cpu", "bf16", model_of("mobilenetv2_050")).dtype == torch.bfloat16


def test_cosine_with_warm_up():
    config = TrainConfig(iterations=100, warmup=0.1, lr=1.0, schedule="cosine")
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 9) == pytest.approx(1.0)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert learning_rate(config, 99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(learning_rate(config, at) > learning_rate(config, at + 1) for at in range(10, 99))


def test_multistep_and_constant():
    config = TrainConfig(iterations=100, warmup=0, lr=1.0, schedule="multistep", milestones=(0.5, 0.8), gamma=0.1)
    assert [learning_rate(config, at) for at in (0, 49, 50, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(TrainConfig(iterations=10, warmup=0, lr=0.3, schedule="constant"), 9) == 0.3


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_every_trainable_parameter_is_optimised_once_with_its_rate_and_decay(kind):
    model = model_of("test_resnet")
    extra = torch.nn.Parameter(torch.ones(2, 2))
    optimiser = build_optimiser(model, TrainConfig(optimiser=kind, backbone_lr=0.1, weight_decay=0.02), [extra])
    set_rate(optimiser, 0.5)
    found = {id(parameter): group for group in optimiser.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(found)
    for name, parameter in [*model.named_parameters(), ("extra", extra)]:
        if not parameter.requires_grad:
            assert id(parameter) not in found
            continue
        group = found[id(parameter)]
        assert group["lr"] == pytest.approx(0.05 if name.startswith("backbone.") else 0.5)
        assert group["weight_decay"] == (0.02 if parameter.ndim > 1 else 0.0)
