"""``reid export``: the learned model on its way to the edge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.commands.options import Json, PathArgument, out, print_json

app = typer.Typer()


@app.command()
def export(
    run: PathArgument, bundle: PathArgument, step: Annotated[int, typer.Option(help="Which step; the last by default.")] = -1,
    site: Annotated[str | None, typer.Option(help="Learned domain, or folder of another, whose route to export (routed methods).")] = None,
    since: Annotated[int | None, typer.Option(help="Step whose galleries the bundle's transport carries; by default the one before.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Export a step as ONNX, checked against torch on real crops, with golden embeddings and a card."""
    import domains
    from deploy.export import export_run
    from reid.run import Run

    opened = Run.open(run)
    made = export_run(opened, bundle, step=step, site=site if site is None or site in opened.learned else domains.open(Path(site)), since=since)
    if as_json:
        print_json(made.manifest)
    else:
        parity = made.manifest["parity"]
        out.print(f"{bundle}: graph and model agree, smallest cosine {min(parity.values()):.6f} over batches {', '.join(parity)}", markup=False)
