"""The ``reid`` command: it collects the subcommands and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from domains.errors import DeviceError, ReidError
from reid.commands import bench, doctor, domain, evaluate, export, gallery, learn, query, run, serve
from reid.commands.options import out, progress

ABOUT = (
    "Person re-identification that keeps learning: train on a new camera domain, query the gallery by image, deploy "
    "ONNX at the edge."
)

app = typer.Typer(name="reid", no_args_is_help=True, pretty_exceptions_enable=False, help=ABOUT)
app.add_typer(domain.domain_app, name="domain")
app.add_typer(learn.app)
app.add_typer(run.run_app, name="run")
app.add_typer(export.app)
app.add_typer(evaluate.app)
app.add_typer(query.app)
app.add_typer(export.key_app, name="key")
app.add_typer(gallery.gallery_app, name="gallery")
app.add_typer(doctor.app)
app.add_typer(doctor.engine_app, name="engine")
app.add_typer(bench.bench_app, name="bench")
app.add_typer(serve.app)
app.add_typer(serve.token_app, name="token")


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"lifelong-reid {version('lifelong-reid')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options for every command."""


def main() -> NoReturn:
    """Run the command; an error is one line on stderr (exit code 1: failed, 2: wrong use)."""
    debug = "--debug" in sys.argv[1:]
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        app(args=arguments, prog_name="reid")
    except ReidError as error:
        if debug:
            raise
        sys.stderr.write(f"reid: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:  # a full or failing disk, wherever it occurs
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(
            f"reid: {where}{error.strerror or error}; make room, or check the disk and your permissions, and run the "
            "command again\n"
        )
        sys.exit(ReidError.exit_code)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").split(".")[0] in ("reid", "domains", "prototypes", "deploy"):
            raise
        sys.stderr.write(
            f"reid: {error.name} is not installed; training needs pip install 'lifelong-reid[cpu,train]', the edge "
            "'lifelong-reid[cpu]'\n"
        )
        sys.exit(DeviceError.exit_code)
    sys.exit(0)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write everything to.")] = Path("demo"),
) -> None:
    """Run the whole workflow on drawn people, in minutes on a CPU.

    It learns three domains, exports, fills a gallery, finds a person and writes a report.
    """
    from reid.demo import run_demo

    run_demo(output, progress(), out)


if __name__ == "__main__":
    main()
