"""Models of requests and answers, for the OpenAPI document and for checking requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from deploy.service.refusal import CODES
from deploy.service.settings import MAX_TOP
from deploy.service.upgrading import NAME
from deploy.store.entry import MAX_LABEL, MAX_SOURCE

PLAIN = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"
"""No control characters, and at least one visible character."""

_HARMLESS = r"[^\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
STORED = f"^{_HARMLESS}*[^ {_HARMLESS[2:]}{_HARMLESS}*$"
"""Of what is kept: also none of those beyond ASCII, no line end and none that changes the reading order. Texts that are
only compared may hold them, so that what was stored by other means can be found and erased.
"""

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL, pattern=PLAIN)]
Source = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SOURCE, pattern=PLAIN)]
NewName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL, pattern=STORED)]
NewSource = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SOURCE, pattern=STORED)]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=STORED)]
Time = Annotated[str, StringConstraints(min_length=1, max_length=64), Field(json_schema_extra={"format": "date-time"})]
Flag = Literal["true", "false"]
Id = Annotated[int, Field(ge=1, lt=2**63)]
BundleName = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]

_AT = "2026-11-01T08:30:00+01:00"


class Form(BaseModel):
    """Fields of a request; an unknown one is refused."""

    model_config = ConfigDict(extra="forbid")


class QueryForm(Form):
    """Fields of a query besides its images."""

    reason: Reason | None = Field(
        None,
        description="Why you ask; it is kept in the audit log. A case number, not a name.",
        examples=["case 2026-117"],
    )
    top: int = Field(10, ge=1, le=MAX_TOP, description="Matches per image.", examples=[5])
    camera: Name | None = Field(None, description="Only this camera.", examples=["yard"])
    after: Time | None = Field(None, description="Only from this time on (ISO 8601 with zone).", examples=[_AT])
    before: Time | None = Field(None, description="Only before this time.", examples=["2026-11-02T00:00:00+01:00"])
    label: Name | None = Field(None, description="Only entries with this label.", examples=["badge 17"])
    site: Name | None = Field(
        None,
        description="Site that the images are from, of those whose statistics the bundle has: the answer is scored and "
        "ranked in its mixed metric.",
    )
    thumbnails: Flag = Field(
        "false",
        description="Include small pictures of the matches, where the operator allows it.",
        examples=["false"],
    )


class EnrolForm(Form):
    """Fields of an enrolment besides its images."""

    camera: NewName = Field(description="The camera that saw them.", examples=["yard"])
    source: list[NewSource] = Field(
        [],
        description="Where each crop came from, one per image; by default the request's id.",
        examples=[["yard/0001.jpg"]],
    )
    time: list[Time] = Field(
        [], description="When each was seen: one for all, one per image, or none.", examples=[[_AT]]
    )
    label: NewName | None = Field(None, description="Name of the person, for all images.", examples=["badge 17"])
    force: Flag = Field(
        "false",
        description="Store what can't be a crop of one person, too: whole frames, strips.",
        examples=["false"],
    )


class ForgetForm(Form):
    """Which entries to erase: those that match every given field."""

    label: Name | None = Field(None, description="Everything with this label.", examples=["badge 17"])
    camera: Name | None = Field(None, description="Everything from this camera.", examples=["yard"])
    source: Source | None = Field(None, description="Everything whose source starts with this.", examples=["yard/"])
    before: Time | None = Field(None, description="Everything from before this time.", examples=[_AT])
    older_than: int | None = Field(
        None, ge=0, le=36500, description="Everything older than this many days.", examples=[30]
    )
    score: float = Field(0.7, ge=-1, le=1, description="Minimum cosine to the image sent as like.", examples=[0.75])
    dry_run: Flag = Field("false", description="Report what would be erased, and erase nothing.", examples=["true"])


class UpgradeBody(Form):
    """An upgrade to start."""

    bundle: BundleName = Field(description="Name of a bundle in the folder of bundles.", examples=["bundle-2"])
    via: list[BundleName] = Field([], max_length=16, description="Bundles of intermediate models.", examples=[[]])
    dry_run: bool = Field(False, description="Report what to expect, and change nothing.", examples=[False])


class ErrorText(BaseModel):
    """What went wrong."""

    code: Literal[tuple(CODES)] = Field(examples=["busy"])  # type: ignore[valid-type]
    message: str = Field(examples=["64 requests are already being answered; try again in a moment"])


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: ErrorText


class MatchBody(BaseModel):
    """One stored crop that looks like the query."""

    model_config = ConfigDict(extra="allow")

    rank: int = Field(examples=[1])
    score: float = Field(
        description="Cosine similarity, in the metric that the answer names; by default the gallery's.",
        examples=[0.873],
    )
    id: int = Field(examples=[4021])
    source: str = Field(examples=["yard/0001.jpg"])
    camera: str = Field(examples=["yard"])
    time: str | None = Field(examples=[_AT])
    label: str | None = Field(examples=[None])
    verdict: str | None = Field(
        None,
        description="same person, unsure or no match, where the bundle is calibrated; by the pooled score where a site "
        "was given.",
        examples=["same person"],
    )
    metric: str | None = Field(None, description="The metric of the score, where a site was given.", examples=[None])
    pooled: float | None = Field(
        None, description="Cosine similarity in the gallery's own metric, where a site was given.", examples=[None]
    )
    thumbnail: str | None = Field(
        None, description="A data: URL, where one was requested and may be shown.", examples=[None]
    )


class ResultBody(BaseModel):
    """What was found for one image."""

    verdict: str | None = Field(
        description="The best of its matches' verdicts; null where the bundle is not calibrated; unsure where there is "
        "a warning.",
        examples=["same person"],
    )
    warning: str | None = Field(
        None,
        description="Why the image can't be a crop of one person: it is a whole frame, a strip or a speck.",
        examples=[None],
    )
    matches: list[MatchBody]


class QueryBody(BaseModel):
    """What was found for each image, in order."""

    results: list[ResultBody]
    feature_space: str = Field(examples=["5f1c…"])
    metric: str | None = Field(
        None,
        description="The metric of the scores: the bundle's, or mixed:SITE where a site was given; null for the plain "
        "cosine.",
        examples=["pooled"],
    )
    record: int = Field(description="Number of this query's record in the audit log.", examples=[118])


class EnrolBody(BaseModel):
    """Ids of the new entries; null for an image whose source, camera and time were already there."""

    ids: list[int | None] = Field(examples=[[4021]])
    known: int = Field(description="How many were already there.", examples=[0])


class ForgetBody(BaseModel):
    """What was erased."""

    forgotten: int = Field(examples=[3])
    backups: list[str] = Field(description="Earlier backups, which the erasure did not reach.", examples=[[]])


class PreviewBody(BaseModel):
    """What would be erased."""

    entries: int = Field(description="How many.", examples=[3])
    ids: list[int] = Field(description="The first thousand of them.", examples=[[4, 5, 9]])


class UpgradeState(BaseModel):
    """Progress of an upgrade."""

    state: Literal["none", "loading", "carrying", "done", "failed"] = Field(examples=["carrying"])
    bundle: str | None = Field(None, examples=["bundle-2"])
    done: int = Field(0, examples=[4096])
    total: int = Field(0, examples=[100000])
    expect: list[str] = Field(
        [],
        examples=[
            [
                "carried embeddings of held-out crops reach a cosine of 0.950 with the new model's own (0.310 without "
                "carrying)"
            ]
        ],
    )
    message: str | None = Field(None, examples=[None])
    started: str | None = Field(None, examples=[_AT])
    finished: str | None = Field(None, examples=[None])


class ExpectBody(BaseModel):
    """What an upgrade would do."""

    expect: list[str] = Field(
        examples=[
            [
                "carried embeddings of held-out crops reach a cosine of 0.950 with the new model's own (0.310 without "
                "carrying)"
            ]
        ]
    )


class ReadyBody(BaseModel):
    """Whether requests are answered, and by what."""

    ready: bool = Field(examples=[True])
    state: str = Field(description="ready, warming, mismatch or closing", examples=["ready"])
    provider: str = Field(examples=["cpu"])
    feature_space: str = Field(examples=["5f1c…"])
    generation: int = Field(description="Number of changes to the gallery that the index reflects.", examples=[812])
    entries: int = Field(examples=[100000])
    ageing_waits: list[Literal["gallery", "audit"]] | None = Field(
        None,
        description="What erases nothing by age until a person confirms the time, as the clock moved by more than is "
        "plausible; left out where nothing waits.",
        examples=[None],
    )


class StatsBody(BaseModel):
    """What the gallery holds, in counts."""

    model_config = ConfigDict(extra="allow")

    entries: int = Field(examples=[100000])
    dim: int = Field(examples=[512])
    feature_space: str = Field(examples=["5f1c…"])
    generation: int = Field(examples=[812])
    cameras: dict[str, int] = Field(examples=[{"yard": 60000, "gate": 40000}])
    labelled: int = Field(examples=[120])
    retention: dict[str, int] = Field(
        description="Days per camera; the empty name is for all others.", examples=[{"": 30}]
    )
    provider: str = Field(examples=["cpu"])
    version: str = Field(examples=["0.1.0"])


class AuditBody(BaseModel):
    """Records of an audit chain."""

    records: list[dict[str, Any]] = Field(
        examples=[
            [{"number": 118, "time": _AT, "action": "query", "token": "desk", "reason": "case 2026-117", "results": 5}]
        ]
    )
    head: str | None = Field(
        description="Seal of the newest record; store it elsewhere to notice later if records were removed.",
        examples=["9d3e…"],
    )
    intact: bool | None = Field(description="Whether the chain is intact; null if it was not checked.", examples=[True])
    message: str | None = Field(None, description="Where it is broken.", examples=[None])


class AliveBody(BaseModel):
    """The process is alive."""

    alive: bool = Field(examples=[True])
