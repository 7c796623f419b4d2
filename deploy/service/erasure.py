"""Which entries a request to forget is about, and their erasure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.service.backend import Engine
from deploy.service.bodies import ForgetForm
from deploy.service.refusal import RefusedError

FIRST = 256


async def choose(engine: Engine, form: ForgetForm, images: Sequence[bytes]) -> tuple[list[int], str]:
    """Ids of the entries that fit every field, and the names of those fields; raises RefusedError if there is none."""
    filters = {name: getattr(form, name) for name in ("label", "camera", "source", "before") if getattr(form, name) is not None}
    choices: dict[str, set[int]] = {}
    if filters:
        choices["+".join(sorted(filters))] = set(await engine.run(lambda: engine.gallery.select(**filters)))
    if (days := form.older_than) is not None:
        choices["age"] = set(await engine.run(lambda: engine.gallery.older_than(days)))
    if images:
        choices["like"] = await _like(engine, images, form.score, filters)
    if not choices:
        raise RefusedError("invalid", "say what to forget: label, camera, source, before, older_than, or an image named like")
    return sorted(set.intersection(*choices.values())), "+".join(choices)


async def _like(engine: Engine, images: Sequence[bytes], least: float, filters: dict[str, Any]) -> set[int]:
    """Ids of all entries at a cosine of ``least`` or above to one of the images: ask for more until what comes is below."""
    count = FIRST
    while True:
        found = await engine.search(images, k=count, exact=True, **filters)
        if all(len(matches) < count or matches[-1].score < least for matches in found):
            return {match.id for matches in found for match in matches if match.score >= least}
        count *= 8


async def erase(engine: Engine, ids: Sequence[int], by: str) -> dict[str, Any]:
    """Forget entries; returns how many there were and the backups that still hold them."""
    gallery = engine.gallery
    gone = await engine.run(lambda: gallery.forget(ids, reason=by)) if ids else 0
    return {"forgotten": gone, "backups": await engine.run(gallery.backups)}
