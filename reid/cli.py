"""The ``reid`` command: it collects the subcommands and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from domains.artefact import ROOMS
from domains.errors import ReidError
from domains.text import shown
from reid import streams
from reid.__main__ import INTERRUPTED, interrupted
from reid.commands import bench, doctor, domain, evaluate, export, gallery, learn, query, run, serve
from reid.commands.options import out, progress, reporter, say
from reid.progress import Tick
from reid.terminal import check_size

ABOUT = (
    "Person re-identification that keeps learning: train on a new camera domain, query the gallery by image, deploy "
    "ONNX at the edge."
)

LOGGED = ("reid serve",)
"""Commands that say in a log of their own what they do."""

NARROW = 70
"""Columns below which help is shown without frames."""

USAGE = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises about the command line; recent versions carry their own copy of click."""

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
        say(f"lifelong-reid {version('lifelong-reid')}")
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
    check_size()
    outlet = streams.prepare()
    code = _run([word for word in sys.argv[1:] if word != "--debug"], debug="--debug" in sys.argv[1:])
    sys.exit(streams.finish(code, outlet))


def _run(arguments: list[str], *, debug: bool) -> int:
    """Run a command and return its exit code."""
    name = _command(arguments)
    if out.width < NARROW:
        for part in (app, *filter(None, (group.typer_instance for group in app.registered_groups))):
            part.rich_markup_mode = None  # plain help, which wraps where the framed one cuts names off
    try:
        with contextlib.nullcontext() if name in LOGGED else reporter.doing(Tick(name)):
            code = int(app(args=arguments, prog_name="reid", standalone_mode=False) or 0)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:  # the outermost place: whatever it is, it is told without a raw character in it
        return _told(error, debug=debug)
    if code == INTERRUPTED:  # typer turns the interrupt of a command into this code
        streams.complain(interrupted(arguments))
    return code


def _told(error: Exception, *, debug: bool) -> int:
    """Tell a person about an error, and return the exit code."""
    lines = _lines(error)
    if debug or lines is None:
        sys.stderr.write(shown("".join(traceback.format_exception(error)), lines=True))
    elif lines:
        streams.complain(*lines)
    return int(getattr(error, "exit_code", ReidError.exit_code))


def _lines(error: Exception) -> tuple[str, ...] | None:
    """Return what a user needs to know of an error: nothing if help was shown, and None if only a traceback says it."""
    if isinstance(error, ReidError):
        return error.lines
    if isinstance(error, USAGE):
        return _usage(error)
    advice = ""
    if isinstance(error, OSError):  # a full or failing disk, wherever it occurs
        where = f"{error.filename}: " if error.filename else ""
        advice = (
            f"{where}{error.strerror or error}; make room, or check the disk and your permissions, and run the command "
            "again"
        )
    elif isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in ROOMS:
        advice = (
            f"{error.name} is not installed; training needs pip install 'lifelong-reid[cpu,train]', the edge "
            "'lifelong-reid[cpu]'"
        )
    elif _lacks_memory(error):
        what = f" ({' '.join(str(error).split()):.120})" if str(error) else ""
        advice = (
            f"there is too little memory for this{what}; ask for less at once, such as smaller batches or crops, or "
            "fewer images, and run the command again"
        )
    return (advice,) if advice else None


def _lacks_memory(error: Exception) -> bool:
    """Whether an error is about memory; torch has kinds of its own, on a GPU and on a CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _usage(error: Any) -> tuple[str, ...]:
    """Return the line about a wrong command line; none if it was empty, as help is shown then."""
    if type(error).__name__ == "NoArgsIsHelpError":
        if out.width < NARROW:
            error.show()  # the framed one was shown when it was made
        return ()
    text, context = " ".join(error.format_message().split()).rstrip("."), getattr(error, "ctx", None)
    return (f"{text}; see {context.command_path} --help" if context is not None else text,)


def _command(arguments: list[str]) -> str:
    """Return the full name of the command that arguments call, as far as there is one."""
    command: Any = typer.main.get_command(app)
    names = ["reid"]
    for word in arguments:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        names.append(word)
    return " ".join(names)


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
