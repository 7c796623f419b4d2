"""``reid evaluate`` and ``calibrate``: how well people are found, and what a score means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from domains.errors import ReidError, UsageError, first_line
from reid.commands.options import (
    Bundle,
    Device,
    Json,
    PathArgument,
    Provider,
    SameCamera,
    print_json,
    progress,
    say,
    table,
    warn,
)

if TYPE_CHECKING:
    from deploy.answers.calibration import Calibration, Rate
    from domains.domain import Domain
    from domains.scoring import Scores

app = typer.Typer()


@app.command()
def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN DOMAIN...", help="The run (omit it with --bundle), then the domains.", show_default=False
        ),
    ],
    bundle: Bundle = None,
    provider: Provider = "cpu",
    step: Annotated[int, typer.Option(help="Which step's model; the last by default.")] = -1,
    rerank: Annotated[bool, typer.Option("--rerank", help="k-reciprocal re-ranking before scoring.")] = False,
    open_set: Annotated[
        bool, typer.Option("--open-set", help="Also: TPR at FPR over pairs, and DIR at FPIR with people left out.")
    ] = False,
    union: Annotated[
        bool,
        typer.Option(
            "--union", help="Also: the queries of each domain in one gallery of all; the run's report shows it, too."
        ),
    ] = False,
    same_camera: SameCamera = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Score domains with a run's model, or with an exported bundle through ONNX Runtime."""
    import domains

    has_run = (paths[0] / "run.yaml").is_file()
    folders = paths[1:] if has_run else paths
    if not has_run and bundle is None:
        raise UsageError(f"{paths[0]} is not a run (it has no run.yaml); name a run first, or a bundle with --bundle")
    if not folders:
        raise UsageError("name at least one domain to score")
    if bundle is not None and (device is not None or step != -1):
        raise UsageError(
            "--device and --step are for a run's model; a bundle holds one step and runs where --provider says"
        )
    if bundle is None and provider != "cpu":
        raise UsageError("--provider is for a bundle; a run's model runs where --device says")
    if has_run and bundle is not None:
        warn(f"the bundle {bundle} is scored, and not the run {paths[0]}; leave out --bundle to score that")
    opened = [domains.open(folder, same_camera=same_camera) for folder in folders]
    names = [domain.name for domain in opened]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(
            f"two domains are called {min(twice)}, after their folders; rename one, or score them one by one"
        )
    if union and rerank:
        raise UsageError("--union compares metrics by their own scores; leave out --rerank, or score without --union")
    score, in_one_gallery = (
        _bundle_scorers(bundle, provider) if bundle is not None else _run_scorers(paths[0], step, device)
    )
    result = {domain.name: score(domain, rerank=rerank, open_set=open_set) for domain in opened}
    together = in_one_gallery(opened) if union else {}
    for kind, scores in together.items():
        for name, found in scores.items():
            result[name].setdefault("union", {})[kind] = found.to_dict()
    if as_json:
        print_json(result)
        return
    columns = ["mAP", "rank1", "rank5", "rank10", "mINP"]
    table(
        "scores (%)",
        ["domain", *columns, "queries"],
        [
            [name, *(f"{scores[column]:.2f}" for column in columns), str(scores["queries"])]
            for name, scores in result.items()
        ],
    )
    if union:
        _show_union(result, list(together))
    if open_set:
        _show_open_set({name: scores["open_set"] for name, scores in result.items()})


InOneGallery = Callable[["list[Domain]"], "dict[str, dict[str, Scores]]"]
"""Scores by domain, for each kind of metric."""


def _bundle_scorers(bundle: Path, provider: str) -> tuple[Callable[..., dict[str, Any]], InOneGallery]:
    import numpy as np

    from deploy import Encoder
    from reid.batches.loader import StoreCache
    from reid.scores.evaluate import Retrieval, evaluate_open_set
    from reid.scores.evaluate import evaluate as closed
    from reid.scores.union import score_union

    encoder = Encoder.load(bundle, provider=provider)
    stores = StoreCache(encoder.crop, 1024)

    def embed(crops: Any) -> Any:
        return np.asarray(encoder(crops))

    def score(domain: Domain, *, rerank: bool, open_set: bool) -> dict[str, Any]:
        return (
            evaluate_open_set(domain, embed, stores, rerank=rerank)
            if open_set
            else closed(domain, embed, stores, rerank=rerank).to_dict()
        )

    def in_one_gallery(wanted: list[Domain]) -> dict[str, dict[str, Scores]]:
        found = {domain.name: Retrieval.of(domain, embed, stores) for domain in wanted}
        return {encoder.bundle.metric_name or "cosine": score_union(found)}

    return score, in_one_gallery


def _run_scorers(folder: Path, step: int, device: str | None) -> tuple[Callable[..., dict[str, Any]], InOneGallery]:
    from reid.run import Run, one_gallery, scoring
    from reid.scores.evaluate import evaluate_open_set

    run = Run.open(folder)
    run.use_device(device)
    sealed = run.sealed(step)  # before any network is built

    def score(domain: Domain, *, rerank: bool, open_set: bool) -> dict[str, Any]:
        if not open_set:
            return dict(run.evaluate(domain, step=step, rerank=rerank))
        return evaluate_open_set(domain, run.served(step)(domain), run.stores, rerank=rerank)

    def in_one_gallery(wanted: list[Domain]) -> dict[str, dict[str, Scores]]:
        found = scoring.in_one_gallery(run, wanted, step=step, progress=progress())
        if len(wanted) > 1:
            try:
                one_gallery.keep(run, sealed, wanted, found)
            except (OSError, ReidError) as error:
                warn(f"the scores in one gallery are not kept for the report: {first_line(error)}")
        return found

    return score, in_one_gallery


