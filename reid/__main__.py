"""The ``reid`` command from its first moment on; ``python -m reid`` is the same.

Until all that the command line needs is imported, which takes about a second, Ctrl-C ends the process at once: nothing
has begun, and an exception in the middle of an import would show a traceback. So this module imports nothing of others
at its top.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""Exit code of a command that a person ended, as shells have it."""

RESUMED = ("learn", "stream")
"""Commands that continue where they stopped if they are given again."""


def main() -> NoReturn:
    """Run the command."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    from reid.cli import main as run

    try:
        signal.signal(signal.SIGINT, usual)
        run()
    except KeyboardInterrupt:
        _leave()


def interrupted(arguments: list[str]) -> str:
    """Say that a command was interrupted, and whether the same one continues it."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    return "interrupted" + ("; the same command continues where it stopped" if command in RESUMED else "")


def _leave(_signal: int = signal.SIGINT, _frame: FrameType | None = None) -> NoReturn:
    try:
        os.write(2, f"reid: {interrupted(sys.argv[1:])}\n".encode())
    finally:  # also where nobody can be told
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
