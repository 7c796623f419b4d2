"""What a step's card has to say, checked before any of it is used: a run may have been made by somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from domains.errors import ArtefactError
from domains.text import shown

Count = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, le=1e12)]
"""Seconds, or crops per second."""


class _Loose(BaseModel):
    """Further keys are allowed: cards of other versions have some."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Crops(_Loose):
    train: Count


class _Learned(_Loose):
    name: str
    path: str
    same_camera: Literal["drop", "keep"] | None
    crops: _Crops

    @field_validator("path")
    @classmethod
    def _is_path(cls, value: str) -> str:
        value.encode()  # half a surrogate pair is no text, and names no folder
        if "\0" in value:
            raise ValueError("a null byte is in no path")
        return value


class _Method(_Loose):
    name: str


class _Notes(_Loose):
    left_out: list[str] = []


class _Card(_Loose):
    index: Count
    feature_space: str
    dim: Annotated[int, Field(ge=1, lt=2**31)]
    train: _Notes
    domains: list[_Learned]
    classes: list[str]
    notes: list[str]


class _Training(_Notes):
    seconds: Amount
    crops_per_second: Amount
    waiting: Amount
    seconds_ending: Amount = 0.0
    config: dict[str, Any] = {}


class _Bytes(_Loose):
    memory: Count
    classifier_rows_of_old_identities: Count
    teachers: Count
    fusion_partner: Count
    transport: Count = 0
    kept: Count = 0


class _LaterCard(_Card):
    """Of a step that learned something."""

    method: _Method
    train: _Training
    bytes: _Bytes


def check_card(card: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return a step's card if it says what one has to; raises ArtefactError naming the first key that is wrong."""
    try:
        (_LaterCard if card.get("index") else _Card).model_validate(card)
    except (ValidationError, UnicodeEncodeError) as error:
        faults = error.errors() if isinstance(error, ValidationError) else []
        where = ".".join(str(part) for part in faults[0]["loc"]) if faults else "path"
        raise ArtefactError(
            f"{path} does not describe a step: {shown(where)[:80]} is missing or wrong; restore it from a backup"
        ) from error
    return card
