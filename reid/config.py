"""The configuration of a run and of a method: strict, typed, and written beside every result.

An unknown key is an error that names the nearest one. ``model.*``, ``crop.*``, ``data.*`` and ``seed`` are fixed for a
run's life; ``train.*`` and the method are recorded per step.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from domains import plainyaml
from domains.crops import CropSpec, Resize
from domains.errors import ConfigError

CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")
"""Where shipped configurations are: in an installed wheel, and in a checkout."""

VARIABLE = re.compile(r"\$\{(\w+)\}")
DEVICE = re.compile(r"cpu|cuda(:(0|[1-9][0-9]{0,2}))?")
MAX_BATCH = 2**16
"""Crops of a batch; those of 256×128 pixels would take 6 GiB before any network sees them."""

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Entry = dict[str, dict[str, Any]]
T = TypeVar("T", bound="Strict")


class Strict(BaseModel):
    """A frozen model that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Strict):
    """The network: fixed for a run's life."""

    backbone: str = "resnet50"
    """A timm model name, or ``onnx:PATH`` to continue training an exported encoder."""
    weights: str = "timm"
    """Initial weights: ``timm`` (its own, downloaded), ``none`` (random), or a local ``.safetensors`` or ``.pth``."""
    dim: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Width of the embedding; unset: 512, or an ONNX graph's own."""
    stages: Annotated[int, Field(ge=1)] | None = None
    """Keep only the first stages of a CNN, as DKP does with three of a ResNet-50's four; unset: all."""
    last_stride: Literal[1] | None = None
    """1 removes the stride of a ResNet's last stage, as re-ID recipes do; unset: the model's own."""
    embedding: Literal["linear", "none"] = "linear"
    """``none``: the pooled features are the embedding, as wide as the backbone."""
    pooling: Literal["auto", "gem", "average", "token"] = "auto"
    """``auto``: for a feature map GeM, or the average where values can be negative; for tokens what the family does
    (class token, or mean and its norm).
    """
    channels: Literal["auto", "rgb", "bgr"] = "auto"
    """Channel order the backbone was trained with; ``auto``: RGB for timm, must be declared for ONNX."""
    mean: tuple[float, float, float] | None = None
    """Per-channel mean in 0..255, in the backbone's channel order; unset: timm's own; must be declared for ONNX."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Per-channel standard deviation in 0..255, likewise."""


class CropConfig(Strict):
    """The input crop: fixed for a run's life."""

    height: Annotated[int, Field(ge=16, le=1024)] = 256
    width: Annotated[int, Field(ge=16, le=1024)] = 128
    resize: Resize = "area"

    def spec(self) -> CropSpec:
        """Return the rule that decodes crops."""
        return CropSpec(self.height, self.width, self.resize)


class AugmentConfig(Strict):
    """Random changes to training crops; probabilities are per crop."""

    flip: Unit = 0.5
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.04
    """Padding before the random crop, as a fraction of the crop's height (10 pixels of 256 in the literature)."""
    colour: Unit = 0.0
    """Strength of brightness, contrast and saturation changes: factors are drawn from 1 ± this."""
    erase: Unit = 0.5
    erase_area: tuple[Positive, Positive] = (0.02, 0.4)
    erase_ratio: Positive = 0.3


class DataConfig(Strict):
    """Which of a domain's train crops are learned: fixed for a run's life."""

    identities: Annotated[int, Field(ge=2)] | None = None
    """Learn only the first n identities of each domain, in the order of their names, as the published protocol does
    with 500; unset: all.
    """


