"""The application: its routes behind the gate, its OpenAPI document, its start-up and shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from deploy.encoder import Encoder
from deploy.gallery import Gallery
from deploy.service.audit_log import AuditLog, audit_log_of
from deploy.service.backend import Backend
from deploy.service.gate import Gate
from deploy.service.json_answer import JsonAnswer
from deploy.service.logs import write_log
from deploy.service.metrics import CONTENT_TYPE, STORES, Metrics
from deploy.service.openapi import describe
from deploy.service.refusal import UNAVAILABLE, RefusedError
from deploy.service.routes import router
from deploy.service.settings import Settings
from deploy.service.upgrading import Upgrading
from domains.artefact import code_version
from domains.errors import ClockError, ReidError

PAGE = Path(__file__).parent / "page"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
WARM_AGAIN = 10.0
"""Seconds between attempts to get ready."""
LOOK_AGAIN = 60.0
"""Seconds after which it is seen that a person has confirmed the time."""
ERASE_EVERY = 3000.0
"""Seconds between erasures; shorter than the gallery's own interval, so that no caller waits for it."""

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def create_app(gallery: Gallery, encoder: Encoder, settings: Settings | None = None) -> FastAPI:
    """Build the service's application.

    Args:
        gallery: an open gallery; the application closes it on shutdown.
        encoder: an encoder in the gallery's feature space.
        settings: limits and paths.

    Returns:
        An ASGI application. It is ready once its lifespan has started and the index is loaded.

    Raises:
        GalleryError: gallery and encoder do not match, or the audit log can't be opened.
    """
    settings = settings or Settings()
    metrics = Metrics()
    backend = Backend(gallery, encoder, settings, metrics)
    audit_log = AuditLog(settings.audit or audit_log_of(gallery.path), keep=settings.keep_audit)
    app = FastAPI(
        title="lifelong-reid",
        version=code_version(),
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    state = app.state
    state.backend, state.audit_log, state.settings, state.metrics = backend, audit_log, settings, metrics
    state.upgrading = Upgrading(backend, audit_log, settings.bundles)
    metrics.watch(
        lambda: backend.last["entries"], lambda: backend.last["generation"], lambda: float(_state(backend) == "ready")
    )
    app.include_router(router)
    _add_probes(app)
    _add_page(app)
    app.add_exception_handler(RefusedError, _on_refused)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_unexpected)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    state.gate = Gate(app.build_middleware_stack(), settings, metrics)
    app.middleware_stack = state.gate
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state = app.state
    tasks = [
        asyncio.create_task(_warm_up(state.backend)),
        asyncio.create_task(_erase_old(state.backend, state.audit_log, state.settings.keep_audit, state.metrics)),
    ]
    write_log(
        logging.INFO,
        "started",
        feature_space=state.backend.encoder.feature_space,
        provider=state.backend.encoder.provider,
        version=app.version,
    )
    try:
        yield
    finally:
        state.backend.closing.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(state.upgrading.wait)
        await asyncio.to_thread(state.backend.close)
        head = state.audit_log.head()
        await asyncio.to_thread(state.audit_log.close)
        write_log(logging.INFO, "stopped", audit_number=head.number, audit_head=head.hash)


async def _warm_up(backend: Backend) -> None:
    """Get ready, and try again if that fails: a device may be busy, or a damaged entry may be removed meanwhile."""
    while True:
        try:
            await backend.warm_up()
            break
        except Exception as error:
            write_log(
                logging.CRITICAL, "the service can't get ready; it tries again", exception=error, **_reason(error)
            )
        await asyncio.sleep(WARM_AGAIN)
    write_log(logging.INFO, "ready", entries=backend.last["entries"], generation=backend.last["generation"])


