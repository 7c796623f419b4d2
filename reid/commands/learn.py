"""``reid learn``, ``stream``, ``report`` and ``forget``: what can be done with a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reid.commands.options import (
    ConfigFile,
    Device,
    Json,
    Method,
    PathArgument,
    SameCamera,
    Settings,
    layers,
    out,
    print_json,
    progress,
    table,
)
from reid.commands.run import show_scores

if TYPE_CHECKING:
    from reid.run import Run
    from reid.run.sealed import Sealed

app = typer.Typer()


@app.command()
def learn(
    run: PathArgument,
    domain: PathArgument,
    method: Method = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    same_camera: SameCamera = None,
    also: Annotated[
        list[Path] | None, typer.Option(help="Another domain to score but not learn; may be repeated.")
    ] = None,
    replace_last: Annotated[
        bool, typer.Option("--replace-last", help="Discard the last step and learn this domain in its place.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start an interrupted step over instead of resuming it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Learn one more camera domain, score every known domain, and show what the step did to them."""
    import domains
    from reid.run import Run

    bars = progress()
    fresh = domains.open(domain, same_camera=same_camera)
    opened, chosen = Run.open_or_create(run, layers(config, method, device), settings or ())
    others = [domains.open(path) for path in also or ()]
    if fresh.name in opened.learned and not replace_last:
        opened.check_name(fresh)
        if not as_json:
            out.print(f"{fresh.name} is already learned in {run}", markup=False)
        sealed = next(step for step in opened.steps if fresh.name in step.learned)
        notes = opened.fill_scores([fresh, *others], progress=bars)
    else:
        if not replace_last:
            opened.fill_scores([fresh, *others], rows={0, -1}, progress=bars)
        sealed = opened.learn(fresh, config=chosen, replace_last=replace_last, restart=restart, progress=bars)
        notes = opened.fill_scores([fresh, *others], rows={0, sealed.index - 1, sealed.index}, progress=bars)
        if others:
            notes = list(dict.fromkeys([*notes, *opened.fill_scores(others, progress=bars)]))
    _show_step(opened, sealed, notes, as_json=as_json)


def _show_step(run: Run, sealed: Sealed, notes: list[str], *, as_json: bool = False) -> None:
    """Show what a step did to every scored domain."""
    rows = run.scores.effect(sealed.index)
    if as_json:
        print_json({"step": sealed.folder.name, "learned": list(sealed.learned), "effect": rows, "notes": notes})
        return
    cells = [
        [
            row["domain"],
            row["role"],
            *(f"{value:.1f}" if value is not None else "–" for value in (row["before"], row["after"])),
            f"{row['change']:+.1f}" if row["change"] is not None else "–",
            f"{row['rank1']:.1f}" if row["rank1"] is not None else "–",
        ]
        for row in rows
    ]
    table(f"{sealed.folder.name}: what it did (mAP, %)", ["domain", "", "before", "after", "change", "rank-1"], cells)
    for note in notes:
        out.print(note, markup=False)


@app.command()
def stream(
    config: Annotated[str, typer.Argument(help="A stream's YAML file, or a shipped one's name.")],
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.")],
    method: Method = None,
    settings_file: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    order: Annotated[
        Literal["given", "auto"], typer.Option(help="auto: new domains in the order in which they help each other.")
    ] = "given",
    as_json: Json = False,
) -> None:
    """Learn a sequence of domains and score every domain before the first step and after each."""
    from reid.config import read_stream
    from reid.run import Run
    from reid.run.stream import in_proposed_order, learn_stream, open_stream

    described = read_stream(config)
    learned, unseen = open_stream(described)
    opened, chosen = Run.open_or_create(run, [described.config, *layers(settings_file, method, device)], settings or ())
    if order == "auto":
        learned = in_proposed_order(opened, learned, progress=progress())
        if not as_json:
            out.print(f"order: {', '.join(domain.name for domain in learned)}", markup=False)

    def show(sealed: Sealed) -> None:
        if not as_json:
            _show_step(opened, sealed, [])

    notes = learn_stream(opened, learned, unseen, config=chosen, progress=progress(), after=show)
    if as_json:
        print_json({"summary": opened.scores.summary(), "notes": notes})
    else:
        show_scores(opened)
        for note in notes:
            out.print(note, markup=False)


@app.command()
def report(
    run: PathArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="By default RUN/report.html.")] = None,
) -> None:
    """Write an HTML page with a run's score matrix, curves and costs."""
    from reid.run import Run
    from reid.run.report import write_report

    target = output or run / "report.html"
    write_report(Run.open(run), target)
    out.print(str(target), markup=False)


@app.command()
def forget(
    run: PathArgument,
    identity: Annotated[
        str | None, typer.Option(metavar="NAME[@DOMAIN]", help="One person, in every domain or in one.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Everything that is remembered of a domain.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be erased, and change nothing.")] = False,
    discard_progress: Annotated[
        bool, typer.Option("--discard-progress", help="Discard a step that was started but not finished.")
    ] = False,
    records: Annotated[
        bool, typer.Option("--records", help="Show what was erased before, without naming anyone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Erase a person, or a whole domain, from every step of a run: memories, classifier rows, names, scores.

    The embedding stays the same.
    """
    from reid.run import Run
    from reid.run.erasure import REMAINS, read_erasures

    opened = Run.open(run)
    if records:
        done = read_erasures(opened.folder)
        if as_json:
            print_json(done)
            return
        for record in done:
            out.print(
                f"{record['time']}  {record['kind']}: {record['identities']} identities, {record['files']} files",
                markup=False,
            )
        if not done:
            out.print("nothing has ever been erased", markup=False)
        return
    erasure = opened.forget(identity=identity, domain=domain, dry_run=dry_run, discard_progress=discard_progress)
    if as_json:
        print_json({**erasure.to_dict(), "dry_run": dry_run})
        return
    steps = ", ".join(map(str, sorted({*erasure.people, *erasure.whole}))) or "none"
    verb = "would be erased" if dry_run else "erased"
    out.print(
        f"{verb}: {erasure.identities} identities, learned in steps: {steps}; {len(erasure.files)} files rewritten",
        markup=False,
    )
    for file in erasure.files if dry_run else ():
        out.print(f"  {file}", markup=False)
    for line in REMAINS:
        out.print(f"remains: {line}", markup=False)
    for file in erasure.others:
        out.print(f"not part of this run, left unchanged: {file}", markup=False)
