"""What tests of backbones share: a small one by its name, and an image encoder to export to ONNX, and what every
refusal is.
"""

import warnings

import torch
from torch import nn

from domains.crops import CropSpec
from reid.config import ModelConfig
from reid.network.build import build_backbone

SPEC = CropSpec(64, 32)
SMALL = CropSpec(32, 16)


def built(name="test_resnet", weights="none", spec=SPEC, **settings):
    return build_backbone(ModelConfig(backbone=name, weights=str(weights), **settings), spec, load_weights=True)


def one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


class Encoder(nn.Module):
    """A small image encoder with a branch, as one would deploy it."""

    def __init__(self, width=24):
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU6())
        self.last = nn.Conv2d(8, 12, 3, 2, 1)
        self.head = nn.Linear(12, width)

    def forward(self, images):
        stem = self.stem(images)
        features = self.last(stem + self.branch(stem)).relu()
        return features if self.head is None else self.head(features.mean((2, 3)))


def exported(net, path, *, batch="N", opset=17, size=(SMALL.height, SMALL.width)):
    axes = {"images": {0: "N"}, "out": {0: "N"}} if batch == "N" else None
    example = torch.randn(2 if batch == "N" else batch, 3, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (example,),
            str(path),
            input_names=["images"],
            output_names=["out"],
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    return path
