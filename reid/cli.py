"""The ``reid`` command. Each command loads its room when it runs, so the edge commands work without torch."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from domains.errors import DeviceError, ReidError, UsageError

if TYPE_CHECKING:
    from reid.progress import Progress
    from reid.run import Run, Sealed

app = typer.Typer(name="reid", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=(
    "Person re-identification that keeps learning: train on a new camera domain, query the gallery by image, deploy ONNX at the edge."))  # fmt: skip
domain_app = typer.Typer(no_args_is_help=True, help="Look at a camera domain, or draw one.")
run_app = typer.Typer(no_args_is_help=True, help="Look after a run.")
gallery_app = typer.Typer(no_args_is_help=True, help="Fill and look after a gallery.")
app.add_typer(domain_app, name="domain")
app.add_typer(run_app, name="run")
app.add_typer(gallery_app, name="gallery")

PathArgument = Annotated[Path, typer.Argument(show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Method = Annotated[str | None, typer.Option("--method", "-m", help="A shipped method's name, or a YAML file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting; may be repeated.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Bundle = Annotated[Path | None, typer.Option("--bundle", "-b", help="A bundle made by reid export.")]
Provider = Annotated[str, typer.Option("--provider", help="ONNX Runtime's engine: cpu, cuda, tensorrt or openvino.")]
SameCamera = Annotated[
    Literal["drop", "keep"] | None,
    typer.Option("--same-camera", help="drop: ignore matches from the query's own camera (the field's rule); keep: rank them."),
]

out = Console(highlight=False)


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Options of every command."""


