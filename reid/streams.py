"""Standard output and standard error that no command stumbles over: closed, full, no longer read, or not in UTF-8.

A command does its work whether or not anyone can read what it says; what could not be written is told at the end.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import IO, Any

from domains.text import shown

SPELLED = "reid.spelled"
"""Name of the error handler that writes what an encoding lacks in other characters, or as an escape."""

PLAIN = {
    "–": "-",
    "—": "-",
    "‑": "-",
    "…": "...",
    "×": "x",
    "→": "->",
    "←": "<-",
    "·": "|",
    "±": "+-",
    "≥": ">=",
    "≤": "<=",
    "≈": "~",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "•": "*",
    " ": " ",
    **dict.fromkeys("─━═╌╍┄┅┈┉╴╶╸╺", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷╹╻", "|"),
}
FRAME = range(0x2500, 0x2580)
"""Box drawing: every other corner and crossing is a plus."""


class Outlet(io.FileIO):
    """The descriptor of a standard stream. A write that fails is remembered instead of raised.

    Attributes:
        failure: the first error.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write some bytes, waiting where the descriptor does not block; after a failure they go nowhere."""
        while self.failure is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.failure = error
            else:
                if written is not None:
                    return written
                select.select([], [self], [])
        return memoryview(data).nbytes


def prepare() -> Outlet:
    """Make this process's standard streams safe to write to, and return that of standard output.

    A closed one is opened on nothing, so that no file of ours ever takes its number and another library's messages with
    it. Streams that a caller has put in place (a test, a notebook) stay, but for characters that their encoding lacks.
    """
    codecs.register_error(SPELLED, _spelled)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
    outlets = []
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream, outlet = getattr(sys, name), Outlet(number, "wb", closefd=False)
        if stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _text(stream, outlet, name))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED)
        outlets.append(outlet)
    return outlets[0]


def finish(code: int, outlet: Outlet) -> int:
    """Write out what is still held, and return the exit code: a result that could not be written is a failure."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if outlet.failure is None or code:
        return code
    if outlet.failure.errno == errno.EPIPE:
        return 141  # what a shell reports of a command whose reader has left
    complain(
        f"the result can't be written to standard output ({outlet.failure.strerror}); the command itself has finished, "
        "so send its output elsewhere, or to /dev/null"
    )
    sys.stderr.flush()
    return 1


def complain(*lines: str) -> None:
    """Write an error, or what a user must not miss, to standard error in these lines."""
    sys.stderr.write("reid: " + "".join(f"{shown(line)}\n" for line in lines))


def _text(stream: IO[str] | None, outlet: Outlet, name: str) -> io.TextIOWrapper:
    """Return a text stream on an outlet, in the encoding and with the buffering of the stream before it."""
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=SPELLED,
        line_buffering=name == "stderr" or bool(getattr(stream, "line_buffering", False)),
        write_through=bool(getattr(stream, "write_through", False)),
    )


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(map(_plain, letters)), error.end


def _plain(letter: str) -> str:
    if letter in PLAIN:
        return PLAIN[letter]
    return "+" if ord(letter) in FRAME else letter.encode("unicode_escape").decode("ascii")
