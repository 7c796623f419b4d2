"""What tests of backbones share: a small one by its name, and what every refusal is."""

from domains.crops import CropSpec
from reid.backbone import build_backbone
from reid.config import ModelConfig

SPEC = CropSpec(64, 32)


def built(name="test_resnet", weights="none", spec=SPEC, **settings):
    return build_backbone(ModelConfig(backbone=name, weights=str(weights), **settings), spec, load_weights=True)


def one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
