"""``reid query``: find a person by image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.commands.options import (
    Bundle,
    Json,
    PathArgument,
    Provider,
    check_named,
    check_output,
    local_time,
    print_json,
    say,
    table,
    warn,
    wrong_use,
)

if TYPE_CHECKING:
    from deploy.answers.refine import Refinement
    from deploy.answers.thresholds import Thresholds
    from deploy.bundle import Bundle as LoadedBundle
    from deploy.match import Match

app = typer.Typer()


@app.command()
def query(
    gallery: PathArgument,
    images: Annotated[list[Path], typer.Argument(help="One or more images of a person.")],
    top: Annotated[int, typer.Option(help="How many matches.", min=1)] = 10,
    camera: Annotated[str | None, typer.Option(help="Only this camera.")] = None,
    after: Annotated[str | None, typer.Option(help="Only from this time on (ISO 8601 with zone).")] = None,
    before: Annotated[str | None, typer.Option(help="Only before this time.")] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|SCORE",
            help="Calibrated domain, or minimum cosine; by default the strictest domain.",
            show_default=False,
        ),
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="All images show one person: one answer.")] = False,
    expand: Annotated[
        int, typer.Option(metavar="N", help="Query again with the average of the query and its top N matches.", min=0)
    ] = 0,
    rerank: Annotated[bool, typer.Option("--rerank", help="k-reciprocal re-ranking of the candidates.")] = False,
    depth: Annotated[int, typer.Option(help="How many candidates to re-rank or judge by time.", min=1)] = 100,
    seen_at: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="CAMERA TIME", help="Where and when the images were taken.", show_default=False),
    ] = None,
    transitions: Annotated[
        Path | None, typer.Option(help="CSV or YAML with from,to,min,max: seconds between cameras; needs --seen-at.")
    ] = None,
    remove_impossible: Annotated[
        bool, typer.Option("--remove-impossible", help="Leave out what the times rule out instead of ranking it last.")
    ] = False,
    site: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Site that the images are from, in a gallery of many: scores and ranks in its mixed metric.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw query and matches side by side into this PNG or JPEG.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Search every entry, even if there are 50,000 or more.")
    ] = False,
    bundle: Bundle = None,
    provider: Provider = "cpu",
    as_json: Json = False,
) -> None:
    """Find a person by image: which of my cameras has seen them, and when."""
    from deploy import Encoder, Gallery
    from deploy.answers.picture import check_suffix, draw_matches, stack, write_picture
    from deploy.answers.refine import EXPANDED_SITE, Refinement, search
    from deploy.answers.thresholds import Thresholds, unsure
    from deploy.answers.transitions import Sighting, Transitions
    from deploy.gallery.cameras import check_camera, unknown_camera
    from deploy.store.selection import Selection
    from domains.crop_shape import doubt
    from domains.crops import read_crop
    from domains.errors import UsageError

    check_named(camera=camera, site=site)
    if site is not None and expand:
        raise UsageError(EXPANDED_SITE)
    with wrong_use():
        Selection(camera, after, before)
        seen = None if seen_at is None else Sighting(*seen_at)
    wanted = Refinement(
        together="mean" if together else None,
        expand=expand,
        rerank=rerank,
        depth=depth,
        remove_impossible=remove_impossible,
        seen=seen,
        transitions=None if transitions is None else Transitions.read(transitions),
    )
    if picture is not None:
        check_output(picture, check_suffix(picture))
        if picture.resolve() in {image.resolve() for image in images}:
            raise UsageError(f"--picture {picture} would replace an image that is asked about; name another file")
    crops = [read_crop(path) for path in images]
    doubts = {path: reason for path, crop in zip(images, crops, strict=True) if (reason := doubt(*crop.shape[:2]))}
    for path, reason in doubts.items():
        warn(f"{path}: {reason}, so its verdict is unsure; cut out the person")
    doubtful = [next(iter(doubts.values()), None)] if together else [doubts.get(path) for path in images]
    with Gallery.open(gallery) as store:
        check_camera(store, camera)
        if wanted.seen is not None and wanted.transitions is not None:
            windows = {name for pair in wanted.transitions.windows for name in pair}
            if reason := unknown_camera(store, wanted.seen.camera, also=windows):
                raise UsageError(f"--seen-at: {reason}; {transitions} does not name it either")
        encoder = Encoder.load(bundle or store.bundle, provider=provider)
        limits = Thresholds.from_bundle(encoder.bundle, threshold)
        results = search(
            store,
            encoder(crops),
            top,
            _of_site(_with_least(wanted, limits), encoder.bundle, site),
            camera=camera,
            after=after,
            before=before,
            exact=exact,
        )
        if limits is not None:
            results = [limits.judge(matches) for matches in results]
        results = [unsure(row) if doubted else row for row, doubted in zip(results, doubtful, strict=True)]
        if picture is not None:
            drawn = crops[:1] if together else crops
            write_picture(
                picture,
                stack(
                    [draw_matches(crop, matches, kept=store.crop) for crop, matches in zip(drawn, results, strict=True)]
                ),
            )
    if as_json:
        plain = [[match.to_dict() for match in matches] for matches in results]
        print_json(plain[0] if len(results) == 1 else plain)
        return
    names = [", ".join(map(str, images))] if together else [str(path) for path in images]
    for name, matches, doubted in zip(names, results, doubtful, strict=True):
        _show_matches(name, matches, None if doubted else limits)
        if doubted:
            say(f"{name}: unsure ({doubted})")


def _with_least(wanted: Refinement, limits: Thresholds | None) -> Refinement:
    """Average only "same person" matches into the query, where it is known what that means."""
    return wanted if limits is None else replace(wanted, least=limits.same)


def _of_site(wanted: Refinement, bundle: LoadedBundle, site: str | None) -> Refinement:
    """Score and rank in the metric for a site's queries, if one is named; raises UsageError if the bundle has none."""
    from deploy.answers.site_metric import SiteMetrics

    return wanted if site is None else replace(wanted, site=SiteMetrics(bundle).of(site))


