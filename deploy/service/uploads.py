"""What a client sends, read into memory and checked: forms of fields and images, bounded in every respect, and decoded
only if their headers pass.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from deploy.service.refusal import RefusedError
from deploy.service.settings import Settings
from domains.crop_shape import doubt_about
from domains.errors import CostlyImageError, DataError, UnsupportedImageError
from domains.images import image_size, read_still

if TYPE_CHECKING:
    from starlette.requests import Request

Fields = TypeVar("Fields", bound=BaseModel)

MAX_FIELDS = 64
MAX_FIELD_BYTES = 8192

_KINDS = ((0, b"\xff\xd8\xff"), (0, b"\x89PNG\r\n\x1a\n"), (0, b"BM"), (8, b"WEBP"))


class _InMemory(MultiPartParser):
    """Starlette's parser, but no upload is ever written to disk; the gate bounds what it can be given."""

    spool_max_size = 2**31 - 1


async def read_form(
    request: Request, model: type[Fields], settings: Settings, *, images: str, needed: bool
) -> tuple[Fields, list[bytes]]:
    """Read a multipart form.

    Args:
        request: the request whose body to read.
        model: model of its fields.
        settings: the limits.
        images: name of the fields that hold images.
        needed: whether at least one image is required.

    Raises:
        RefusedError: not such a form, unknown or invalid fields, no image, or images that are too many, too large or of
            an unknown kind.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RefusedError("unsupported_body", "send a form as multipart/form-data")
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=settings.max_images,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        too_many = "Too many files" in error.message
        raise RefusedError(
            "too_large" if too_many else "invalid", f"the form can't be read: {error.message:.150}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # what the parser raises on broken headers
        raise RefusedError("invalid", "the form can't be read: its parts are broken") from error
    try:
        fields, files = _split(form, model, images)
        if needed and not files:
            raise RefusedError("invalid", f"there is no image; send at least one, as a file named {images}")
        contents = [await file.read() for file in files]
    finally:
        await form.close()
    await asyncio.to_thread(_check_images, contents, settings, images)
    return fields, contents


async def read_json(request: Request, model: type[Fields]) -> Fields:
    """Read a JSON body; raises RefusedError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError("unsupported_body", "send JSON as application/json")
    try:
        values = json.loads(await request.body(), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise RefusedError("invalid", "the body is not JSON") from error
    return check_fields(model, values)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its fields; raises RefusedError if one is given twice, as only the last would count."""
    values = dict(pairs)
    if len(values) < len(pairs):
        name = next(name for name in values if [key for key, _ in pairs].count(name) > 1)
        raise RefusedError("invalid", f"{name:.60} is given twice")
    return values


async def doubts(images: Sequence[bytes]) -> list[str | None]:
    """Why each image, already checked, can't be a crop of one person; None for those that can."""
    return await asyncio.to_thread(lambda: [doubt_about(data) for data in images])


def _check_images(contents: list[bytes], settings: Settings, name: str) -> None:
    for number, data in enumerate(contents, 1):
        check_image(data, settings, f"{name} {number}")


def check_image(data: bytes, settings: Settings, name: str) -> None:
    """Check an image against the limits, by its header and by the work that decoding it would take; raises
    RefusedError.
    """
    if not data:
        raise RefusedError("damaged_image", f"{name} is empty")
    if len(data) > settings.max_image_bytes:
        raise RefusedError(
            "too_large",
            f"{name} has {len(data)} bytes, at most {settings.max_image_bytes} are accepted; crops are small images",
        )
    if not any(data[at : at + len(magic)] == magic for at, magic in _KINDS):
        raise RefusedError("unsupported_image", f"{name} is not a JPEG, PNG, WebP or BMP image")
    try:
        height, width = image_size(data)
        if height * width > settings.max_pixels:
            raise RefusedError(
                "too_many_pixels", f"{name} has {width}×{height} pixels, at most {settings.max_pixels} are accepted"
            )
        read_still(data, settings.max_pixels)
    except CostlyImageError as error:
        raise RefusedError("too_large", f"{name}: {error}") from error
    except UnsupportedImageError as error:
        raise RefusedError("unsupported_image", f"{name}: {error}") from error
    except DataError as error:
        raise RefusedError("damaged_image", f"{name}: {error}") from error


def _split(form: FormData, model: type[Fields], images: str) -> tuple[Fields, list[UploadFile]]:
    files: list[UploadFile] = []
    values: dict[str, str | list[str]] = {}
    many = {name for name, field in model.model_fields.items() if "list" in str(field.annotation)}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != images:
                raise RefusedError("invalid", f"there is no image field {name!r:.60}; images are named {images}")
            files.append(value)
        elif name in many:
            cast(list[str], values.setdefault(name, [])).append(value)
        elif name in values:
            raise RefusedError("invalid", f"{name:.60} is given twice")
        else:
            values[name] = value
    return check_fields(model, values), files


def check_fields(model: type[Fields], values: object) -> Fields:
    """Validate values as a model; raises RefusedError naming the first wrong field, without repeating what was sent."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80] or "the request"
        raise RefusedError("invalid", f"{where}: {first['msg']:.200}") from error
