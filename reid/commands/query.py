"""``reid query``: find a person by image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.commands.options import Bundle, Json, PathArgument, Provider, out, print_json, table

if TYPE_CHECKING:
    from deploy.answers.refine import Refinement
    from deploy.answers.thresholds import Thresholds
    from deploy.match import Match

app = typer.Typer()


@app.command()
def query(
    gallery: PathArgument,
    images: Annotated[list[Path], typer.Argument(help="One or more images of a person.")],
    top: Annotated[int, typer.Option(help="How many matches.")] = 10,
    camera: Annotated[str | None, typer.Option(help="Only this camera.")] = None,
    after: Annotated[str | None, typer.Option(help="Only from this time on (ISO 8601 with zone).")] = None,
    before: Annotated[str | None, typer.Option(help="Only before this time.")] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|SCORE",
            help="Calibrated domain, or least cosine; the strictest domain by default.",
            show_default=False,
        ),
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="All images show one person: one answer.")] = False,
    expand: Annotated[
        int, typer.Option(metavar="N", help="Ask again with the average of the query and its first N matches.", min=0)
    ] = 0,
    rerank: Annotated[bool, typer.Option("--rerank", help="k-reciprocal re-ranking of the candidates.")] = False,
    depth: Annotated[int, typer.Option(help="Candidates that are re-ranked or judged by time.", min=1)] = 100,
    seen_at: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="CAMERA TIME", help="Where and when the images were taken.", show_default=False),
    ] = None,
    transitions: Annotated[
        Path | None, typer.Option(help="CSV or YAML with from,to,min,max: seconds between cameras; needs --seen-at.")
    ] = None,
    remove_impossible: Annotated[
        bool, typer.Option("--remove-impossible", help="Leave out what the times rule out, which else goes last.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw query and matches side by side into this PNG or JPEG.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Look at every entry, also where there are 50,000 and more.")
    ] = False,
    bundle: Bundle = None,
    provider: Provider = "cpu",
    as_json: Json = False,
) -> None:
    """Find a person by image: which of my cameras has seen them, and when."""
    from deploy import Encoder, Gallery
    from deploy.answers.picture import draw_matches, stack, write_picture
    from deploy.answers.refine import Refinement, search
    from deploy.answers.thresholds import Thresholds
    from deploy.answers.transitions import Sighting, Transitions
    from domains.crops import read_crop

    wanted = Refinement(
        together="mean" if together else None,
        expand=expand,
        rerank=rerank,
        depth=depth,
        remove_impossible=remove_impossible,
        seen=None if seen_at is None else Sighting(*seen_at),
        transitions=None if transitions is None else Transitions.read(transitions),
    )
    crops = [read_crop(path) for path in images]
    with Gallery.open(gallery) as store:
        encoder = Encoder.load(bundle or store.bundle, provider=provider)
        limits = Thresholds.from_bundle(encoder.bundle, threshold)
        found = search(
            store,
            encoder(crops),
            top,
            _with_least(wanted, limits),
            camera=camera,
            after=after,
            before=before,
            exact=exact,
        )
        if limits is not None:
            found = [limits.judge(matches) for matches in found]
        if picture is not None:
            drawn = crops[:1] if together else crops
            write_picture(
                picture,
                stack(
                    [draw_matches(crop, matches, kept=store.crop) for crop, matches in zip(drawn, found, strict=True)]
                ),
            )
    if as_json:
        shown = [[match.to_dict() for match in matches] for matches in found]
        print_json(shown[0] if len(found) == 1 else shown)
        return
    shown_as = [str(path).encode(errors="backslashreplace").decode() for path in images]
    names = [", ".join(shown_as)] if together else shown_as
    for name, matches in zip(names, found, strict=True):
        _show_matches(name, matches, limits)


def _with_least(wanted: Refinement, limits: Thresholds | None) -> Refinement:
    """Where it is known what "same person" means, only such matches are averaged into the query."""
    from dataclasses import replace

    return wanted if limits is None else replace(wanted, least=limits.same)


def _show_matches(name: str, matches: list[Match], limits: Thresholds | None) -> None:
    from deploy.answers.thresholds import answer

    by = sorted({match.ranked_by for match in matches} - {"cosine"})
    columns = {
        "rank": [str(match.rank) for match in matches],
        "score": [f"{match.score:.3f}" for match in matches],
        "verdict": [match.verdict or "" for match in matches] if limits else None,
        "in time": [{True: "yes", False: "impossible", None: "–"}[match.possible] for match in matches]
        if any(match.possible is not None for match in matches)
        else None,
        "camera": [match.camera for match in matches],
        "time": [match.time or "–" for match in matches],
        "label": [match.label or "–" for match in matches],
        "source": [match.source for match in matches],
        "id": [str(match.id) for match in matches],
    }
    kept = {column: values for column, values in columns.items() if values is not None}
    table(
        f"{name}, ranked by {' and '.join(by)}; scores are cosines" if by else name,
        list(kept),
        [list(row) for row in zip(*kept.values(), strict=True)],
    )
    if limits is not None and answer(matches) != "same person":
        best = max((match.score for match in matches if match.possible is not False), default=None)
        found = "nobody is there to compare with" if best is None else f"the best score is {best:.3f}"
        out.print(
            f"{name}: {answer(matches)} ({found}; same person from {limits.same:.3f}, unsure from "
            f"{limits.unsure:.3f}, by {limits.name})",
            markup=False,
        )
