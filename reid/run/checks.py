"""Checks of a step without a network: what can't be learned is refused before one is built or weights are fetched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from domains.domain import Domain
from domains.errors import BackboneError, UsageError
from reid.config import Config, Method
from reid.network.runtime import Runtime
from reid.run.learning import planned
from reid.step.adapting import check_adapter
from reid.step.ending import check_parts
from reid.terms import build_terms


def check_step(
    members: Sequence[Domain], method: Method, config: Config, *, learned: Collection[str], allow_code: Collection[str]
) -> None:
    """Check that a method can learn these domains, at once, after those already learned.

    Raises:
        ConfigError: a part of the method is unknown or its parameters are wrong.
        UsageError: the method learns domains in another way.
        DataError: there are no train crops, or all are of one person.
        DeviceError: the device is not available.
    """
    Runtime.choose(config.device, "fp32", torch.nn.Identity())
    build_terms(method.terms, allow_code=allow_code)
    check_adapter(method, allow_code=allow_code)
    check_parts(method)
    if len(members) > 1 and not method.needs_all_images:
        raise UsageError(f"method {method.name} learns one domain at a time")
    if method.needs_all_images and learned:
        raise UsageError(
            f"method {method.name} learns all domains at once, breaking the rule that old images are not kept: "
            "use reid stream with a new run"
        )
    planned(list(members), config, later=bool(learned))


def check_names(everyone: Sequence[Domain]) -> None:
    """Raise UsageError if two domains have the same name."""
    names = [domain.name for domain in everyone]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two domains are called {twice!r}; folder names must differ")


def check_weights(config: Config) -> None:
    """Raise BackboneError if a file that the model starts from does not exist."""
    model = config.model
    graph = model.backbone.removeprefix("onnx:") if model.backbone.startswith("onnx:") else None
    for setting, file in (("model.backbone", graph), ("model.weights", model.weights)):
        if file is not None and file not in ("timm", "none") and not Path(file).is_file():
            raise BackboneError(f"{setting} names the file {file!r}, which does not exist; check the path")
