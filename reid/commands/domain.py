"""``reid domain``: inspect a camera domain, relate it to a run, or draw one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from reid.commands.options import (
    AllowCode,
    ConfigFile,
    Device,
    Json,
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

domain_app = typer.Typer(no_args_is_help=True, help="Inspect a camera domain, or draw one.")


@domain_app.command("check")
def domain_check(
    path: PathArgument,
    config: ConfigFile = None,
    settings: Settings = None,
    same_camera: SameCamera = None,
    as_json: Json = False,
    speed: Annotated[
        bool,
        typer.Option(
            help="Measure for a few seconds how fast the configured network trains here; needs the train extra."
        ),
    ] = True,
    allow_code: AllowCode = None,
) -> None:
    """Report what is in a domain, what is wrong with it, and what training on it takes."""
    import domains
    from domains.check import check_domain
    from reid.config import build_config
    from reid.recipe import fitting_recipe

    given = layers(config, None, None)
    _, fitting = fitting_recipe(given, settings or ())  # as reid learn would begin a run
    chosen = build_config(fitting, *given, overrides=settings or ())
    domain = domains.open(path, same_camera=same_camera)
    measured, first, later, batch = None, 0, 0, 0
    if speed and len(domain.train.people) > 1 and importlib.util.find_spec("torch"):
        from reid.run.learning import planned
        from reid.step.speed import measure_speed

        steps = [planned([domain], chosen, later=later)[1].train for later in (False, True)]
        first, later = (step.iterations for step in steps)
        batch = steps[0].identities * steps[0].instances
        measured = measure_speed(chosen, allow_code=allow_code or ())
    bars = progress()
    with bars.task(
        f"reading {domain.name}", len({path for _, split in domain.splits() for path in split.paths})
    ) as tick:
        report = check_domain(
            domain,
            crop=chosen.crop.spec(),
            crops_per_second=measured.crops_per_second if measured else None,
            training_crops=first * batch,
            progress=tick.advance,
        )
    if as_json:
        print_json(report.to_dict() | {"training_peak_bytes": measured and measured.peak_bytes + report.train_bytes})
        return
    for text in report.lines():
        say(text)
    if measured:
        peak = (measured.peak_bytes + report.train_bytes) / 2**30
        name, where = chosen.model.backbone, "" if chosen.device == "cpu" else f" on {chosen.device}"
        step = (
            f"a step of {first} iterations"
            if first == later
            else f"a first step of {first} iterations, a later one of {later},"
        )
        say(f"{step} with {name}{where}: {measured.crops_per_second:.0f} crops/s, about {peak:.1f} GiB")


@domain_app.command("relate")
def domain_relate(
    run: PathArgument,
    domain: PathArgument,
    device: Device = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw a map of the domains here, as SVG.")] = None,
    as_json: Json = False,
) -> None:
    """Show, before any training, which learned domains a new one resembles and whether the model serves it as it is."""
    import domains
    from domains.artefact import write_atomic
    from reid.run import Run
    from reid.run.relate import picture as draw_map
    from reid.run.relate import relate

    opened = Run.open(run)
    opened.use_device(device)
    check_output(picture, ".svg")
    relation = relate(opened, domains.open(domain), progress=progress())
    if picture:
        write_atomic(picture, draw_map(relation).encode(), private=False)
    if as_json:
        print_json(relation.to_dict())
        return
    rows = [[near.domain, f"{100 * near.score:.1f}", f"{100 * near.share:.0f} %"] for near in relation.helps]
    table(
        f"{relation.domain}: who helps ({relation.crops} crops)",
        ["learned domain", "H-score, % of maximum", "share"],
        rows,
    )
    for text in relation.lines():
        say(text)


@domain_app.command("make")
def domain_make(
    path: PathArgument,
    style: Annotated[str, typer.Option(help="plaza, corridor, nightstreet, snow, carpark, station or park.")] = "plaza",
    identities: Annotated[
        int, typer.Option(help="Number of people; half of them for training.", min=4, max=100_000)
    ] = 60,
    cameras: Annotated[int, typer.Option(help="Number of cameras.", min=1, max=1000)] = 3,
    per_camera: Annotated[
        int, typer.Option(help="Maximum number of crops of a person in each camera.", min=1, max=1000)
    ] = 2,
    height: Annotated[int, typer.Option(help="Crop height in pixels.")] = 128,
    width: Annotated[int, typer.Option(help="Crop width in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed draws other people.", min=0)] = 0,
) -> None:
    """Draw a domain of invented people, for trying things out."""
    from domains.synthetic import make_domain

    domain = make_domain(
        path, style, identities=identities, cameras=cameras, per_camera=per_camera, size=(height, width), seed=seed
    )
    say(f"{path}: {', '.join(f'{len(split)} {name}' for name, split in domain.splits())} crops")
