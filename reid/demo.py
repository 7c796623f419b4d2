"""The whole workflow on drawn people: learn three sites, export, calibrate, fill a gallery, find people, report."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from domains.domain import Domain
from domains.errors import ArtefactError, UsageError
from domains.synthetic import make_domain
from reid.config import build_config
from reid.progress import Progress

if TYPE_CHECKING:
    from deploy import Encoder, Thresholds

MARKER = ".reid-demo"
STYLES = ("plaza", "corridor", "station")
UNSEEN = "snow"
PEOPLE = 72
SETTINGS: dict[str, Any] = {
    "method": "default",
    "model": {"backbone": "resnet10t", "weights": "none", "dim": 256},
    "crop": {"height": 64, "width": 32},
    "train": {"iterations": 80, "identities": 16, "instances": 4, "lr": 2e-3},
    "augment": {"erase": 0.0},
}


def run_demo(folder: Path, progress: Progress, out: Console) -> None:
    """Write everything below ``folder``, replacing what an earlier demo wrote.

    Raises:
        UsageError: the folder was not written by a demo.
    """
    began = time.perf_counter()
    _empty(folder)

    def say(text: str) -> None:
        out.print(f"[{time.perf_counter() - began:5.0f} s] {text}", markup=False, soft_wrap=True)

    say(f"drawing {len(STYLES) + 1} camera domains of invented people")
    *learned, unseen = (
        make_domain(folder / "domains" / style, style, identities=PEOPLE, seed=number, size=(128, 64))
        for number, style in enumerate((*STYLES, UNSEEN))
    )
    _learn(folder, learned, unseen, progress, say)
    _match(folder, learned, progress, say)
    say(f"done: open {folder / 'report.html'}")
    command = shlex.join(["reid", "serve", str(folder / "gallery"), "--pictures", str(folder / "domains")])
    say(f"to search this gallery on a page, http://127.0.0.1:8080: {command}")


def _empty(folder: Path) -> None:
    if folder.exists():
        if not (folder / MARKER).is_file():
            raise UsageError(f"{folder} exists and was not written by reid demo; choose another folder with --output")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def _learn(folder: Path, learned: list[Domain], unseen: Domain, progress: Progress, say: Any) -> None:
    from reid.run import Run
    from reid.run.stream import learn_stream

    run = Run.create(folder / "run", build_config(SETTINGS))
    say(f"learning {', '.join(domain.name for domain in learned)} one after the other; {unseen.name} is only scored")

    def after(sealed: Any) -> None:
        row = sealed.index
        changes = ", ".join(
            f"{item['domain']} {item['before']:.1f} → {item['after']:.1f}" for item in run.scores.effect(row)
        )
        say(f"step {row} sealed in {sealed.card['train']['seconds']:.0f} s; mAP: {changes}")

    learn_stream(run, learned, [unseen], progress=progress, after=after)


def _match(folder: Path, learned: list[Domain], progress: Progress, say: Any) -> None:
    from deploy import Encoder
    from deploy.answers.picture import draw_matches, stack, write_picture
    from deploy.answers.thresholds import answer
    from deploy.gallery import open_or_create
    from deploy.gallery.sources import fill, read_sources
    from domains.crops import read_crop
    from reid.export import export_run
    from reid.run import Run
    from reid.run.report import picture_section, write_report

    run = Run.open(folder / "run")
    bundle = export_run(run, folder / "bundle")
    worst = min(bundle.manifest["parity"].values())
    say(f"exported {folder / 'bundle'}; graph and model agree (smallest cosine {worst:.6f})")
    encoder = Encoder.load(folder / "bundle")
    limits = _calibrate(encoder, learned, progress, say)
    pictures, found = [], []
    with open_or_create(folder / "gallery", folder / "bundle") as gallery:
        for domain in learned:
            sources = read_sources(domain.root, labels=True)
            with progress.task(f"filling the gallery from {domain.name}", len(sources)) as tick:
                fill(gallery, encoder, sources, progress=tick.advance)
        say(f"the gallery holds {len(gallery)} embeddings from {len(learned)} sites")
        for domain in learned:
            row = int(np.random.default_rng(0).integers(len(domain.query)))
            crop = read_crop(domain.files(domain.query)[row])
            matches = limits.judge(gallery.search(encoder([crop]), k=6)[0])
            pictures.append(draw_matches(crop, matches, known_label=domain.identities[domain.query.pids[row]]))
            found.append(f"{domain.name}: {answer(matches)}, {matches[0].score:.3f}")
    picture = stack(pictures)
    write_picture(folder / "query.png", picture)
    say(f"searched for one person of each site ({'; '.join(found)}): {folder / 'query.png'}")
    caption = (
        "One query per site against the gallery of all sites; green: the same drawn person. Below each match its rank, "
        f"cosine and verdict: same person from {limits.same:.3f}, unsure from {limits.unsure:.3f}, as calibrated on "
        f"{limits.name}. Best matches: {'; '.join(found)}."
    )
    write_report(run, folder / "report.html", extra=[picture_section("Find a person", caption, picture)])


def _calibrate(encoder: Encoder, learned: list[Domain], progress: Progress, say: Any) -> Thresholds:
    """Calibrate the bundle on every site's test people, and return the strictest site's thresholds, as queries do."""
    from deploy.answers.calibration import calibrate, store
    from deploy.answers.thresholds import Thresholds

    bundle = encoder.bundle
    with progress.task("calibrating", len(learned)) as tick:
        for domain in learned:
            bundle = store(bundle, calibrate(encoder, domain))
            tick.advance(1)
    limits = Thresholds.from_bundle(bundle)
    if limits is None:
        raise ArtefactError(f"{bundle.folder} was calibrated and has no thresholds; run the demo again")
    share = 100 * (limits.fpr or 0)
    say(f"calibrated: same person from a cosine of {limits.same:.3f}, {share:g} % of the strangers of {limits.name}")
    return limits
