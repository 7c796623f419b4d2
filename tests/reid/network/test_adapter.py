"""Slots, what an adapter changes, and that merging it is exact."""

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from domains.errors import ConfigError
from reid.config import build_config
from reid.network.adapter import Slot, changes, find_slots, merge
from reid.network.build import build_model

RESNET = {"model": {"backbone": "test_resnet", "weights": "none", "dim": 16}, "crop": {"height": 64, "width": 32}}
VIT = {"model": {"backbone": "test_vit", "weights": "none", "dim": 16}, "crop": {"height": 160, "width": 160}}


def built(settings):
    config = build_config(settings)
    return build_model(config.model, config.crop.spec(), classes=3, seed=0).eval(), config.crop.spec()


def test_a_slots_change_is_a_product_of_two_thin_matrices():
    slot = Slot("layer.weight", (6, 4, 3, 3), 2)
    assert slot.length == 2 * (6 + 36)
    numbers = torch.randn(slot.length)
    change = slot.change(numbers)
    assert change.shape == (6, 4, 3, 3)
    assert torch.linalg.matrix_rank(change.reshape(6, 36)) == 2
    start = slot.change(torch.cat([torch.eye(6)[:, :2].flatten(), torch.zeros(72)])).reshape(6, 36)[
        :2
    ]  # B picks A's rows
    naive = numbers[:12].reshape(6, 2) @ (numbers[12:].reshape(2, 36) + start)
    torch.testing.assert_close(change.reshape(6, 36), naive)


@pytest.mark.parametrize("slot", [Slot("a", (6, 4), 2), Slot("a", (5,), 0)])
def test_zeros_change_nothing(slot):
    assert not slot.change(torch.zeros(slot.length)).any()


@pytest.mark.parametrize(
    ("settings", "where"),
    [(RESNET, ("convolution", "norm")), (RESNET, ("norm",)), (VIT, ("attention",)), (VIT, ("attention", "mlp"))],
)
def test_a_merged_adapter_answers_as_the_one_beside_the_weights(settings, where):
    model, crop = built(settings)
    slots = find_slots(model.backbone, rank=2, where=where)
    written = changes(slots, 0.1 * torch.randn(sum(slot.length for slot in slots)))
    crops = torch.randint(0, 256, (4, crop.height, crop.width, 3), dtype=torch.uint8)
    with torch.no_grad():
        plain = model.embed(crops)
        model.changes = lambda: written
        beside = model.embed(crops)
        model.changes = None
        assert torch.equal(model.embed(crops), plain)  # switched off it changes nothing
        merge(model.backbone, written)
        merged = model.embed(crops)
    torch.testing.assert_close(merged, beside, atol=1e-5, rtol=1e-5)
    assert (merged - plain).abs().max() > 1e-3


def test_slots_are_what_was_asked_for():
    model, _ = built(VIT)
    names = {slot.name for slot in find_slots(model.backbone, rank=2, where=("attention",))}
    assert names
    assert all(".attn." in name for name in names)
    model, _ = built(RESNET)
    slots = {slot.name: slot for slot in find_slots(model.backbone, rank=4, where=("convolution",))}
    for name, slot in slots.items():
        assert slot.shape == tuple(model.backbone.get_parameter(name).shape)
        assert slot.shape[1] > 3  # the stem sees colours and stays


def test_divided_convolutions_and_the_stem_are_left_alone():
    net = timm.create_model("mobilenetv2_035", pretrained=False)
    divided = {
        f"{name}.weight"
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.in_channels == 3)
    }
    assert divided
    assert not divided & {slot.name for slot in find_slots(net, rank=4, where=("convolution", "norm"))}


@pytest.mark.parametrize(
    ("rank", "where", "said"),
    [
        (0, ("norm",), "rank"),
        (True, ("norm",), "rank"),
        (2, ("head",), "head"),
        (2, ("attention",), "nothing to adapt"),
    ],
)
def test_what_can_not_be_adapted_is_refused(rank, where, said):
    with pytest.raises(ConfigError, match=said):
        find_slots(built(RESNET)[0].backbone, rank=rank, where=where)


def test_a_still_backbone_stays_in_eval_mode():
    model, _ = built(RESNET)
    model.still = True
    model.train()
    assert model.neck.training
    assert not any(module.training for module in model.backbone.modules())


@pytest.mark.slow
def test_a_merged_network_exports_to_the_same_graph(tmp_path):
    model, crop = built(RESNET)
    with torch.no_grad():
        for weight in model.parameters():  # the exporter writes equal constants once
            weight.add_(0.01 * torch.randn(weight.shape))
    crops = torch.randint(0, 256, (2, crop.height, crop.width, 3), dtype=torch.uint8)

    class Embedding(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, crops):
            return self.model.embed(crops)

    def exported(name):
        path = tmp_path / name
        torch.onnx.export(Embedding(model).eval(), (crops,), path, input_names=["crops"], dynamo=False, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {"crops": crops.numpy()})[0], [node.op_type for node in onnx.load(path).graph.node]

    _, plain = exported("plain.onnx")
    slots = find_slots(model.backbone, rank=2, where=("convolution", "norm"))
    merge(model.backbone, changes(slots, 0.1 * torch.randn(sum(slot.length for slot in slots))))
    found, merged = exported("merged.onnx")
    assert merged == plain
    with torch.no_grad():
        np.testing.assert_allclose(found, model.embed(crops).numpy(), atol=1e-5)