def _show_union(results: dict[str, dict[str, Any]], kinds: list[str]) -> None:
    found = {name: [row, *(row["union"][kind] for kind in kinds)] for name, row in results.items()}
    pairs = {name: [(scores["mAP"], scores["rank1"]) for scores in row] for name, row in found.items()}
    if len(pairs) > 1:
        columns = zip(*pairs.values(), strict=True)
        pairs["mean"] = [tuple(sum(part) / len(column) for part in zip(*column, strict=True)) for column in columns]
    rows = [[name, *(f"{mean:.1f} / {first:.1f}" for mean, first in row)] for name, row in pairs.items()]
    table("one gallery of all these domains (mAP / rank-1, %)", ["queries of", "own gallery", *kinds], rows)


def _show_open_set(results: dict[str, dict[str, Any]]) -> None:
    first = next(iter(results.values()))
    columns = [
        f"{short} {rate}"
        for short, key in (("TPR at FPR", "tpr_at_fpr"), ("DIR at FPIR", "dir_at_fpir"))
        for rate in first[key]
    ]
    rows = []
    for name, row in results.items():
        values = [*row["tpr_at_fpr"].values(), *row["dir_at_fpir"].values()]
        rows.append(
            [name, *("–" if value is None else f"{value:.1f}" for value in values), f"{row['impostor_pairs']:,}"]
        )
    table("open set, by cosine (%; –: too few pairs to measure the rate)", ["domain", *columns, "impostor pairs"], rows)


@app.command()
def calibrate(
    bundle: PathArgument,
    path: Annotated[Path, typer.Argument(metavar="DOMAIN", show_default=False)],
    fpr: Annotated[
        float | None,
        typer.Option(
            help="Share of pairs of different people that may be called the same person; by default 0.001, or the "
            "smallest that the domain can tell.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Decides which people set the threshold and which check it.", min=0, max=2**63 - 1)
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and leave the bundle unchanged.")] = False,
    key: Annotated[Path | None, typer.Option(help="Private key to re-sign a signed bundle with.")] = None,
    unsign: Annotated[
        bool, typer.Option("--unsign", help="Drop the signature of a signed bundle if there is no key.")
    ] = False,
    provider: Provider = "cpu",
    same_camera: SameCamera = None,
    as_json: Json = False,
) -> None:
    """Find the score that means "same person" on half of a domain's test people, and store it in the bundle.

    It is checked on the other half.
    """
    import domains
    from deploy import Encoder
    from deploy.answers.calibration import calibrate as measure
    from deploy.answers.calibration import check_storable, store

    domain = domains.open(path, same_camera=same_camera)
    encoder = Encoder.load(bundle, provider=provider)
    check_storable(encoder.bundle, key=key, unsign=unsign, dry_run=dry_run)
    calibration = measure(encoder, domain, fpr=fpr, seed=seed)
    if not dry_run:
        store(encoder.bundle, calibration, key=key, unsign=unsign)
    if as_json:
        print_json({**calibration.to_dict(), "stored": not dry_run})
    else:
        _show_calibration(calibration, bundle, dry_run=dry_run, proposed=fpr is None)


def _show_calibration(calibration: Calibration, bundle: Path, *, dry_run: bool, proposed: bool) -> None:
    def percent(rate: Rate) -> str:
        return f"{100 * rate.value:.3g} % ({100 * rate.low:.3g} to {100 * rate.high:.3g})"

    rows = [
        [answer, f"from {score:.4f}", f"{100 * chosen:g} %", percent(strangers), percent(true)]
        for answer, score, chosen, strangers, true in (
            ("same person", calibration.score, calibration.fpr, calibration.measured_fpr, calibration.measured_tpr),
            (
                "unsure or better",
                calibration.unsure,
                calibration.unsure_fpr,
                calibration.measured_unsure_fpr,
                calibration.measured_unsure_tpr,
            ),
        )
    ]
    table(
        f"{calibration.domain}: chosen on one half of the people, measured on the other (95 % intervals over people)",
        ["answer", "cosine", "strangers, chosen", "strangers, measured", "true pairs, measured"],
        rows,
    )
    halves = (
        f"{calibration.people[half]} people, {calibration.distractors[half]} distractors, "
        f"{calibration.genuine_pairs[half]:,} true and {calibration.impostor_pairs[half]:,} impostor pairs"
        for half in (0, 1)
    )
    say(f"chosen on {next(halves)}; measured on {next(halves)}")
    if proposed:
        tell = (
            f"the smallest that {calibration.domain} can tell"
            if calibration.fpr == calibration.smallest_fpr
            else f"the usual one; {calibration.domain} can tell {calibration.smallest_fpr:g} and more"
        )
        say(f"no rate was given (--fpr): {calibration.fpr:g} is {tell}")
    if calibration.skipped:
        say(f"{calibration.skipped} images could not be read and were left out")
    say(
        "among 10,000 strangers in a gallery, a query finds about "
        f"{10_000 * calibration.measured_fpr.value:.3g} called the same person; "
        f'"no match" is the answer for {100 * (1 - calibration.measured_unsure_tpr.value):.3g} % of the true pairs'
    )
    say(f"{bundle} is unchanged (--dry-run)" if dry_run else f"stored in {bundle}; queries use it from now on")
