"""timm backbones by name: any CNN that outputs one feature map, any ViT that outputs one sequence of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn

from domains.crops import CropSpec
from domains.errors import BackboneError, first_line
from reid.config import ModelConfig, nearest
from reid.network.backbone import Backbone, InputRule
from reid.network.hub import start_weights
from reid.network.weights import load_weights_file


class _TimmFeatures(nn.Module):
    """``forward_features`` of a timm model, as a map ``[B, C, h, w]`` or tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features.permute(0, 3, 1, 2) if self.channels_last else features


def open_timm(config: ModelConfig, crop: CropSpec, *, load_weights: bool) -> Backbone:
    """Open a timm model for crops of this size, optionally with its start weights; raises BackboneError."""
    if not timm.is_model(config.backbone):
        hint = nearest(config.backbone.partition(".")[0], timm.list_models())[:200]
        raise BackboneError(f"timm has no model {config.backbone!r}{hint}")
    fetch = load_weights and config.weights == "timm"
    held = start_weights(config.backbone, timm.get_pretrained_cfg(config.backbone)) if fetch else None
    try:
        model = _create(config.backbone, crop, pretrained=fetch, file=held)
    except Exception as error:  # model families check sizes by assertions and other errors
        if not fetch or not isinstance(error, OSError | RuntimeError):
            raise BackboneError(
                f"timm can't build {config.backbone} for crops of {crop.height}×{crop.width}: {first_line(error):.200}"
            ) from error
        raise BackboneError(
            f"can't get timm's weights for {config.backbone} ({type(error).__name__}: {first_line(error):.120}); "
            "without a network, download them on a connected machine and set model.weights=PATH, or start from random "
            "weights with model.weights=none"
        ) from error
    pretrained: Mapping[str, Any] = model.pretrained_cfg
    if load_weights and config.weights not in ("timm", "none"):
        load_weights_file(model, Path(config.weights), classifier=pretrained.get("classifier"))
    model.reset_classifier(0)
    if config.last_stride:
        _take_last_stride(model, config.backbone, crop)
    width = _keep_stages(model, config.stages, config.backbone, crop) if config.stages else int(model.num_features)
    rule = InputRule(
        "rgb" if config.channels == "auto" else config.channels,
        config.mean or _in_255(pretrained["mean"]),
        config.std or _in_255(pretrained["std"]),
    )
    features = _probed(model, config.backbone, crop)
    if features.ndim == 4:
        return Backbone(_TimmFeatures(model), width=width, rule=rule, signed=_is_signed(model, crop))
    prefix_tokens, norm = _prefix_tokens(model, features.shape[1], config.backbone, crop), None
    if getattr(model, "global_pool", None) == "avg" and not isinstance(
        getattr(model, "fc_norm", None), nn.Identity | None
    ):
        norm, model.fc_norm = model.fc_norm, nn.Identity()
    return Backbone(_TimmFeatures(model), width=width, rule=rule, prefix_tokens=prefix_tokens, norm=norm)


def _take_last_stride(model: Any, name: str, crop: CropSpec) -> None:
    """Set every stride of a ResNet's last stage to 1; pooling over windows of the stride, and blurring before it, are
    removed.
    """
    if not hasattr(model, "layer4"):
        raise BackboneError(
            f"model.last_stride removes the stride of a ResNet's last stage, and {name} has no such stage; leave it "
            "unset"
        )
    before = _probed(model, name, crop).shape
    for path, layer in list(model.layer4.named_modules()):
        if getattr(layer, "stride", None) not in (2, (2, 2)):
            continue
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        elif isinstance(layer, nn.AvgPool2d) and layer.padding not in (0, (0, 0)):
            layer.stride = 1
        elif isinstance(layer, nn.AvgPool2d | BlurPool2d):
            model.layer4.set_submodule(path, nn.Identity())
    try:
        after = _probed(model, name, crop).shape
    except BackboneError:
        after = before
    if any(new not in (2 * old, 2 * old - 1) for old, new in zip(before[2:], after[2:], strict=True)):
        raise BackboneError(
            f"model.last_stride can't remove the stride of {name}'s last stage, which is built differently; leave it "
            "unset"
        )