def main() -> NoReturn:
    """Run the command; an error is one line on stderr (exit 1 could not do it, 2 wrong use)."""
    debug = "--debug" in sys.argv[1:]
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        app(args=arguments, prog_name="reid")
    except ReidError as error:
        if debug:
            raise
        sys.stderr.write(f"reid: {error}\n")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").split(".")[0] in ("reid", "domains", "prototypes", "deploy"):
            raise
        sys.stderr.write(
            f"reid: {error.name} is not installed; training needs pip install 'lifelong-reid[cpu,train]', the edge 'lifelong-reid[cpu]'\n"
        )
        sys.exit(DeviceError.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("reid: stopped; the same command goes on where it was\n")
        sys.exit(130)
    sys.exit(0)


def _progress() -> Progress:
    from reid.progress import Progress

    return Progress(Console(stderr=True))


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _layers(config: Path | None, method: str | None, device: str | None) -> list[dict[str, Any]]:
    from reid.config import read_yaml

    layers = [read_yaml(config)] if config else []
    layers += [{"method": method}] if method else []
    return [*layers, {"device": device}] if device else layers


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


# ---------------------------------------------------------------------------------------------------------------------------------- domains


@domain_app.command("check")
def domain_check(
    path: PathArgument, config: ConfigFile = None, settings: Settings = None, same_camera: SameCamera = None, as_json: Json = False,
    speed: Annotated[bool, typer.Option(help="Measure for some seconds how fast the configured network trains here; needs the train extra.")] = True,
) -> None:  # fmt: skip
    """Say what is in a domain, what is wrong with it, and what training on it takes."""
    import domains
    from domains.report import check_domain
    from reid.config import build_config

    chosen = build_config(*_layers(config, None, None), overrides=settings or ())
    domain = domains.open(path, same_camera=same_camera)
    measured = None
    if speed and len(domain.train) and importlib.util.find_spec("torch"):
        from reid.speed import measure_speed

        measured = measure_speed(chosen)
    train = chosen.train
    progress = _progress()
    with progress.task(f"reading {domain.name}", len({path for _, split in domain.splits() for path in split.paths})) as tick:
        report = check_domain(
            domain, crop=chosen.crop.spec(), crops_per_second=measured and measured.crops_per_second,
            training_crops=train.iterations * train.identities * train.instances, progress=tick.advance,
        )  # fmt: skip
    if as_json:
        _print_json(report.to_dict() | {"training_peak_bytes": measured and measured.peak_bytes + report.train_bytes})
        return
    for text in report.lines():
        out.print(text, markup=False, soft_wrap=True)
    if measured:
        peak = (measured.peak_bytes + report.train_bytes) / 2**30
        name, where = chosen.model.backbone, "" if chosen.device == "cpu" else f" on {chosen.device}"
        out.print(
            f"a step of {train.iterations} iterations with {name}{where}: {measured.crops_per_second:.0f} crops/s, about {peak:.1f} GiB", markup=False
        )


@domain_app.command("make")
def domain_make(
    path: PathArgument,
    style: Annotated[str, typer.Option(help="Camera style.")] = "plaza",
    identities: Annotated[int, typer.Option()] = 60,
    cameras: Annotated[int, typer.Option()] = 3,
    per_camera: Annotated[int, typer.Option()] = 2,
    height: Annotated[int, typer.Option()] = 128,
    width: Annotated[int, typer.Option()] = 64,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Draw a domain of invented people, for trying things out."""
    from domains.synthetic import make_domain

    domain = make_domain(path, style, identities=identities, cameras=cameras, per_camera=per_camera, height=height, width=width, seed=seed)
    out.print(f"{path}: {', '.join(f'{len(split)} {name}' for name, split in domain.splits())} crops", markup=False)


# ---------------------------------------------------------------------------------------------------------------------------------- learning


@app.command()
def learn(
    run: PathArgument, domain: PathArgument, method: Method = None, config: ConfigFile = None, settings: Settings = None, device: Device = None,
    same_camera: SameCamera = None,
    also: Annotated[list[Path] | None, typer.Option(help="A further domain to score and never learn; may be repeated.")] = None,
    replace_last: Annotated[bool, typer.Option("--replace-last", help="Discard the last step and learn this domain in its place.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin an interrupted step again instead of going on.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Learn one more camera domain, score every known domain, and say what the step did to them."""
    import domains
    from reid.run import Run

    progress = _progress()
    fresh = domains.open(domain, same_camera=same_camera)
    opened, chosen = Run.open_or_create(run, _layers(config, method, device), settings or ())
    others = [domains.open(path) for path in also or ()]
    if fresh.name in opened.learned and not replace_last:
        out.print(f"{fresh.name} is already learned in {run}", markup=False) if not as_json else None
        sealed = next(step for step in opened.steps if fresh.name in step.learned)
        notes = opened.fill_scores([fresh, *others], progress=progress)
    else:
        if not replace_last:
            opened.fill_scores([fresh, *others], rows={0, -1}, progress=progress)
        sealed = opened.learn(fresh, config=chosen, replace_last=replace_last, restart=restart, progress=progress)
        notes = opened.fill_scores([fresh, *others], rows={0, sealed.index - 1, sealed.index}, progress=progress)
    _show_step(opened, sealed, notes, as_json=as_json)


def _show_step(run: Run, sealed: Sealed, notes: list[str], *, as_json: bool = False) -> None:
    """Show what a step did to every scored domain."""
    rows = run.scores.effect(sealed.index)
    if as_json:
        _print_json({"step": sealed.folder.name, "learned": list(sealed.learned), "effect": rows, "notes": notes})
        return
    shown = [
        [row["domain"], row["role"], *(f"{value:.1f}" if value is not None else "–" for value in (row["before"], row["after"])),
         f"{row['change']:+.1f}" if row["change"] is not None else "–", f"{row['rank1']:.1f}" if row["rank1"] is not None else "–"]
        for row in rows
    ]  # fmt: skip
    _table(f"{sealed.folder.name}: what it did (mAP, %)", ["domain", "", "before", "after", "change", "rank-1"], shown)
    for note in notes:
        out.print(note, markup=False)


@app.command()
def stream(
    config: Annotated[str, typer.Argument(help="A stream's YAML file, or a shipped one's name.")],
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.")],
    method: Method = None, settings: Settings = None, device: Device = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Learn a sequence of domains and score every domain before the first step and after each."""
    from reid.config import read_stream
    from reid.run import Run
    from reid.stream import learn_stream, open_stream

    described = read_stream(config)
    learned, unseen = open_stream(described)
    opened, chosen = Run.open_or_create(run, [described.config, *_layers(None, method, device)], settings or ())

    def show(sealed: Sealed) -> None:
        if not as_json:
            _show_step(opened, sealed, [])

    notes = learn_stream(opened, learned, unseen, config=chosen, progress=_progress(), after=show)
    if as_json:
        _print_json({"summary": opened.scores.summary(), "notes": notes})
    else:
        _show_summary(opened, notes)


def _show_summary(run: Run, notes: list[str]) -> None:
    scores, summary = run.scores, run.scores.summary()
    names = list(scores.scored)
    rows = [
        ["+".join(row["learned"]) or "start", *(f"{value:.1f}" if (value := scores.value(row["step"], name)) is not None else "–" for name in names),
         *(f"{row[kind]['mAP']:.1f}" if row[kind]["mAP"] is not None else "–" for kind in ("seen", "unseen"))]
        for row in summary["rows"]
    ]  # fmt: skip
    _table(f"{run.folder}: mAP (%) after each step", ["after", *names, "Seen-Avg", "Unseen-Avg"], rows)
    for name in ("plasticity", "forgetting_all_rows", "forgetting_since_learned", "backward_transfer"):
        value, interval = summary[name]["mAP"], summary[name]["interval"]
        if value is not None:
            spread = f"  (95 % of queries resampled: {interval[0]:.1f} to {interval[1]:.1f})" if interval else ""
            out.print(f"{name.replace('_', ' ')}: {value:.1f}{spread}", markup=False)
    for note in notes:
        out.print(note, markup=False)


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
        _print_json(result)
    else:
        columns = ["mAP", "rank1", "rank5", "rank10", "mINP"]
        _table("scores (%)", ["domain", *columns, "queries"], [
            [name, *(f"{scores[column]:.2f}" for column in columns), str(scores["queries"])] for name, scores in result.items()])  # fmt: skip


@app.command()
def report(run: PathArgument, output: Annotated[Path | None, typer.Option("--output", "-o", help="By default RUN/report.html.")] = None) -> None:
    """Write an HTML page with a run's score matrix, curves and costs."""
    from reid.report import write_report
    from reid.run import Run

    target = output or run / "report.html"
    write_report(Run.open(run), target)
    out.print(str(target), markup=False)


@run_app.command("drop-last")
def run_drop_last(run: PathArgument) -> None:
    """Discard the last step, so that the next domain builds on the one before it."""
    from reid.run import Run

    out.print(f"dropped {Run.open(run).drop_last()}", markup=False)


# ---------------------------------------------------------------------------------------------------------------------------------- edge


@app.command()
def export(
    run: PathArgument, bundle: PathArgument, step: Annotated[int, typer.Option(help="Which step; the last by default.")] = -1, as_json: Json = False,
) -> None:  # fmt: skip
    """Export a step as ONNX, checked against torch on real crops, with golden embeddings and a card."""
    from deploy.export import export_run
    from reid.run import Run

    made = export_run(Run.open(run), bundle, step=step)
    if as_json:
        _print_json(made.manifest)
    else:
        parity = made.manifest["parity"]
        out.print(f"{bundle}: graph and model agree, smallest cosine {min(parity.values()):.6f} over batches {', '.join(parity)}", markup=False)


@gallery_app.command("add")
def gallery_add(
    gallery: PathArgument, source: Annotated[Path, typer.Argument(help="A domain, a folder of images, or a CSV with path,camera[,time,label].")],
    bundle: Bundle = None, camera: Annotated[str | None, typer.Option(help="Camera of a plain folder's images.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a domain; gallery by default.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Keep a domain's identities as labels.")] = False,
    provider: Provider = "cpu", as_json: Json = False,
) -> None:  # fmt: skip
    """Embed images and put them into a gallery; a missing one is made and remembers its bundle."""
    from deploy import Encoder
    from deploy.gallery import open_or_create
    from deploy.sources import fill, read_sources

    sources = read_sources(source, camera=camera, split=split, labels=labels)
    with open_or_create(gallery, bundle) as store:
        encoder = Encoder.load(bundle or store.bundle, provider=provider)
        progress = _progress()
        with progress.task(f"adding {source.name}", len(sources)) as tick:
            filled = fill(store, encoder, sources, progress=tick.advance)
        total = len(store)
    if as_json:
        _print_json({"added": filled.added, "known": filled.known, "skipped": [list(item) for item in filled.skipped], "total": total})
    else:
        out.print(f"added {filled.added}, already there {filled.known}, skipped {len(filled.skipped)}; the gallery holds {total}", markup=False)
        for path, reason in filled.skipped:
            out.print(f"skipped {path}: {reason}", markup=False)


@gallery_app.command("info")
def gallery_info(gallery: PathArgument, as_json: Json = False) -> None:
    """Say what a gallery holds."""
    from deploy import Gallery

    with Gallery.open(gallery) as store:
        info = store.info()
    if as_json:
        _print_json(info)
    else:
        for name, value in info.items():
            out.print(f"{name}: {value}", markup=False)


@gallery_app.command("verify")
def gallery_verify(gallery: PathArgument) -> None:
    """Check a gallery's files and rebuild what can be rebuilt."""
    from deploy import Gallery

    with Gallery.open(gallery) as store:
        for text in store.verify():
            out.print(text, markup=False)


@gallery_app.command("forget")
def gallery_forget(gallery: PathArgument, ids: Annotated[list[int], typer.Argument(help="Ids as reid query shows them.")]) -> None:
    """Erase entries, bytes and all."""
    from deploy import Gallery

    with Gallery.open(gallery) as store:
        out.print(f"forgot {store.forget(ids)}", markup=False)


@app.command()
def query(
    gallery: PathArgument, images: Annotated[list[Path], typer.Argument(help="One or more images of a person.")],
    top: Annotated[int, typer.Option(help="How many matches.")] = 10,
    camera: Annotated[str | None, typer.Option(help="Only this camera.")] = None,
    after: Annotated[str | None, typer.Option(help="Only from this time on (ISO 8601 with zone).")] = None,
    before: Annotated[str | None, typer.Option(help="Only before this time.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw query and matches side by side into this PNG or JPEG.")] = None,
    bundle: Bundle = None, provider: Provider = "cpu", as_json: Json = False,
) -> None:  # fmt: skip
    """Find a person by image: which of my cameras has seen them, and when."""
    from deploy import Encoder, Gallery
    from deploy.picture import draw_matches, stack, write_picture
    from domains.crops import read_crop

    crops = [read_crop(path) for path in images]
    with Gallery.open(gallery) as store:
        encoder = Encoder.load(bundle or store.bundle, provider=provider)
        found = store.search(encoder(crops), k=top, camera=camera, after=after, before=before)
    if picture is not None:
        write_picture(picture, stack([draw_matches(crop, matches) for crop, matches in zip(crops, found, strict=True)]))
    if as_json:
        shown = [[match.to_dict() for match in matches] for matches in found]
        _print_json(shown[0] if len(images) == 1 else shown)
        return
    for path, matches in zip(images, found, strict=True):
        rows = [
            [str(match.rank), f"{match.score:.3f}", match.camera, match.time or "–", match.label or "–", match.source, str(match.id)]
            for match in matches
        ]
        _table(str(path), ["rank", "score", "camera", "time", "label", "source", "id"], rows)


# ---------------------------------------------------------------------------------------------------------------------------------- whole


@app.command()
def demo(output: Annotated[Path, typer.Option("--output", "-o", help="Folder that everything is written to.")] = Path("demo")) -> None:
    """Show the whole story on drawn people, in minutes on a CPU: learn three domains, export, fill a gallery, find a person, report."""
    from reid.demo import run_demo

    run_demo(output, _progress(), out)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this installation: packages, engines, and whether another distribution has taken our package names."""
    from reid.doctor import examine

    findings = examine()
    if as_json:
        _print_json([finding.to_dict() for finding in findings])
    else:
        _table("reid doctor", ["what", "found", ""], [[item.what, item.found, "ok" if item.ok else item.remedy] for item in findings])
    if not all(finding.ok for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    main()