class TrainConfig(Strict):
    """How one step is trained."""

    iterations: Annotated[int, Field(ge=1, le=10**9)] = 1200
    epochs: Epochs | None = None
    """If set, replaces ``iterations``: epochs of (domain crops / batch crops) iterations each, rounded down."""
    first_epochs: Epochs | None = None
    """The same for the first domain of a run; unset: ``epochs``."""
    identities: Annotated[int, Field(ge=2, le=MAX_BATCH)] = 16
    """P of P×K sampling."""
    instances: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 4
    """K of P×K sampling."""
    sampling: Literal["identity", "domain"] = "identity"
    """What a joint batch is uniform over; makes a difference only if several domains are learned at once."""
    lr: Positive = 3.5e-4
    later_lr: Positive = 1.0
    """Factor on ``lr`` from the second step of a run on: a network that already knows people needs smaller steps
    than one that does not.
    """
    backbone_lr: Positive = 1.0
    """Factor on ``lr`` for the backbone's parameters."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    momentum: Unit = 0.9
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    warmup: Unit = 0.1
    """Fraction of the iterations with a linearly rising rate."""
    milestones: tuple[Unit, ...] = (0.5, 0.8)
    """Fractions of the iterations at which ``multistep`` multiplies the rate by ``gamma``."""
    warmup_epochs: Annotated[int, Field(ge=0, le=10**6)] | None = None
    """Replaces ``warmup`` where ``epochs`` is set."""
    milestone_epochs: tuple[Epochs, ...] | None = None
    """Replaces ``milestones`` where ``epochs`` is set."""
    gamma: Positive = 0.1
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest gradient norm; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    recompute: Annotated[int, Field(ge=0)] = 0
    """Recompute the activations of the backbone's first n blocks for the gradient instead of keeping them: less memory,
    more time, the same numbers.
    """
    adapter: Annotated[float, Field(gt=0, le=10)] = 0.6
    """Iterations that a method's adapter is trained for once the step is finished, as a fraction of ``iterations``."""
    adapter_lr: Positive = 1.0
    """Factor on ``lr`` while the adapter is trained."""
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of a domain's people who are kept out of its training and judge it: where they are found less well
    afterwards, the network stays as it was.
    """

    @model_validator(mode="after")
    def _batch(self) -> TrainConfig:
        if self.identities * self.instances > MAX_BATCH:
            raise ValueError(
                f"a batch of {self.identities} identities × {self.instances} instances is too large; at most "
                f"{MAX_BATCH:,} crops"
            )
        return self


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Return the learning rate of one iteration: linear warm-up, then cosine to zero, steps, or constant."""
    warmup = round(config.warmup * config.iterations)
    if iteration < warmup:
        return config.lr * (iteration + 1) / warmup
    if config.schedule == "cosine":
        done = (iteration - warmup) / max(1, config.iterations - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "multistep":
        passed = sum(iteration >= round(milestone * config.iterations) for milestone in config.milestones)
        return config.lr * config.gamma**passed
    return config.lr


class StorageConfig(Strict):
    """Settings that change no learned bit: how crops are stored and how often a step in progress is saved."""

    crop_memory_mb: Annotated[int, Field(ge=0)] = 4096
    """Decoded crops above this many MiB go to an unlinked, memory-mapped scratch file."""
    snapshot_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How often the state of a step in progress is written; 0: after every iteration."""


class Config(Strict):
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "cpu"
    method: str = "default"
    model: ModelConfig = ModelConfig()
    crop: CropConfig = CropConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    data: DataConfig = DataConfig()
    storage: StorageConfig = StorageConfig()

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not DEVICE.fullmatch(value):
            raise ValueError('device must be "cpu", "cuda" or "cuda:N"')
        return value

    def fixed(self) -> dict[str, Any]:
        """Return what no later step may change."""
        return {
            key: value
            for key, value in flatten(self.model_dump(mode="json")).items()
            if key.split(".")[0] in ("seed", "model", "crop", "data")
        }

    def learning(self) -> dict[str, Any]:
        """Return every key that can change learned weights: everything but storage."""
        return {
            key: value for key, value in flatten(self.model_dump(mode="json")).items() if not key.startswith("storage.")
        }


class Method(Strict):
    """A lifelong method: lists of named parts, each ``{name: {parameter: value}}``."""

    name: str
    about: str
    """One sentence: what it does and where it comes from."""
    terms: tuple[Entry, ...] = ()
    """What the network learns from; none: it stays as it is, and the step only measures the site."""
    fusion: tuple[Entry, ...] = ()
    repair: tuple[Entry, ...] = ()
    transport: tuple[Entry, ...] = ()
    adapter: tuple[Entry, ...] = ()
    """Terms of a second training beside the finished model, which stays unchanged: what one site alone needs."""
    metric: tuple[Entry, ...] = ()
    """What the metric of the site is made of, in which its people are compared."""
    needs_all_images: bool = False
    """Breaks the rule that old images are not kept: only the joint upper bound may."""

    @field_validator("terms", "fusion", "repair", "transport", "adapter", "metric", mode="before")
    @classmethod
    def _entries(cls, value: Any) -> Any:
        """Accept both ``- triplet`` and ``- triplet: {weight: 2}``."""
        if not isinstance(value, list | tuple):
            raise ValueError("must be a list of parts")
        entries = [{item: {}} if isinstance(item, str) else item for item in value]
        if not all(isinstance(entry, dict) and len(entry) == 1 for entry in entries):
            raise ValueError("each part is one name with its parameters")
        return tuple({key: {} if body is None else body for key, body in entry.items()} for entry in entries)

    @model_validator(mode="after")
    def _does_something(self) -> Method:
        if not self.terms and not self.metric:
            raise ValueError("a method needs terms to learn from, or a metric to measure; list one of them")
        if not self.terms and (self.fusion or self.repair or self.transport or self.adapter):
            raise ValueError("without terms the network stays as it is, so there is nothing to fuse, repair or adapt")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_metric(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty metric, so that cards and ids of methods without one are those of earlier versions."""
        body: dict[str, Any] = serialise(self)
        if not body.get("metric"):
            body.pop("metric", None)
        return body


class UnseenEntry(Strict):
    """A domain that is scored but never learned."""

    path: str
    same_camera: Literal["drop", "keep"] | None = None


class Stream(Strict):
    """A sequence of domains, and those that are only scored."""

    about: str = ""
    root: str = "."
    """Folder that domain paths are relative to, itself relative to the stream's file; ``${NAME}`` stands for an
    environment variable.
    """
    domains: tuple[str, ...] = Field(min_length=1)
    unseen: tuple[UnseenEntry, ...] = ()
    config: dict[str, Any] = {}
    """Settings of the run, as in a configuration file."""

    @field_validator("unseen", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        return (
            [{"path": item} if isinstance(item, str) else item for item in value]
            if isinstance(value, list | tuple)
            else value
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


KNOWN_KEYS = tuple(flatten(Config().model_dump()))


def build_config(*layers: Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """Merge settings, later ones over earlier ones, then ``key=value`` overrides (values are YAML).

    Raises:
        ConfigError: an unknown key (with the nearest known one), or a value of the wrong kind.
    """
    flat: dict[str, Any] = {}
    for layer in layers:
        flat |= flatten(layer)
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"--set takes key=value, got {text!r}")
        try:
            flat[key.strip()] = plainyaml.load(value)
        except ValueError as error:
            raise ConfigError(f"the value of {key} is not valid YAML: {value!r:.200}") from error
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in KNOWN_KEYS:
            raise ConfigError(f"unknown setting {key!r}{nearest(key, KNOWN_KEYS)}")
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return validated(Config, tree, "setting")


def validated(kind: type[T], tree: Any, what: str) -> T:
    """Validate with one line per fault; raises ConfigError."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            where = ".".join(str(part) for part in fault["loc"]) or what
            if fault["type"] == "extra_forbidden":
                faults.append(f"unknown key {where!r}{nearest(where, kind.model_fields)}")
            else:
                got = "" if isinstance(fault["input"], Mapping) else f", got {fault['input']!r:.80}"
                faults.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}{got}")
        raise ConfigError(f"{what}: " + "; ".join(faults)) from error


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?``, or all known words."""
    known = list(known)
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or [
        key for key in known if key.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]
    ]
    return f"; did you mean {matches[0]!r}?" if matches else f"; known: {', '.join(sorted(known))}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises ConfigError naming the file."""
    value = plainyaml.load_file(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(value).__name__}")
    return value


def shipped(kind: Literal["methods", "recipes", "streams"]) -> dict[str, Path]:
    """Return the shipped configurations of one kind, by name."""
    for folder in CONFIG_FOLDERS:
        if folder.is_dir():
            return {file.stem: file for file in sorted((folder / kind).glob("*.yaml"))}
    raise ConfigError("the shipped configurations are missing from this installation; reinstall lifelong-reid")


def read_method(name: str) -> Method:
    """Read a method by shipped name or by the path of a YAML file; raises ConfigError."""
    known = shipped("methods")
    path = known.get(name) or Path(name)
    if name not in known and path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"unknown method {name!r}{nearest(name, known)}")
    return validated(Method, {"name": path.stem, **read_yaml(path)}, f"method {path.stem}")


def read_settings(name: str) -> dict[str, Any]:
    """Read settings by path, or a recipe by its shipped name; raises ConfigError."""
    known, path = shipped("recipes"), Path(name)
    if not path.is_file():
        if name not in known:
            raise ConfigError(f"no settings file {name!r}{nearest(name, known)}")
        path = known[name]
    return read_yaml(path)


def read_stream(name: str) -> Stream:
    """Read a stream by path or by shipped name, its root made relative to the current folder; raises ConfigError."""
    path = Path(name)
    known = shipped("streams")
    if not path.is_file():
        file = known.get(path.stem) if path.parent.name in ("", "streams") else None
        if file is None:
            raise ConfigError(f"no stream file {name!r}{nearest(path.stem, known)}")
        path = file
    stream = validated(Stream, expanded(read_yaml(path)), f"stream {path.stem}")
    return stream.model_copy(update={"root": str(path.parent / stream.root)})


def expanded(tree: Any) -> Any:
    """Replace ``${NAME}`` in every text by the environment variable; raises ConfigError if it is not set."""
    if isinstance(tree, dict):
        return {key: expanded(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [expanded(value) for value in tree]
    return VARIABLE.sub(_variable, tree) if isinstance(tree, str) else tree


def _variable(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if value is None:
        raise ConfigError(
            f"the environment variable {match[1]} is not set; set it to the folder that the configuration means by "
            f"{match[0]}"
        )
    return value
