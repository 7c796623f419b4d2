"""``reid learn``, ``stream``, ``report`` and ``forget``: what can be done with a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from domains.errors import UsageError
from reid.commands.options import (
    AllowCode,
    ConfigFile,
    Device,
    Json,
    Method,
    PathArgument,
    SameCamera,
    Settings,
    check_output,
    layers,
    print_json,
    progress,
    say,
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
    allow_code: AllowCode = None,
    as_json: Json = False,
) -> None:
    """Learn one more camera domain, score every known domain, and show what the step did to them."""
    import domains
    from reid.config import read_method
    from reid.recipe import about, fitting_recipe
    from reid.run import Run
    from reid.run.checks import check_step
    from reid.run.consent import chosen_method, named_method
    from reid.run.estimate import estimate
    from reid.run.folder import RUN

    bars = progress()
    fresh = domains.open(domain, same_camera=same_camera)
    given = layers(config, method, device)
    others = [domains.open(path) for path in also or ()]
    recipe, fitting = ("", {}) if (run / RUN).exists() else fitting_recipe(given, settings or ())
    known, chosen = Run.open_if_there(run, [fitting, *given], settings or ())
    learned = known.learned if known else []
    if replace_last:
        if known is None or len(known.steps) < 2:
            raise UsageError(f"{run} has learned nothing yet, so there is no step to replace")
        learned = [name for step in known.steps[:-1] for name in step.learned]
        if fresh.name in learned:
            raise UsageError(f"{fresh.name} is already learned in {run}")
    named = named_method(chosen, given, settings or ())
    if named is not None:
        read_method(named)  # a mistyped name is told even where no step is learned with it
    if fresh.name not in learned:  # all that can be wrong, before a network is built or weights are fetched
        way, allowed = chosen_method(named, chosen, known.config.method if known else chosen.method, allow_code or ())
        check_step([fresh], way, chosen, learned=learned, allow_code=allowed)
    if recipe:
        bars.say(about(chosen))
    opened = known or Run.create(run, chosen, recipe=recipe)
    if fresh.name in opened.learned and not replace_last:
        opened.check_name(fresh)
        if not as_json:
            say(f"{fresh.name} is already learned in {run}")
        sealed = next(step for step in opened.steps if fresh.name in step.learned)
        notes = opened.fill_scores([fresh, *others], progress=bars)
    else:
        if line := estimate(opened, fresh, way, chosen, later=bool(learned), allow_code=allowed, progress=bars):
            bars.say(line)
        if not replace_last:
            opened.fill_scores([fresh, *others], rows={0, -1}, progress=bars)
        sealed = opened.learn(
            fresh,
            method=way,
            config=chosen,
            replace_last=replace_last,
            restart=restart,
            allow_code=allowed,
            progress=bars,
        )
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
        say(note)


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
    allow_code: AllowCode = None,
    as_json: Json = False,
) -> None:
    """Learn a sequence of domains and score every domain before the first step and after each."""
    from reid.config import read_stream
    from reid.run import Run
    from reid.run.checks import check_names
    from reid.run.consent import chosen_method, named_method
    from reid.run.stream import check_stream, in_proposed_order, learn_stream, open_stream

    described = read_stream(config)
    learned, unseen = open_stream(described)
    given = [described.config, *layers(settings_file, method, device)]
    check_names([*learned, *unseen])
    known, chosen = Run.open_if_there(run, given, settings or ())
    named = named_method(chosen, given, settings or ())
    way, allowed = chosen_method(named, chosen, known.config.method if known else chosen.method, allow_code or ())
    check_stream(learned, way, chosen, done=known.learned if known else [], allow_code=allowed)
    opened = known or Run.create(run, chosen)
    if order == "auto":
        learned = in_proposed_order(opened, learned, progress=progress())
        if not as_json:
            say(f"order: {', '.join(domain.name for domain in learned)}")

    def show(sealed: Sealed) -> None:
        if not as_json:
            _show_step(opened, sealed, [])

    notes = learn_stream(
        opened, learned, unseen, method=way, config=chosen, allow_code=allowed, progress=progress(), after=show
    )
    if as_json:
        print_json({"summary": opened.scores.summary(), "notes": notes})
    else:
        show_scores(opened)
        for note in notes:
            say(note)


@app.command()
def report(
    run: PathArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="By default RUN/report.html.")] = None,
) -> None:
    """Write an HTML page with a run's score matrix, curves and costs."""
    from reid.run import Run
    from reid.run.report import write_report

    opened = Run.open(run)
    target = output or run / "report.html"
    check_output(target, ".html", ".htm")
    write_report(opened, target)
    say(str(target))


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
            say(f"{record['time']}  {record['kind']}: {record['identities']} identities, {record['files']} files")
        if not done:
            say("nothing has ever been erased")
        return
    erasure = opened.forget(identity=identity, domain=domain, dry_run=dry_run, discard_progress=discard_progress)
    if as_json:
        print_json({**erasure.to_dict(), "dry_run": dry_run})
        return
    steps = ", ".join(map(str, sorted({*erasure.people, *erasure.whole}))) or "none"
    verb = "would be erased" if dry_run else "erased"
    say(f"{verb}: {erasure.identities} identities, learned in steps: {steps}; {len(erasure.files)} files rewritten")
    for file in erasure.files if dry_run else ():
        say(f"  {file}")
    for line in REMAINS:
        say(f"remains: {line}")
    for file in erasure.others:
        say(f"not part of this run, left unchanged: {file}")
