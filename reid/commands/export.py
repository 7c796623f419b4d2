"""``reid export`` and ``reid key``: the learned model on its way to the edge, and who vouches for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domains.errors import UsageError
from reid.commands.options import Json, PathArgument, print_json, progress, say

app = typer.Typer()
key_app = typer.Typer(
    help="Keys that sign bundles, so that the edge loads only those of their maker.", no_args_is_help=True
)


@app.command()
def export(
    run: PathArgument,
    bundle: PathArgument,
    step: Annotated[int, typer.Option(help="Which step; the last by default.")] = -1,
    site: Annotated[
        str | None, typer.Option(help="Learned domain, or folder of another, whose own network to export (hyper_*).")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="pooled: one for all sites; site:NAME: one site's own; mixed:NAME: for its queries in a gallery of "
            "all; none. By default the --site's own, else pooled.",
        ),
    ] = None,
    no_sites: Annotated[
        bool,
        typer.Option("--no-sites", help="Leave the sites' statistics out of a pooled bundle: no reid query --site."),
    ] = False,
    since: Annotated[
        int | None,
        typer.Option(help="Step whose galleries the bundle's transport carries; by default the previous one."),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Half precision inside; inputs and outputs stay as they are.")
    ] = False,
    int8: Annotated[
        Path | None,
        typer.Option(metavar="DOMAIN", help="8 bits: calibrated on its train crops, judged on its test split."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="With --int8: leave this layer in float32; may be repeated."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --int8: refuse rather than leave the worst layers in float32.")
    ] = False,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="With --int8: 7-bit weights, for x86 processors without VNNI.")
    ] = False,
    weights_licence: Annotated[
        str, typer.Option(metavar="TEXT", help="Licence of the weights, for manifest and card.")
    ] = "not declared",
    data_licence: Annotated[
        str, typer.Option(metavar="TEXT", help="Licence of the data that the weights were trained on.")
    ] = "not declared",
    key: Annotated[
        Path | None, typer.Option("--key", metavar="KEYFILE", help="Sign with this private key (reid key make).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a step as ONNX, checked against torch on real crops, with golden embeddings and a card."""
    import domains
    from reid.export import Provenance, Serving, export_run
    from reid.export.lowering import Lowering
    from reid.run import Run

    opened = Run.open(run)
    if site is not None and site not in opened.learned and not Path(site).is_dir():
        raise UsageError(
            f"--site {site} is neither a domain that {run} has learned ({', '.join(opened.learned) or 'none'}) nor a "
            "folder"
        )
    lowering = Lowering(fp16, None if int8 is None else domains.open(int8), exclude or (), strict, reduce_range)
    exported = export_run(
        opened,
        bundle,
        step=step,
        serving=Serving(
            site=site if site is None or site in opened.learned else domains.open(Path(site)),
            metric=metric,
            since=since,
            sites=not no_sites,
        ),
        lowering=lowering,
        provenance=Provenance(weights_licence, data_licence, key),
        progress=progress(),
    )
    if as_json:
        print_json(exported.manifest)
        return
    parity, quantisation = exported.manifest["parity"], exported.manifest.get("quantisation")
    say(f"{bundle}: graph and model agree, smallest cosine {min(parity.values()):.6f} over batches {', '.join(parity)}")
    if named := exported.metric_name:
        say(f"metric {named}: a gallery of another metric of this network is carried with reid gallery upgrade")
    if sites := exported.sites():
        size = (exported.folder / "sites.npz").stat().st_size / 1000
        say(
            f"statistics of {', '.join(sites)}: {size:.0f} kB, for reid query --site; --no-sites leaves them out of a "
            "bundle"
        )
    if quantisation:
        layers = f"{len(quantisation['left_out'])} of {quantisation['layers']} layers left in float32"
        space = "its own feature space" if quantisation["own_space"] else "the feature space of float32"
        change = f"{quantisation['map_fp32']:.2f} → {quantisation['map_int8']:.2f}"
        say(f"int8: mAP on {quantisation['domain']} {change}, {layers}, {space}")
    if exported.signers:
        say(f"signed by key {exported.signers[0]}")


@key_app.command("make")
def key_make(
    keyfile: Annotated[Path, typer.Argument(metavar="KEYFILE", show_default=False)], as_json: Json = False
) -> None:
    """Make a signing key: KEYFILE stays with you (mode 0600), KEYFILE.pub goes to the edge, listed in
    LIFELONG_REID_TRUSTED_KEYS.
    """
    from deploy.bundle.signature import make_key

    name, public = make_key(keyfile), f"{keyfile}.pub"
    if as_json:
        print_json({"key": name, "private": str(keyfile), "public": public})
    else:
        say(f"made key {name}: sign with --key {keyfile}, trust {public}")


@key_app.command("sign")
def key_sign(
    bundle: PathArgument, key: Annotated[Path, typer.Option("--key", help="The private key file.", show_default=False)]
) -> None:
    """Sign a bundle as it is."""
    from deploy.bundle import revise_bundle

    signed = revise_bundle(bundle, {}, key=key)
    say(f"{bundle} is signed by key {signed.signers[0]}")