def _keep_stages(model: Any, stages: int, name: str, crop: CropSpec) -> int:
    """Cut a CNN after its first stages and return the number of channels of the remaining map."""
    info = getattr(model, "feature_info", [])
    deep = len({entry["module"].split(".")[0] for entry in info if str(entry["module"]).startswith("layer")})
    if not deep:
        raise BackboneError("model.stages cuts ResNets and similar networks; leave it unset for this backbone")
    if stages >= deep:
        raise BackboneError(
            f"model.stages={stages} keeps all of this backbone's {deep} stages; set fewer, or leave it unset"
        )
    for number in range(stages + 1, deep + 1):
        setattr(model, f"layer{number}", nn.Identity())
    return int(_probed(model, name, crop).shape[1])


def _create(name: str, crop: CropSpec, *, pretrained: bool, file: Path | None = None) -> Any:
    """Create a timm model for this input size, which only some families (ViTs and the like) must be told; ``file`` are
    its pretrained weights, if this machine has them.
    """
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}} if file else {}
    try:
        return timm.create_model(name, pretrained=pretrained, img_size=(crop.height, crop.width), **overlay)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=pretrained, **overlay)


def _probed(model: Any, name: str, crop: CropSpec) -> Tensor:
    """Return the features of one blank crop: a map or tokens."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            features = model.forward_features(torch.zeros(1, 3, crop.height, crop.width))
    except Exception as error:  # model families check sizes by assertions and other errors
        raise BackboneError(
            f"{name} can't take crops of {crop.height}×{crop.width}: {first_line(error):.200}"
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise BackboneError(
            f"{name} outputs neither one feature map nor one sequence of tokens; choose another model.backbone"
        )
    return features


def _is_signed(model: Any, crop: CropSpec) -> bool:
    """Whether the map can have negative values; a map that ends in a ReLU can't, whatever the weights.

    Tested with weights drawn for the purpose, so that the answer is the same before and after weights are loaded.
    """
    draw = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        fan_in = max(1, value[0].numel()) if value.ndim > 1 else 1
        weights[name] = torch.randn(value.shape, generator=draw) / fan_in**0.5
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            weights[name] = torch.full_like(value, float(name.endswith("var")))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            images = torch.randn(1, 3, crop.height, crop.width, generator=draw)
            return bool(
                (
                    torch.func.functional_call(
                        _TimmFeatures(model), {f"model.{k}": v for k, v in weights.items()}, (images,)
                    )
                    < 0
                ).any()
            )
    finally:
        model.train(was_training)


def _prefix_tokens(model: Any, tokens: int, name: str, crop: CropSpec) -> int:
    """Return the number of tokens before those of the grid, checked against the grid's size."""
    grids = [tuple(getattr(getattr(model, "patch_embed", None), "grid_size", None) or ())]
    for entry in list(getattr(model, "feature_info", []))[-1:]:
        step = int(entry["reduction"])
        grids += [(crop.height // step, crop.width // step), (-(-crop.height // step), -(-crop.width // step))]
    grids = [grid for grid in grids if grid]
    known = getattr(model, "num_prefix_tokens", None)
    announced = int(isinstance(getattr(model, "cls_token", None), nn.Parameter)) if known is None else int(known)
    if not any(tokens == height * width + announced for height, width in grids):
        wanted = " or ".join(dict.fromkeys(f"{height}×{width}" for height, width in grids)) or "unknown size"
        raise BackboneError(
            f"{name} outputs {tokens} tokens, not a grid of {wanted} plus {announced} more, so they can't be pooled; "
            "choose another model.backbone"
        )
    return announced


def _in_255(values: Any) -> tuple[float, float, float]:
    red, green, blue = (255.0 * float(value) for value in values)
    return red, green, blue
