"""``reid doctor`` and ``reid engine``: check this machine, and build its engines before they are needed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from domains.errors import UsageError
from reid.commands.options import Bundle, Json, PathArgument, Provider, print_json, say, table

app = typer.Typer()
engine_app = typer.Typer(no_args_is_help=True, help="Engines of ONNX Runtime's providers.")
Batch = Annotated[int | None, typer.Option(min=1, help="Crops per inference; by default 8 on a CPU and 32 on a GPU.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of a CPU engine; all cores by default.")]


@app.command()
def doctor(
    bundle: Bundle = None,
    provider: Provider = "cpu",
    batch: Batch = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check this installation; with a bundle, also whether it reproduces its golden embeddings here, and how fast.

    Exits with 1 if something is wrong.
    """
    from reid.doctor import examine

    tests = []
    if bundle is not None:  # first, so that the memory measured is its own
        from deploy.encoder.selftest import self_test

        tests = [check.to_dict() for check in self_test(bundle, provider, batch=batch, threads=threads)]
    items = [finding.to_dict() for finding in examine()] + tests
    faults = [item["what"] for item in items if not item["ok"]]
    if as_json:
        print_json(items)
    else:
        table(
            "reid doctor",
            ["what", "found", ""],
            [[item["what"], item["found"], "ok" if item["ok"] else item["remedy"]] for item in items],
        )
        say(
            f"not in order: {', '.join(faults)}; the last column says what to do"
            if faults
            else "everything is in order"
        )
    if faults:
        sys.exit(1)


@engine_app.command("build")
def build(
    bundle: PathArgument,
    provider: Provider = "tensorrt",
    batch: Batch = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of the engines; LIFELONG_REID_CACHE or the user's cache folder by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a bundle's TensorRT engines in advance (minutes), so that the next start takes seconds.

    They serve only this graph, GPU and batch.
    """
    from deploy import Encoder
    from deploy.encoder.engine import Target
    from deploy.encoder.engine_cache import cache_root

    if Target.parse(provider).name != "tensorrt":
        raise UsageError(f"{provider} builds no engines in advance; only tensorrt and tensorrt:N do")
    folder = cache or cache_root()
    began = time.perf_counter()
    encoder = Encoder.load(bundle, provider, batch=batch, cache=folder)
    took = time.perf_counter() - began
    if as_json:
        print_json(
            {
                "bundle": encoder.bundle.id,
                "provider": provider,
                "batch": encoder.batch,
                "cache": str(folder),
                "seconds": round(took, 2),
            }
        )
    else:
        say(f"{bundle} is ready on {provider} for batches of up to {encoder.batch}: engines in {folder}, {took:.1f} s")