def _show_matches(name: str, matches: list[Match], limits: Thresholds | None) -> None:
    from deploy.answers.thresholds import answer

    by = sorted({match.ranked_by for match in matches} - {"cosine"})
    metrics = sorted({match.metric for match in matches if match.metric is not None})
    columns: dict[str, list[str]] = {
        "rank": [str(match.rank) for match in matches],
        "score": [f"{match.score:.3f}" for match in matches],
        "pooled": ["" if match.pooled is None else f"{match.pooled:.3f}" for match in matches],
        "verdict": [match.verdict or "" for match in matches],
        "in time": [{True: "yes", False: "impossible", None: ""}[match.possible] for match in matches],
        "camera": [match.camera for match in matches],
        "time": [local_time(match.time) for match in matches],
        "label": [match.label or "" for match in matches],
        "source": [match.source for match in matches],
        "id": [str(match.id) for match in matches],
    }
    used = {column: values for column, values in columns.items() if any(values)}
    title = f"{name}, ranked by {' and '.join(by)}; scores are cosines" if by else name
    if metrics:
        title += f", metric: {metrics[0]}" + ("; verdicts are by the pooled score" if limits is not None else "")
    if used:
        table(
            title,
            list(used),
            [[value or "–" for value in row] for row in zip(*used.values(), strict=True)],
            left=("verdict", "in time", "camera", "time", "label", "source"),
            paths=("source",),
        )
    else:
        say(f"{title}: no entry of the gallery fits")
    kind = "pooled score" if metrics else "score"
    if limits is not None and answer(matches) != "same person":
        best = max((match.judged for match in matches if match.possible is not False), default=None)
        reason = "there is nobody to compare with" if best is None else f"the best {kind} is {best:.3f}"
        say(
            f"{name}: {answer(matches)} ({reason}; same person from {limits.same:.3f}, unsure from "
            f"{limits.unsure:.3f}, by {limits.name})"
        )
