"""timm's own start weights: from this machine's cache without asking anybody, else from where timm publishes them.

The hub's client retries for over a minute where nothing can be reached; so whether its server can be reached is asked
once before, with a short patience.
"""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from domains.errors import BackboneError, first_line

PATIENCE = 5.0
"""Seconds for an answer; a resolver of names that gives none may take longer, and is not waited for."""

FILES = ("model.safetensors", "pytorch_model.bin")


def start_weights(backbone: str, published: Any) -> Path | None:
    """Return the file of a timm model's weights if this machine has it, None if timm can fetch it.

    Args:
        backbone: the model's name, for the message.
        published: timm's ``PretrainedCfg`` of the model.

    Raises:
        BackboneError: it has no weights of its own, or is not on this machine and can't be fetched.
    """
    if not published or not (published.hf_hub_id or published.url):
        raise BackboneError(
            f"can't get timm's weights for {backbone} (there are none); set model.weights=PATH, or start from random "
            "weights with model.weights=none"
        )
    if not published.hf_hub_id:
        url = str(published.url)
        held = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not held.is_file():
            _check_reachable(backbone, url)
        return None  # timm looks there first, too
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    name, _, revision = str(published.hf_hub_id).partition("@")
    files = (published.hf_hub_filename,) if published.hf_hub_filename else FILES
    for file in files:
        found = try_to_load_from_cache(name, file, revision=revision or None)
        if isinstance(found, str):
            return None if published.custom_load else Path(found)
    url = hf_hub_url(name, files[0], revision=revision or None)
    if constants.HF_HUB_OFFLINE:
        raise BackboneError(_unreachable(backbone, url, "HF_HUB_OFFLINE is set"))
    _check_reachable(backbone, url)
    return None


def _check_reachable(backbone: str, url: str) -> None:
    """Raise BackboneError if the server gives no answer at all; any answer is left to timm."""
    reasons: list[str] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - https, from timm's own table
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310
        except urllib.error.HTTPError:
            pass
        except OSError as error:
            why: object = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(why, ssl.SSLError):  # it answers, and the client may know other authorities
                why = None
            if why is not None:
                reasons.append(first_line(why) if isinstance(why, BaseException) else str(why))
        except Exception as error:  # whatever else a proxy's answer may cause
            reasons.append(first_line(error))
        answered.set()

    answered = threading.Event()
    threading.Thread(target=ask, name="hub", daemon=True).start()
    if not answered.wait(2 * PATIENCE):
        reasons.append(f"none in {2 * PATIENCE:.0f} s")
    if reasons:
        raise BackboneError(_unreachable(backbone, url, reasons[0]))


def _unreachable(backbone: str, url: str, why: str) -> str:
    return (
        f"can't get timm's weights for {backbone} (not on this machine, and the server gives no answer: {why:.120}); "
        f"download {url} on a connected machine and set model.weights=PATH, or start from random weights with "
        "model.weights=none"
    )
