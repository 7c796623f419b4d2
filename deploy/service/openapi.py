"""The OpenAPI document: what the routes accept and return, with an example each, and every error they can give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from deploy.service import bodies as schema
from deploy.service.access import ANY, OPEN, ROUTES
from deploy.service.refusal import CODES
from deploy.service.settings import Settings

_REF = "#/components/schemas/{model}"
_EVERYWHERE = {"too_large", "slow_client", "internal", "timeout", "foreign_host"}
_GUARDED = {"unauthorized", "rate_limited"}
_BODIES = {"unsupported_body", "invalid"}
_WORK = {"busy", "not_ready", "gallery", "audit"}
_IMAGES = {"damaged_image", "unsupported_image", "too_many_pixels"}

ABOUT = """Find a person by image in a gallery of camera crops, enrol, erase, and carry the gallery into a new model.

Every error has the body `{"error": {"code", "message"}}`. An answer with 429 or 503 says in `Retry-After` when to try
again. `X-Request-Id` names the request in the service's log and audit. Tokens are made by `reid token make`."""


@dataclass(frozen=True)
class _Operation:
    """What FastAPI can't see of a route: its form or JSON body, its answers by status, and its own error codes."""

    answers: dict[int, type[BaseModel]]
    form: type[BaseModel] | None = None
    images: str = ""
    needed: bool = False
    json: type[BaseModel] | None = None
    errors: frozenset[str] = frozenset()


_OPERATIONS: dict[tuple[str, str], _Operation] = {
    ("POST", "/v1/query"): _Operation({200: schema.QueryBody}, schema.QueryForm, "images", True),
    ("POST", "/v1/entries"): _Operation(
        {201: schema.EnrolBody, 200: schema.EnrolBody}, schema.EnrolForm, "images", True, errors=frozenset({"conflict"})
    ),
    ("DELETE", "/v1/entries"): _Operation({200: schema.ForgetBody}, errors=frozenset({"invalid", "conflict"})),
    ("POST", "/v1/forget"): _Operation(
        {200: schema.ForgetBody | schema.PreviewBody},  # type: ignore[dict-item]
        schema.ForgetForm,
        "like",
        errors=frozenset({"conflict"}),
    ),
    ("POST", "/v1/upgrade"): _Operation(
        {202: schema.UpgradeState, 200: schema.ExpectBody},
        json=schema.UpgradeBody,
        errors=frozenset({"conflict", "not_found", "forbidden", "gallery", "audit"}),
    ),
    ("GET", "/v1/upgrade"): _Operation({200: schema.UpgradeState}),
    ("GET", "/v1/stats"): _Operation({200: schema.StatsBody}, errors=frozenset({"gallery"})),
    ("GET", "/v1/audit"): _Operation({200: schema.AuditBody}, errors=frozenset({"invalid"})),
    ("GET", "/livez"): _Operation({200: schema.AliveBody}),
    ("GET", "/readyz"): _Operation({200: schema.ReadyBody, 503: schema.ReadyBody}),
    ("GET", "/metrics"): _Operation({}),
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, built once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
        components = document.setdefault("components", {})
        schemas: dict[str, Any] = {}
        components["schemas"] = schemas
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A token made by reid token make."}
        }
        guarded = app.state.settings.tokens is not None
        for (method, path), operation in _OPERATIONS.items():
            _complete(
                document["paths"][path][method.lower()],
                method,
                path,
                operation,
                schemas,
                app.state.settings,
                guarded=guarded,
            )
        app.openapi_schema = document
    return app.openapi_schema


def _complete(
    entry: dict[str, Any],
    method: str,
    path: str,
    operation: _Operation,
    schemas: dict[str, Any],
    settings: Settings,
    *,
    guarded: bool,
) -> None:
    route = ROUTES[method, path]
    entry["operationId"] = f"{method.lower()} {path}".replace("/v1/", "").replace("/", "").replace(" ", "_")
    codes = set(_EVERYWHERE) | operation.errors
    if route.access != OPEN:
        codes |= _GUARDED
    if route.access not in (OPEN, ANY):
        codes |= {"forbidden"}
        entry["description"] = f"{entry.get('description', '')}\n\nScope: {route.access}.".strip()
    if route.work:
        codes |= _WORK
    if operation.form or operation.json:
        codes |= _BODIES
    if operation.form:
        codes |= _IMAGES
        entry["requestBody"] = {"required": True, "content": {"multipart/form-data": _form(operation, settings)}}
    if operation.json:
        entry["requestBody"] = {"required": True, "content": {"application/json": _body(operation.json, schemas)}}
    if guarded and route.access != OPEN:
        entry["security"] = [{"bearer": []}]
    answers: dict[str, Any] = {
        str(status): {
            "description": "Done" if status < 400 else "Not ready",
            "content": {"application/json": _body(model, schemas)},
        }
        for status, model in operation.answers.items()
    }
    if path == "/metrics":
        answers["200"] = {
            "description": "Done",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "reid_ready 1.0\n"}},
        }
    for status in sorted({CODES[code] for code in codes}):
        here = sorted(code for code in codes if CODES[code] == status)
        error = _body(schema.ErrorBody, schemas)
        error["example"] = {"error": {"code": here[0], "message": "what was wrong, what was found, what to do"}}
        if (known := answers.get(str(status))) is not None:
            known["content"]["application/json"]["schema"] = {
                "anyOf": [known["content"]["application/json"]["schema"], error["schema"]]
            }
        else:
            answers[str(status)] = {"description": ", ".join(here), "content": {"application/json": error}}
    for again in {"429", "503"} & set(answers):
        answers[again]["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}}
    entry["responses"] = answers


def _body(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """Schema and example of a model, or of several that it may be."""
    parts = getattr(model, "__args__", None) or (model,)
    for part in parts:
        definition = part.model_json_schema(ref_template=_REF, mode="validation")
        schemas.update(definition.pop("$defs", {}))
        schemas[part.__name__] = definition
    refs = [{"$ref": _REF.format(model=part.__name__)} for part in parts]
    return {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}, "example": example(parts[0])}


def _form(operation: _Operation, settings: Settings) -> dict[str, Any]:
    """Schema of a multipart form; an optional field may only be left out, as there is no null in a form."""
    model = operation.form
    if model is None:
        raise TypeError("an operation without a form")
    form_schema = model.model_json_schema()
    for field in form_schema["properties"].values():
        if kinds := [kind for kind in field.pop("anyOf", []) if kind.get("type") != "null"]:
            field.update(kinds[0])
        if field.get("default", "") is None:
            field.pop("default")
    image = {"type": "string", "format": "binary", "contentMediaType": "image/*"}
    form_schema["properties"][operation.images] = {
        "type": "array",
        "items": image,
        "minItems": int(operation.needed),
        "maxItems": settings.max_images,
        "description": (
            f"JPEG, PNG, WebP or BMP, at most {settings.max_image_bytes} bytes and {settings.max_pixels} pixels each."
        ),
    }
    required = [*form_schema.get("required", []), *([operation.images] if operation.needed else [])]
    if "reason" in form_schema["properties"] and settings.require_reason:
        required.append("reason")
    if required:
        form_schema["required"] = required
    return {"schema": form_schema}


def example(model: type[BaseModel]) -> Any:
    """Build an object from the examples of a model's fields."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.examples:
            values[name] = field.examples[0]
            continue
        inner = getattr(field.annotation, "__args__", (field.annotation,))[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            values[name] = [example(inner)] if "list" in str(field.annotation) else example(inner)
    return values
