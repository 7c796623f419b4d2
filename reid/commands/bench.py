"""``reid bench``: the project's studies, from a checkout."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from domains.errors import UsageError

bench_app = typer.Typer(no_args_is_help=True, help="Run the project's studies, from a checkout.")
ROOT = Path(__file__).parents[2]


@bench_app.command("methods")
def methods(
    tables_only: Annotated[
        bool, typer.Option("--tables", help="Run nothing; write the tables from existing results.")
    ] = False,
) -> None:
    """Run every method on the small-5 protocol, each run once, and write the tables into docs/results.md and README.md.

    Continues where it stopped.
    """
    study = _benchmark("small5")
    if not tables_only:
        for kind in ("test", "strong", "parts", "guides", "heads"):
            study.main([kind])
    study.main(["document"])


def _benchmark(name: str) -> ModuleType:
    """Import a benchmark; raises UsageError in an installed package, which has none."""
    if not (ROOT / "benchmarks" / f"{name}.py").is_file():
        raise UsageError(
            "the benchmarks are in a checkout of the project, not in the installed package; clone it and run reid "
            "bench there"
        )
    sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")
