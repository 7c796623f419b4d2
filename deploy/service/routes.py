"""The routes under ``/v1``: each reads its form, lets the backend work, writes its audit record, and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import Field

from deploy.answers.thresholds import answer, unsure
from deploy.gallery.erasure import ErasureRequest
from deploy.match import Match
from deploy.service.audit_log import AuditLog
from deploy.service.backend import Backend
from deploy.service.bodies import EnrolForm, ForgetForm, Id, QueryForm, UpgradeBody
from deploy.service.gate import Caller, Gate
from deploy.service.json_answer import JsonAnswer
from deploy.service.refusal import RefusedError
from deploy.service.settings import Settings
from deploy.service.thumbnails import thumbnail
from deploy.service.upgrading import Upgrading
from deploy.service.uploads import doubts, read_form, read_json
from deploy.store.entry import Entry
from deploy.store.selection import Selection
from domains.artefact import code_version
from domains.errors import GalleryError
from domains.text import shown

Result = TypeVar("Result")
PREVIEWED = 1000
router = APIRouter(prefix="/v1")


class Parts:
    """What the routes share, kept by the application."""

    def __init__(self, request: Request) -> None:
        """Collect the parts of the application that received a request."""
        state = request.app.state
        self.backend: Backend = state.backend
        self.audit_log: AuditLog = state.audit_log
        self.settings: Settings = state.settings
        self.upgrading: Upgrading = state.upgrading
        self.gate: Gate = state.gate
        self.caller: Caller = request.scope["caller"]

    def check_ready(self) -> None:
        """Raise RefusedError while the index is being loaded."""
        if not self.backend.warm:
            raise RefusedError("not_ready", "the service is warming up; try again in a moment")

    def check_writable(self) -> None:
        """Raise RefusedError if the gallery can only be read, so that no change is even recorded."""
        if self.backend.gallery.read_only:
            raise RefusedError("conflict", "the service can only read this gallery, and so can't change it")

    def charge(self, images: int) -> None:
        """Count each image after the first as another request."""
        self.gate.rate.charge(self.caller.token or "local", max(0, images - 1))

    async def record(self, action: str, **what: str | int | None) -> int:
        """Write an audit record; raises RefusedError if it can't be written, as then nothing may be answered."""
        known = {name: value for name, value in what.items() if value is not None}
        try:
            return await self.audit_log.write(action, request=self.caller.request, token=self.caller.name, **known)
        except GalleryError as error:
            raise RefusedError(
                "audit", "the audit log can't be written, so nothing is answered; the service's log says why"
            ) from error


@router.post("/query")
async def query(request: Request) -> JsonAnswer:
    """Find a person by image: which cameras have seen them, and when."""
    parts = Parts(request)
    parts.check_ready()
    form, images = await read_form(request, QueryForm, parts.settings, images="images", needed=True)
    if parts.settings.require_reason and form.reason is None:
        raise RefusedError("invalid", "reason: say why you ask; it is kept in the audit log")
    filters = {
        name: getattr(form, name) for name in ("camera", "after", "before", "label") if getattr(form, name) is not None
    }
    _checked(lambda: Selection(**filters))
    parts.charge(len(images))
    doubtful = await doubts(images)
    matches = await parts.backend.search(images, k=form.top, site=form.site, **filters)
    matches = [unsure(row) if doubt else row for row, doubt in zip(matches, doubtful, strict=True)]
    drawn = form.thumbnails == "true" and bool(parts.settings.pictures)
    number = await parts.record(
        "query",
        reason=form.reason,
        images=len(images),
        results=sum(map(len, matches)),
        filters="+".join([*filters, *(["site"] if form.site is not None else [])]) or None,
        thumbnails=int(drawn) or None,
    )
    results = (
        await asyncio.to_thread(_with_thumbnails, matches, parts.settings)
        if drawn
        else [[match.to_dict() for match in row] for row in matches]
    )
    return JsonAnswer(
        {
            "results": [
                {"verdict": "unsure" if doubt else answer(row), "warning": doubt, "matches": result}
                for row, doubt, result in zip(matches, doubtful, results, strict=True)
            ],
            "feature_space": parts.backend.encoder.feature_space,
            "metric": parts.backend.metric(form.site),
            "record": number,
        }
    )


@router.post("/entries")
async def enrol(request: Request) -> JsonAnswer:
    """Add images of people to the gallery; all are stored, or none."""
    parts = Parts(request)
    parts.check_writable()
    parts.check_ready()
    form, images = await read_form(request, EnrolForm, parts.settings, images="images", needed=True)
    count = len(images)
    sources = form.source or [
        f"upload:{parts.caller.request}" + (f"-{number}" if count > 1 else "") for number in range(1, count + 1)
    ]
    sent: list[str | None] = [*form.time]
    times = sent * count if len(sent) == 1 else sent or [None] * count
    if len(sources) != count or len(times) != count:
        raise RefusedError(
            "invalid",
            f"there are {count} images: give a source for each or none, and a time for each, for all, or none",
        )
    entries = _checked(
        lambda: [Entry(form.camera, source, time, form.label) for source, time in zip(sources, times, strict=True)]
    )
    parts.charge(count)
    if form.force != "true":
        for position, doubt in enumerate(await doubts(images), 1):
            if doubt:
                raise RefusedError(
                    "invalid",
                    f"images {position}: {doubt}; cut out the person, or send force=true to store it as it is",
                )
    gallery = parts.backend.gallery
    known = await parts.backend.run(lambda: [gallery.has(entry) for entry in entries])
    fresh = [index for index, there in enumerate(known) if not there]
    ids: list[int | None] = [None] * count
    if fresh:
        await parts.record("enrol", images=len(fresh))
        added = await parts.backend.add(
            [images[index] for index in fresh],
            camera=form.camera,
            source=[sources[index] for index in fresh],
            time=[times[index] for index in fresh],
            label=form.label,
        )
        for index, number in zip(fresh, added, strict=True):
            ids[index] = number
    return JsonAnswer({"ids": ids, "known": ids.count(None)}, status_code=201 if any(ids) else 200)


