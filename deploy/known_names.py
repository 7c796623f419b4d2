"""What a message says when a name is not among those that are known."""

from __future__ import annotations

import difflib
from collections.abc import Collection

NAMED = 20
"""Names that a message lists at most."""


def known_names(word: str, known: Collection[str], more_at: str = "") -> str:
    """Return ``did you mean 'x'? it has 'w', 'x', 'y' and 3 more``, the question only where one name is near.

    Args:
        word: the unknown name.
        known: the known ones, at least one.
        more_at: where the rest can be seen, said after their number.
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    more = f" and {len(names) - NAMED} more{more_at}" if len(names) > NAMED else ""
    return f"{hint}it has {', '.join(map(repr, names[:NAMED]))}{more}"
