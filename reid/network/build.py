"""A network from its settings: any timm CNN or ViT by name, or ``onnx:PATH``, an exported image encoder made trainable
again.
"""

from __future__ import annotations

from pathlib import Path

import torch

from domains.crops import CropSpec
from reid.config import ModelConfig
from reid.network.backbone import Backbone
from reid.network.model import ReidModel
from reid.network.onnx_backbone import open_onnx
from reid.network.timm_backbone import open_timm


def build_backbone(config: ModelConfig, crop: CropSpec, *, load_weights: bool) -> Backbone:
    """Build a backbone, optionally with its start weights.

    Raises:
        BackboneError: unknown name, weights that do not fit, or an ONNX graph that can't be opened or differs from
            ONNX Runtime.
        ConfigError: an ONNX backbone with no declared input rule, or for another crop size.
    """
    if config.backbone.startswith("onnx:"):
        return open_onnx(Path(config.backbone.removeprefix("onnx:")), config, crop)
    return open_timm(config, crop, load_weights=load_weights)


def build_model(
    config: ModelConfig, crop: CropSpec, *, classes: int = 0, load_weights: bool = True, seed: int = 0
) -> ReidModel:
    """Build the network; the same seed gives the same weights. Raises what :func:`build_backbone` raises."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(config, crop, load_weights=load_weights)
        return ReidModel(
            backbone, pooling=config.pooling, dim=config.dim, classes=classes, linear=config.embedding == "linear"
        )
