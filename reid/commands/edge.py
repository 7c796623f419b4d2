"""``reid export`` and ``reid key``: the learned model on its way to the edge, and who vouches for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.commands.options import Json, PathArgument, out, print_json

app = typer.Typer()
key_app = typer.Typer(help="Keys that sign bundles, so that the edge loads those of their maker only.", no_args_is_help=True)


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


@key_app.command("make")
def key_make(keyfile: Annotated[Path, typer.Argument(metavar="KEYFILE", show_default=False)], as_json: Json = False) -> None:
    """Make a signing key: KEYFILE stays with you (mode 0600), KEYFILE.pub goes to the edge, named by LIFELONG_REID_TRUSTED_KEYS."""
    from deploy.signature import make_key

    name, public = make_key(keyfile), f"{keyfile}.pub"
    if as_json:
        print_json({"key": name, "private": str(keyfile), "public": public})
    else:
        out.print(f"made key {name}: sign with --key {keyfile}, trust {public}", markup=False, soft_wrap=True)


@key_app.command("sign")
def key_sign(bundle: PathArgument, key: Annotated[Path, typer.Option("--key", help="The private key file.", show_default=False)]) -> None:
    """Sign a bundle as it is."""
    from deploy.bundle import revise_bundle

    made = revise_bundle(bundle, {}, key=key)
    out.print(f"{bundle} is signed by key {made.signers[0]}", markup=False, soft_wrap=True)