async def _erase_old(backend: Backend, audit_log: AuditLog, days: int | None, metrics: Metrics) -> None:
    """Erase old audit records and expired entries even when nobody asks anything, and log the newest seal.

    The seal in the log can show later whether records were removed. Where the clock can't be trusted, nothing is erased
    until a person has confirmed the time.
    """
    while True:
        waits = {}
        try:
            if gone := await asyncio.to_thread(backend.gallery.retain):
                write_log(logging.INFO, "expired entries erased", entries=gone)
        except ClockError as error:
            waits["gallery"] = str(error)
        except Exception as error:  # the task must survive
            write_log(logging.ERROR, "expired entries could not be erased", exception=error, **_reason(error))
        try:
            if gone := await asyncio.to_thread(audit_log.erase, days):
                write_log(logging.INFO, "old audit records erased", records=gone, days=days)
        except ClockError as error:
            waits["audit"] = str(error)
        except Exception as error:
            write_log(logging.ERROR, "the audit log could not be kept in order", exception=error, **_reason(error))
        try:
            head = await asyncio.to_thread(audit_log.head)
            write_log(logging.INFO, "audit", number=head.number, head=head.hash)
        except Exception as error:
            write_log(logging.ERROR, "the audit log could not be kept in order", exception=error, **_reason(error))
        _tell_waiting(metrics, waits)
        await asyncio.sleep(min(LOOK_AGAIN, ERASE_EVERY) if waits else ERASE_EVERY)


def _tell_waiting(metrics: Metrics, waits: Mapping[str, str]) -> None:
    """Say what waits for a person before it erases anything by age, in the log if that is new."""
    for store in STORES:
        if store in waits and store not in metrics.waiting:
            write_log(logging.ERROR, "ageing waits for a person", store=store, reason=waits[store])
        elif store not in waits and store in metrics.waiting:
            write_log(logging.INFO, "ageing goes on", store=store)
        metrics.age(store, waits=store in waits)


def _reason(error: Exception) -> dict[str, str]:
    """The message of one of our errors; others are logged by type and place alone, as they may name anything."""
    return {"reason": str(error)} if isinstance(error, ReidError) else {}


def _state(backend: Backend) -> str:
    if backend.closing.is_set():
        return "closing"
    if not backend.warm:
        return "warming"
    return "ready" if backend.fits else "mismatch"


def _add_probes(app: FastAPI) -> None:
    @app.get("/livez")
    async def livez() -> JsonAnswer:
        """Whether the process is alive."""
        return JsonAnswer({"alive": True})

    @app.get("/readyz")
    async def readyz(request: Request) -> JsonAnswer:
        """Whether requests are answered, and what answers them."""
        backend: Backend = request.app.state.backend
        facts = await backend.facts()
        state = _state(backend)
        body = {
            "ready": state == "ready",
            "state": state,
            "provider": backend.encoder.provider,
            "feature_space": backend.encoder.feature_space,
            **facts,
        }
        if waiting := [store for store in STORES if store in request.app.state.metrics.waiting]:
            body["ageing_waits"] = waiting
        ready = state == "ready"
        return JsonAnswer(
            body, status_code=200 if ready else UNAVAILABLE, headers=None if ready else {"retry-after": "1"}
        )

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        await request.app.state.backend.facts()
        return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    def show(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
        text = (PAGE / name).read_bytes()

        async def send() -> Response:
            return Response(text, media_type=kind, headers={"content-security-policy": PAGE_POLICY})

        return send

    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, show(name, kind), methods=["GET"], include_in_schema=False)


def _refusal(request: Request, refused: RefusedError, headers: Mapping[str, str] | None = None) -> Response:
    request.scope["refused"] = refused.code  # for the gate's log and metrics
    return JsonAnswer(refused.body(), status_code=refused.status, headers={**refused.headers, **(headers or {})})


async def _on_refused(request: Request, error: Exception) -> Response:
    return _refusal(request, cast(RefusedError, error))


async def _on_http(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: unknown paths and methods."""
    http_error = cast(HTTPException, error)
    if http_error.status_code == 404:
        return _refusal(request, RefusedError("not_found", "there is nothing at this path; see /openapi.json"))
    if http_error.status_code == 405:
        allowed = (http_error.headers or {}).get("Allow", "another method")
        return _refusal(request, RefusedError("method_not_allowed", f"this path accepts {allowed}"), http_error.headers)
    return _refusal(request, RefusedError("invalid", "the request can't be read"))


async def _on_invalid(request: Request, error: Exception) -> Response:
    first = cast(RequestValidationError, error).errors()[0]
    where = ".".join(str(part) for part in first["loc"])[:80] or "the request"
    return _refusal(request, RefusedError("invalid", f"{where}: {first['msg']:.200}"))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    number = request.scope["caller"].request
    return _refusal(
        request,
        RefusedError("internal", f"this is a bug in lifelong-reid; the service's log has it as request {number}"),
    )
