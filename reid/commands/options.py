"""What commands share: the options' types, and how results are shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from domains.artefact import obstacle
from domains.errors import GalleryError, UsageError
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

MANIFESTS = ("run.yaml", "card.json", "bundle.json", "gallery.db")
"""Files by which the folders are known whose other files are not to be replaced either."""

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


def check_output(file: Path | None, *suffixes: str) -> None:
    """Check where a result is to be written, before time is spent on it.

    Args:
        file: what the user named; None is nothing to check.
        suffixes: those of such results, in small letters. In a folder of ours, no other file may be named.

    Raises:
        UsageError: something other than a plain file is there, its folder is missing or can't be written, or the file
            is one of a run, a bundle or a gallery.
    """
    if file is None:
        return
    folder, what = file.absolute().parent, obstacle(file)
    if what or file.is_symlink():
        raise UsageError(f"{file} is {what or f'a link to {file.readlink()}'}; name a file in a folder that is there")
    if not folder.is_dir():
        raise UsageError(f"{file} lies in a folder that does not exist; name a file in a folder that is there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{file} lies in a folder that can't be written; name another, or change its permissions")
    if file.suffix.lower() not in suffixes and any((folder / name).exists() for name in MANIFESTS):
        raise UsageError(
            f"{file} lies among the files of a run, a bundle or a gallery; name a file that ends in {suffixes[0]}, or "
            "another folder"
        )


def check_named(**options: str | None) -> None:
    """Raise UsageError if an option that chooses entries is empty, as from a variable that is not set."""
    for name, value in options.items():
        if value is not None and not value.strip():
            raise UsageError(f"--{name} is empty; say which, or leave it out")


@contextmanager
def wrong_use() -> Iterator[None]:
    """Say what a gallery says of an option's value as wrong use of the command; raises UsageError."""
    try:
        yield
    except GalleryError as error:
        raise UsageError(str(error)) from error


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
