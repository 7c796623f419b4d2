"""What commands share: the options' types, and how results are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from domains.errors import UsageError
from domains.text import json_text
from reid.progress import Progress, Reporter
from reid.tables import Columns, show_table
from reid.terminal import Terminal

PathArgument = Annotated[Path, typer.Argument(show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Method = Annotated[str | None, typer.Option("--method", "-m", help="A shipped method's name, or a YAML file.")]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        metavar="MODULE:CLASS",
        help="Import this term of a method file, which is code from outside the package; may be repeated.",
    ),
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", "-c", help="YAML file of settings, or a shipped recipe's name.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting; may be repeated.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Bundle = Annotated[Path | None, typer.Option("--bundle", "-b", help="A bundle made by reid export.")]
Provider = Annotated[
    str, typer.Option("--provider", help="ONNX Runtime's engine: cpu, cuda[:N], tensorrt[:N] or openvino[:GPU].")
]
SameCamera = Annotated[
    Literal["drop", "keep"] | None,
    typer.Option(
        "--same-camera", help="drop: ignore matches from the query's own camera (the usual rule); keep: rank them."
    ),
]

out = Terminal()
reporter = Reporter(Terminal(stderr=True))


def progress() -> Progress:
    """Show progress on stderr, so that stdout is for results."""
    return Progress(reporter.console, reporter)


def say(text: str) -> None:
    """Print one line as it is: markup means nothing, characters that can't be seen are escaped, and only the terminal
    wraps it.
    """
    out.print(text)


def warn(text: str) -> None:
    """Print a warning of one line on stderr, so that stdout is for results."""
    reporter.console.print(f"warning: {text}")


def print_json(value: Any) -> None:
    """Print JSON on stdout, in ASCII where stdout takes nothing else."""
    text = json_text(value, indent=1)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(value, indent=1, allow_nan=False)
    sys.stdout.write(text + "\n")


def check_output(file: Path | None) -> None:
    """Raise UsageError if a file can't be written for want of its folder, before time is spent on what goes into it."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        what = "is a folder" if file.is_dir() else "lies in a folder that does not exist"
        raise UsageError(f"{file} {what}; name a file in a folder that is there")


def local_time(time: str | None) -> str:
    """Return a stored time (ISO 8601 with zone) in this machine's zone, to the second; empty if there is none."""
    try:
        return "" if time is None else datetime.fromisoformat(time).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):  # a year that the conversion leaves
        return str(time)


def layers(config: str | None, method: str | None, device: str | None) -> list[dict[str, Any]]:
    """Collect settings from a file and from options, later ones over earlier ones."""
    from reid.config import read_settings

    settings = [read_settings(config)] if config else []
    settings += [{"method": method}] if method else []
    return [*settings, {"device": device}] if device else settings


def table(
    title: str,
    columns: list[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[str] = (),
    paths: Collection[str] = (),
) -> None:
    """Print a table at any width.

    The first column and those named in ``left`` are left-aligned, the others right-aligned. Where it would not fit,
    columns named in ``paths`` are shortened from the left; see :mod:`reid.tables`.
    """
    show_table(out, title, Columns(columns, left, paths), rows)
