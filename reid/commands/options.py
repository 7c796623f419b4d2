"""What commands share: the options' types, and how results are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from reid.progress import Progress

PathArgument = Annotated[Path, typer.Argument(show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Method = Annotated[str | None, typer.Option("--method", "-m", help="A shipped method's name, or a YAML file.")]
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

out = Console(highlight=False, emoji=False)


def progress() -> Progress:
    """Show progress on stderr, so that stdout is for results."""
    from reid.progress import Progress

    return Progress(Console(stderr=True, emoji=False))


def say(text: str) -> None:
    """Print a line as it is: markup means nothing, and only the terminal wraps it."""
    out.print(text, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def layers(config: str | None, method: str | None, device: str | None) -> list[dict[str, Any]]:
    """Collect settings from a file and from options, later ones over earlier ones."""
    from reid.config import read_settings

    settings = [read_settings(config)] if config else []
    settings += [{"method": method}] if method else []
    return [*settings, {"device": device}] if device else settings


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table, its first column left-aligned and the others right-aligned."""
    grid = Table(title=Text(title, style="table.title"), title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))  # as it is: a camera may be called "yard [north]"
    out.print(grid)
