"""``reid evaluate``, ``export`` and ``query``: the learned model at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domains.errors import UsageError
from reid.commands.options import Bundle, Device, Json, PathArgument, Provider, SameCamera, out, print_json, table

app = typer.Typer()


@app.command()
def evaluate(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN DOMAIN...", help="The run, then the domains.", show_default=False)],
    bundle: Bundle = None, provider: Provider = "cpu", step: Annotated[int, typer.Option(help="Which step's model; the last by default.")] = -1,
    rerank: Annotated[bool, typer.Option("--rerank", help="k-reciprocal re-ranking before scoring.")] = False,
    same_camera: SameCamera = None, device: Device = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Score domains with a run's model, or with an exported bundle through ONNX Runtime."""
    import domains

    has_run = (paths[0] / "run.yaml").is_file()
    folders = paths[1:] if has_run else paths
    if not has_run and bundle is None:
        raise UsageError(f"{paths[0]} is no run (it has no run.yaml); name a run first, or a bundle with --bundle")
    if not folders:
        raise UsageError("name at least one domain to score")
    opened = [domains.open(folder, same_camera=same_camera) for folder in folders]
    result: dict[str, dict[str, float | int]] = {}
    if bundle is not None:
        import numpy as np

        from deploy import Encoder
        from reid.evaluate import evaluate as score
        from reid.loader import StoreCache

        encoder = Encoder.load(bundle, provider=provider)
        stores = StoreCache(encoder.crop, 1024)
        for domain in opened:
            result[domain.name] = score(domain, lambda crops: np.asarray(encoder(crops)), stores, rerank=rerank).to_dict()
    else:
        from reid.run import Run

        run = Run.open(paths[0])
        if device:
            run.config = run.config.model_copy(update={"device": device})
        for domain in opened:
            result[domain.name] = run.evaluate(domain, step=step, rerank=rerank)
    if as_json:
        print_json(result)
    else:
        columns = ["mAP", "rank1", "rank5", "rank10", "mINP"]
        table("scores (%)", ["domain", *columns, "queries"], [
            [name, *(f"{scores[column]:.2f}" for column in columns), str(scores["queries"])] for name, scores in result.items()])  # fmt: skip


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


@app.command()
def query(
    gallery: PathArgument, images: Annotated[list[Path], typer.Argument(help="One or more images of a person.")],
    top: Annotated[int, typer.Option(help="How many matches.")] = 10,
    camera: Annotated[str | None, typer.Option(help="Only this camera.")] = None,
    after: Annotated[str | None, typer.Option(help="Only from this time on (ISO 8601 with zone).")] = None,
    before: Annotated[str | None, typer.Option(help="Only before this time.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw query and matches side by side into this PNG or JPEG.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Look at every entry, also where there are 50,000 and more.")] = False,
    bundle: Bundle = None, provider: Provider = "cpu", as_json: Json = False,
) -> None:  # fmt: skip
    """Find a person by image: which of my cameras has seen them, and when."""
    from deploy import Encoder, Gallery
    from deploy.picture import draw_matches, stack, write_picture
    from domains.crops import read_crop

    crops = [read_crop(path) for path in images]
    with Gallery.open(gallery) as store:
        encoder = Encoder.load(bundle or store.bundle, provider=provider)
        found = store.search(encoder(crops), k=top, camera=camera, after=after, before=before, exact=exact)
        if picture is not None:
            write_picture(picture, stack([draw_matches(crop, matches, kept=store.crop) for crop, matches in zip(crops, found, strict=True)]))
    if as_json:
        shown = [[match.to_dict() for match in matches] for matches in found]
        print_json(shown[0] if len(images) == 1 else shown)
        return
    for path, matches in zip(images, found, strict=True):
        rows = [
            [str(match.rank), f"{match.score:.3f}", match.camera, match.time or "–", match.label or "–", match.source, str(match.id)]
            for match in matches
        ]
        table(str(path), ["rank", "score", "camera", "time", "label", "source", "id"], rows)
