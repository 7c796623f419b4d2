"""Consent: what the user has to say each time before a step follows a method file or imports a term of one's own.

A run may have been made by somebody else, and its ``run.yaml`` names a method. A shipped method is part of this
package; a file is only followed where the user names it now, and the code that it asks for, ``module:Class``, is only
imported where the user allows it by that name. Nothing but learning reads a method or imports a term: sealed cards are
plain values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from domains.errors import ConfigError
from reid.config import Config, Method, flatten, read_method, shipped
from reid.terms import check_code, own_terms

KEY = "method"


def named_method(config: Config, layers: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()) -> str | None:
    """Return the method of merged settings if the user's own layers or overrides name it; None if only the run does."""
    named = any(KEY in flatten(layer) for layer in layers)
    named = named or any(text.partition("=")[0].strip() == KEY for text in overrides)
    return config.method if named else None


def chosen_method(
    method: str | Method | None, config: Config, saved: str, allow_code: Collection[str] | None
) -> tuple[Method, frozenset[str]]:
    """Return the method of a step, and those terms of one's own that may be imported for it.

    Args:
        method: what the caller named: a method, a shipped name or a YAML file; None for the one in the settings.
        config: the settings of the step.
        saved: the method in the run's own settings, which its maker chose.
        allow_code: names of terms that may be imported; None allows those of a ``method`` that the caller named.

    Raises:
        ConfigError: an unknown method, a file that only the run names, or code that nobody allowed.
    """
    if method is None and config.method == saved and saved not in shipped("methods"):
        raise ConfigError(
            f"the run's settings name the method {saved!r:.200}, which is no shipped one, and a file that a run names "
            "is not followed: it may be somebody else's. Name it yourself each time, with --method FILE or method=… in "
            "Python, or choose a shipped method"
        )
    chosen = method if isinstance(method, Method) else read_method(method or config.method)
    own = own_terms((*chosen.terms, *chosen.adapter))
    if allow_code is None:
        allowed = frozenset(own if method is not None else ())
    else:
        allowed = frozenset([allow_code] if isinstance(allow_code, str) else allow_code)
    check_code(own, allowed)
    return chosen, allowed