@router.delete("/entries")
async def erase_entries(
    request: Request, ids: Annotated[list[Id], Query(min_length=1, max_length=1000, examples=[[4, 5, 9]])]
) -> JsonAnswer:
    """Erase entries by id, bytes included; unknown ids are ignored."""
    parts = Parts(request)
    parts.check_writable()
    await parts.record("forget", by="ids", asked=len(set(ids)))
    return JsonAnswer(await parts.backend.erase(sorted(set(ids)), "ids"))


@router.post("/forget")
async def forget(request: Request) -> JsonAnswer:
    """Erase everything that matches all the given fields; preview it with dry_run."""
    parts = Parts(request)
    parts.check_ready()
    gallery = parts.backend.gallery
    form, images = await read_form(request, ForgetForm, parts.settings, images="like", needed=False)
    _checked(lambda: Selection(camera=form.camera, label=form.label, source=form.source, before=form.before))
    parts.charge(len(images))
    wanted = ErasureRequest(None, form.label, form.camera, form.source, form.before, form.older_than, form.score)
    if wanted.names_nothing and not images:
        raise RefusedError(
            "invalid", "say what to forget: label, camera, source, before, older_than, or an image named like"
        )
    preview = form.dry_run == "true"
    if not preview:
        parts.check_writable()
    if images:
        ids, by = await parts.backend.with_vectors(images, lambda vectors: wanted.of(gallery, vectors, preview=preview))
    else:
        ids, by = await parts.backend.run(lambda: wanted.of(gallery, preview=preview))
    if preview:
        await parts.record("forget preview", by=by, entries=len(ids))
        return JsonAnswer({"entries": len(ids), "ids": ids[:PREVIEWED]})
    await parts.record("forget", by=by, asked=len(ids))
    return JsonAnswer(await parts.backend.erase(ids, by))


@router.post("/upgrade")
async def upgrade(request: Request) -> JsonAnswer:
    """Carry the gallery into another model's feature space, in the background while queries are answered."""
    parts = Parts(request)
    body = await read_json(request, UpgradeBody)
    bundle, via = parts.upgrading.find(body.bundle), [parts.upgrading.find(name) for name in body.via]
    if body.dry_run:
        return JsonAnswer({"expect": await parts.backend.run(lambda: parts.upgrading.expect(bundle, via))})
    parts.check_writable()
    await parts.backend.run(lambda: parts.upgrading.check(bundle, via))
    await parts.record("upgrade asked", bundle=bundle.name)
    parts.upgrading.start(bundle, via, by=parts.caller.name)
    return JsonAnswer(parts.upgrading.state(), status_code=202)


@router.get("/upgrade")
async def upgrade_state(request: Request) -> JsonAnswer:
    """Progress of the last upgrade."""
    return JsonAnswer(Parts(request).upgrading.state())


@router.get("/stats")
async def stats(request: Request) -> JsonAnswer:
    """What the gallery holds, in counts."""
    parts = Parts(request)
    gallery = parts.backend.gallery
    info = await parts.backend.run(lambda: {**gallery.info(), "retention": gallery.retention()})
    hidden = ("bundle", "spaces", "bytes")
    public = {name: value for name, value in info.items() if name not in hidden}
    return JsonAnswer({**public, "provider": parts.backend.encoder.provider, "version": code_version()})


@router.get("/audit")
async def audit(
    request: Request,
    chain: Annotated[
        Literal["service", "gallery"], Query(description="The service's own records, or what was done to the gallery.")
    ] = "service",
    after: Annotated[
        int, Field(ge=0, lt=2**63), Query(description="Only records with a higher number.", examples=[0])
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, examples=[100])] = 100,
    verify: Annotated[bool, Query(description="Also check the whole chain.")] = False,
) -> JsonAnswer:
    """Records of who asked what, when and why."""
    parts = Parts(request)
    if chain == "gallery":
        records = await parts.backend.run(parts.backend.gallery.audit)  # checks the chain in any case
        numbered = [{"number": number, **record} for number, record in enumerate(records, 1)]
        return JsonAnswer({"records": numbered[after : after + limit], "head": None, "intact": True})
    audit_log = parts.audit_log
    try:
        records, head = await asyncio.to_thread(audit_log.read, after, limit), await asyncio.to_thread(audit_log.head)
    except GalleryError as error:
        raise RefusedError("audit", str(error).replace(str(audit_log.file), "the service")) from error
    intact, message = None, None
    if verify:
        try:
            await asyncio.to_thread(audit_log.check)
            intact = True
        except GalleryError as error:
            intact, message = False, shown(str(error).replace(str(audit_log.file), "the service"))
    return JsonAnswer({"records": records, "head": head.hash, "intact": intact, "message": message})


def _checked(make: Callable[[], Result]) -> Result:
    """Call a constructor on a client's values; its errors go to the client."""
    try:
        return make()
    except GalleryError as error:
        raise RefusedError("invalid", str(error)) from error


def _with_thumbnails(matches: list[list[Match]], settings: Settings) -> list[list[dict[str, Any]]]:
    folders = settings.pictures
    return [
        [{**match.to_dict(), "thumbnail": thumbnail(match.source, folders, settings)} for match in row]
        for row in matches
    ]
