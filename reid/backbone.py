"""Backbones: any timm CNN or ViT by name, or ``onnx:PATH``, an exported image encoder made trainable again.

A backbone maps normalised images ``[B, 3, H, W]`` to a feature map ``[B, C, h, w]`` (CNN, ONNX) or tokens ``[B, N, C]`` (ViT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import BlurPool2d, resample_abs_pos_embed
from torch import Tensor, nn

from domains.crops import CropSpec
from domains.errors import BackboneError
from reid.config import ModelConfig, nearest

VECTOR = 16
"""Floats in the longest vector of a CPU."""
PREFIXES = ("module.", "state_dict.", "model.", "backbone.", "base.", "encoder.")
HEADS = ("bottleneck.", "heads.", "classifier.", "head.", "fc.")
"""Of checkpoints of re-ID trainers (bag of tricks, FastReID): neck and classifier, which a new domain begins anew."""


@dataclass(frozen=True)
class InputRule:
    """What a backbone was trained to see: channel order, and mean and standard deviation in 0..255 in that order."""

    channels: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Backbone(nn.Module):
    """A feature extractor and what has to be known about it.

    Attributes:
        net: maps ``[B, 3, H, W]`` to ``[B, C, h, w]`` or ``[B, N, C]``.
        head: what an ONNX graph itself does between its last map and its embedding, else None.
        width: C, or the width of the head's output.
        channels: C of maps and tokens, where it is not the width.
        norm: what a family of ViTs puts behind its pooling (timm's ``fc_norm``: BEiT, EVA-02) in place of a norm of every token, else None.
        prefix_tokens: how many of a ViT's tokens are not part of the grid; -1 for a CNN.
        signed: whether a map's values can be negative; generalised means suit only those that can't.
        rule: the input that the weights expect.
        planar: whether it trains in planar order (NCHW) on a CPU, where channels last is faster but not safe.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        width: int,
        rule: InputRule,
        channels: int | None = None,
        prefix_tokens: int = -1,
        head: nn.Module | None = None,
        norm: nn.Module | None = None,
        signed: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.head = head
        self.norm = norm
        self.width = width
        self.channels = channels or width
        self.prefix_tokens = prefix_tokens
        self.signed = signed
        self.rule = rule
        self.planar = any(_overruns(module) for module in net.modules())

    @property
    def has_tokens(self) -> bool:
        """Whether the output is tokens rather than a map."""
        return self.prefix_tokens >= 0

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` → the map or the tokens."""
        features: Tensor = self.net(images.contiguous() if self.planar and images.device.type == "cpu" else images)
        return features


def _overruns(module: nn.Module) -> bool:
    """Whether oneDNN's weight gradient of this convolution writes past its workspace in channels-last order (oneDNN #6035, seen with torch 2.14).

    Strided 1×1 convolutions of fewer channels than a vector is long: the stems of FastViT, MobileOne and RepVGG. Processes crashed, or went on
    with wrong gradients.
    """
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1):
        return False
    return module.stride != (1, 1) and module.in_channels // module.groups < VECTOR


def build_backbone(config: ModelConfig, crop: CropSpec, *, load_weights: bool) -> Backbone:
    """Build a backbone, with its start weights if asked.

    Raises:
        BackboneError: unknown name, weights that do not fit, an ONNX graph that can't be opened or does not match its file.
        ConfigError: an ONNX backbone without its declared input rule, or of another crop size.
    """
    if config.backbone.startswith("onnx:"):
        from reid.onnx_backbone import open_onnx

        return open_onnx(Path(config.backbone.removeprefix("onnx:")), config, crop)
    return _timm_backbone(config, crop, load_weights=load_weights)


# ---------------------------------------------------------------------------------------------------------------------------------- timm


class _TimmFeatures(nn.Module):
    """``forward_features`` of a timm model, as ``[B, C, h, w]`` or tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        return features.permute(0, 3, 1, 2) if self.channels_last else features


def _timm_backbone(config: ModelConfig, crop: CropSpec, *, load_weights: bool) -> Backbone:
    if not timm.is_model(config.backbone):
        hint = nearest(config.backbone.partition(".")[0], timm.list_models())[:200]
        raise BackboneError(f"timm has no model {config.backbone!r}{hint}")
    fetch = load_weights and config.weights == "timm"
    try:
        model = _create(config.backbone, crop, pretrained=fetch)
    except Exception as error:  # families check their sizes by assertions and more
        if not fetch or not isinstance(error, OSError | RuntimeError):
            raise BackboneError(f"timm can't make {config.backbone} for crops of {crop.height}×{crop.width}: {first_line(error):.200}") from error
        raise BackboneError(
            f"can't get timm's weights for {config.backbone} ({type(error).__name__}: {first_line(error):.120}); with no network, "
            "download them on a connected machine and set model.weights=PATH, or start from random weights with model.weights=none"
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
    if getattr(model, "global_pool", None) == "avg" and not isinstance(getattr(model, "fc_norm", None), nn.Identity | None):
        norm, model.fc_norm = model.fc_norm, nn.Identity()
    return Backbone(_TimmFeatures(model), width=width, rule=rule, prefix_tokens=prefix_tokens, norm=norm)


def _take_last_stride(model: Any, name: str, crop: CropSpec) -> None:
    """Set every stride of a ResNet's last stage to 1; what pools a window of its own stride, or blurs before a stride, goes with it."""
    if not hasattr(model, "layer4"):
        raise BackboneError(f"model.last_stride takes the stride out of a ResNet's last stage, and {name} has no such stage; leave it unset")
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
        raise BackboneError(f"model.last_stride can't take the stride out of {name}'s last stage, which is built in another way; leave it unset")


def _keep_stages(model: Any, stages: int, name: str, crop: CropSpec) -> int:
    """Cut a CNN after its first stages and return the channels of the map that is left."""
    info = getattr(model, "feature_info", [])
    deep = len({entry["module"].split(".")[0] for entry in info if str(entry["module"]).startswith("layer")})
    if not deep:
        raise BackboneError("model.stages cuts ResNets and their kin; leave it unset for this backbone")
    if stages >= deep:
        raise BackboneError(f"model.stages={stages} keeps all of this backbone's {deep} stages; set less, or leave it unset")
    for number in range(stages + 1, deep + 1):
        setattr(model, f"layer{number}", nn.Identity())
    return int(_probed(model, name, crop).shape[1])


def _create(name: str, crop: CropSpec, *, pretrained: bool) -> Any:
    """Create a timm model for this input size; only some (ViT and kin) have to be told it."""
    try:
        return timm.create_model(name, pretrained=pretrained, img_size=(crop.height, crop.width))
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=pretrained)


def _probed(model: Any, name: str, crop: CropSpec) -> Tensor:
    """Features of one empty crop: a map or tokens."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            features = model.forward_features(torch.zeros(1, 3, crop.height, crop.width))
    except Exception as error:  # families check their sizes by assertions and more
        raise BackboneError(f"{name} can't take crops of {crop.height}×{crop.width}: {first_line(error):.200}") from error
    finally:
        model.train(was_training)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise BackboneError(f"{name} gives neither one feature map nor one row of tokens; choose another model.backbone")
    return features


def _is_signed(model: Any, crop: CropSpec) -> bool:
    """Whether a map can be negative, as none is that ends in a ReLU, whatever the weights.

    It is asked of weights drawn for the purpose, so that a network says the same of itself before and after its weights are loaded.
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
            return bool((torch.func.functional_call(_TimmFeatures(model), {f"model.{k}": v for k, v in weights.items()}, (images,)) < 0).any())
    finally:
        model.train(was_training)


def _prefix_tokens(model: Any, tokens: int, name: str, crop: CropSpec) -> int:
    """How many tokens come before those of the grid, checked against the grid's size."""
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
            f"{name} gives {tokens} tokens for a grid of {wanted} and {announced} before it, so they can't be pooled; choose another model.backbone"
        )
    return announced


def first_line(error: Exception) -> str:
    """Say what an error says, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _in_255(values: Any) -> tuple[float, float, float]:
    red, green, blue = (255.0 * float(value) for value in values)
    return red, green, blue


def load_weights_file(model: nn.Module, path: Path, *, classifier: str | tuple[str, ...] | None) -> None:
    """Load start weights strictly, but for the classifier; wrappers' key prefixes are stripped and position embeddings resampled.

    Raises:
        BackboneError: unreadable, not tensors, or a key that is missing, left over or of another shape.
    """
    given = _without_prefix(_read_tensors(path), set(model.state_dict()))
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier or ()))
    given = {key: value for key, value in given.items() if not key.startswith(heads or ("\0",))}
    wanted = {key: value for key, value in model.state_dict().items() if not key.startswith(heads or ("\0",))}
    if "pos_embed" in given and "pos_embed" in wanted and given["pos_embed"].shape != wanted["pos_embed"].shape:
        grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
        before = wanted["pos_embed"].shape[1] - grid[0] * grid[1]  # none in DeiT III, whose class token has no place
        try:
            given["pos_embed"] = resample_abs_pos_embed(given["pos_embed"].float(), grid, num_prefix_tokens=before)
        except RuntimeError as error:
            shape = tuple(given["pos_embed"].shape)
            raise BackboneError(
                f"{path.name}: position embeddings {shape} are of no square grid, so they can't be resampled to {grid}; set crop.height and "
                "crop.width to what they were trained with"
            ) from error
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(given) - counters)
    extra = sorted(set(given) - set(wanted))
    shapes = sorted(key for key in set(given) & set(wanted) if given[key].shape != wanted[key].shape)
    for what, keys in (("lacks", missing), ("has the unknown", extra), ("has another shape for", shapes)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            found = f"it {what} {', '.join(keys[:3])}{more}"
            raise BackboneError(f"{path.name} does not fit {type(model).__name__}: {found}; choose the matching model.backbone")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in given.items()}, strict=False)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BackboneError(f"no weights file {path}; model.weights takes none, timm or a path to .safetensors or .pth")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds; all mean the same to the user
        raise BackboneError(f"can't read weights {path}: {first_line(error):.200}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BackboneError(f"{path} holds no plain dictionary of tensors")
    return loaded


def _without_prefix(tensors: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """Strip wrappers' prefixes, one after the other, as far as most keys come to the model's names; then what only a re-ID checkpoint's head has."""
    best = stripped = tensors
    while prefix := next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): value for key, value in stripped.items()}
        if len(known & set(stripped)) > len(known & set(best)):
            best = stripped
    return {key: value for key, value in best.items() if key in known or not key.startswith(HEADS)}
