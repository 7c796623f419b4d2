"""A run as one HTML page: what it can do, what each step did and what it cost.

A single file without scripts or network access, in light and dark.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from domains.artefact import code_version, parse_json, read_bytes, write_atomic
from domains.crops import Crop
from domains.errors import ArtefactError
from domains.text import json_text, shown
from reid.run import one_gallery
from reid.run.one_gallery import OneGallery
from reid.run.sealed import Sealed
from reid.run.steps import Steps

MEASURES = (
    ("plasticity", "Plasticity", "how well a domain scored right after it was learned"),
    (
        "forgetting_since_learned",
        "Forgetting",
        "mean drop from the best score since learned to the last one, for domains learned before the last step",
    ),
    (
        "forgetting_all_rows",
        "Forgetting, all rows",
        "the same, from the best score of any step, even before the domain was learned",
    ),
    (
        "backward_transfer",
        "Backward transfer",
        "how later steps changed a domain's score since it was learned; negative is a loss",
    ),
)
HUES = ("#3b6fb6", "#c2571a", "#2a8a5b", "#8a4fa3", "#b03060", "#7a6a1f", "#1f8a99", "#666f7a")
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Section:
    """An additional section of the page; ``html`` is already escaped."""

    title: str
    html: str


def picture_section(title: str, caption: str, picture: Crop) -> Section:
    """Embed a picture (uint8 RGB) as PNG; for drawn people only, as a report is easily passed on."""
    data = base64.b64encode(cv2.imencode(".png", picture[..., ::-1])[1].tobytes()).decode()
    return Section(
        title, f'<img alt="{_text(caption)}" src="data:image/png;base64,{data}"><p class="soft">{_text(caption)}</p>'
    )


def write_report(run: Steps, path: Path, *, extra: Sequence[Section] = ()) -> None:
    """Write the page for a run; ``extra`` sections come after the figures."""
    summary, steps = run.scores.summary(), run.steps
    methods = ", ".join(dict.fromkeys(step.card["method"]["name"] for step in steps[1:])) or "nothing learned yet"
    crop = run.config.crop
    head = (
        f"{run.config.model.backbone.rsplit('/', 1)[-1]} · crops {crop.height}×{crop.width} · method {methods} · "
        f"{code_version()}"
    )
    settings = _text(json_text(run.config.model_dump(mode="json"), indent=1), lines=True)
    sections = [
        Section("Summary", _headlines(summary)),
        *extra,
        Section("Every model on every domain", _matrix(run, summary)),
        *_together(run, steps),
        Section("mAP over the steps", _curves(run)),
        Section(
            "What each step did",
            "".join(_effect(run, step) for step in steps[1:]) or "<p>Nothing has been learned yet.</p>",
        ),
        Section("Training", f'<div class="small">{"".join(_losses(step) for step in steps[1:])}</div>'),
        Section("What it cost and what it keeps", _costs(steps[1:])),
        Section("Limits", _limits()),
        Section(
            "Settings",
            f"<details><summary>all settings</summary><pre>{settings}</pre></details>",
        ),
    ]
    body = "".join(f"<section><h2>{_text(section.title)}</h2>{section.html}</section>" for section in sections)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{_text(run.folder.name)}: lifelong re-identification</title><style>{STYLE.read_text("utf-8")}</style></head>
<body><h1>{_text(run.folder.resolve().name)}</h1><p class="soft">{_text(head)}</p>{body}</body></html>"""
    write_atomic(path, page.encode(), private=False)  # meant to be passed on


def _text(value: Any, *, lines: bool = False) -> str:
    return html.escape(shown(str(value), lines=lines))


def _number(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else f"{value:+.1f}" if signed else f"{value:.1f}"


def _change(value: float | None) -> str:
    kind = "" if value is None or abs(value) < 0.05 else ' class="up"' if value > 0 else ' class="down"'
    return f"<td{kind}>{_number(value, signed=True)}</td>"


def _headlines(summary: dict[str, Any]) -> str:
    last = summary["rows"][-1]
    figures = [
        ("Seen-Avg", last["seen"], "mean mAP of the last model over all learned domains"),
        ("Unseen-Avg", last["unseen"], "the same over domains it never learned"),
        *((title, summary[name], meaning) for name, title, meaning in MEASURES),
    ]
    cards = "".join(
        f"<div>{_text(title)}<b>{_number(figure['mAP'])}</b>{_interval(figure['interval'])}<br><small>{_text(meaning)}</small></div>"
        for title, figure, meaning in figures
        if figure["mAP"] is not None
    )
    note = (
        "mAP in percent. Intervals are 95 %, from resampled queries; they show the uncertainty of the test set, not "
        "the variation between training runs."
    )
    return f'<div class="figures">{cards}</div><p class="soft">{note}</p>'


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"<small>{bounds[0]:.1f} to {bounds[1]:.1f}</small>"


def _matrix(run: Steps, summary: dict[str, Any]) -> str:
    names = list(run.scores.scored)
    header = "".join(f"<th>{_text(name)}</th>" for name in names) + "<th>Seen-Avg</th><th>Unseen-Avg</th>"
    rows = []
    for row in summary["rows"]:
        cells = "".join(_heat(run, row["step"], name) for name in names)
        cells += "".join(f"<td><b>{_number(row[kind]['mAP'])}</b></td>" for kind in ("seen", "unseen"))
        after = " + ".join(row["learned"]) or ("erased" if row["step"] else "untrained start")
        rows.append(f"<tr><td>{_text(after)}</td>{cells}</tr>")
    legend = (
        "Rows: the model after each step. mAP, with rank-1 below it. Framed: just learned. Italic: not learned yet, or "
        "never."
    )
    return (
        f'<div class="scroll"><table class="heat"><tr><th>after</th>{header}</tr>{"".join(rows)}</table></div><p '
        f'class="soft">{legend}</p>'
    )


def _heat(run: Steps, row: int, name: str) -> str:
    scores = run.scores
    value, rank1 = scores.value(row, name), scores.value(row, name, "rank1")
    if value is None:
        return '<td class="v">–</td>'
    return _shaded(value, rank1, "own" if name in scores.learned[row] else "" if name in scores.seen(row) else "later")


def _shaded(value: float, rank1: float | None, kind: str = "") -> str:
    style = f"background:rgba(var(--cell),{0.04 + 0.0036 * value:.3f})"
    return f'<td class="v {kind}" style="{style}">{value:.1f}<br><small>{_number(rank1)}</small></td>'


def _together(run: Steps, steps: Sequence[Sealed]) -> Iterator[Section]:
    """One gallery for all sites, as far as the run keeps such scores: those of the latest step that has some."""
    title, again = "One gallery for all sites", "reid evaluate RUN SITE… --union"
    try:
        kept = one_gallery.read(run.folder)
    except ArtefactError:
        yield Section(title, f"<p>{one_gallery.FILE} can't be read; {again} writes it again.</p>")
        return
    measured = [step for step in steps if step.card["id"] in kept]
    if kept and not measured:
        yield Section(title, f"<p>What was measured is of steps that are gone; {again} measures anew.</p>")
    if not measured:
        return
    step = measured[-1]
    found, start = kept[step.card["id"]], kept.get(steps[0].card["id"]) if step.index else None
    notes = []
    if step.index < len(steps) - 1:
        notes.append(f"More was learned since; {again} measures the last step.")
    if start is not None and start.sites != found.sites:
        start = None
    changed = [name for name, site in found.sites.items() if _differs(site, run.scores.scored.get(name))]
    if changed:
        notes.append(f"The test crops or the camera rule are others by now: {', '.join(changed)}.")
    yield Section(title, _one_gallery(found, start, step.folder.name, notes))


def _differs(site: Mapping[str, Any], scored: Mapping[str, Any] | None) -> bool:
    """Whether the matrix knows other data or another rule under a site's name."""
    return scored is not None and any(scored.get(key, value) != value for key, value in site.items())


def _one_gallery(found: OneGallery, start: OneGallery | None, step: str, notes: Sequence[str]) -> str:
    columns = [("start: cosine", start, "cosine")] if start else []
    columns += [(metric, found, metric) for metric in one_gallery.METRICS if metric in found.scores]
    header = "".join(f"<th>{name}</th>" for name, _, _ in columns)

    def row(title: str, site: str | None) -> str:
        cells = (
            _shaded(one.value(metric, "mAP", site), one.value(metric, "rank1", site)) for _, one, metric in columns
        )
        return f"<tr><td>{title}</td>{''.join(cells)}</tr>"

    body = "".join(row(_text(name), name) for name in found.sites) + row("<b>mean</b>", None)
    legend = (
        f"The queries of each site, asked of the crops of all {len(found.sites)} by {step}. mAP, with rank-1 below it. "
        "Cosine: without a metric. Pooled: one metric for everybody. Own: that of the query's site. Mixed: mostly its "
        "own, with something of all. Where a site has none, own and mixed are the pooled one."
    )
    return (
        f'<div class="scroll"><table class="heat"><tr><th>queries of</th>{header}</tr>{body}</table></div>'
        f'<p class="soft">{_text(" ".join([legend, *notes]))}</p>'
    )


def _curves(run: Steps) -> str:
    scores, rows = run.scores, len(run.scores.learned)
    if rows < 2:
        return "<p>Nothing has been learned yet.</p>"
    width, height, left, top = 760, 300, 40, 12
    right = width - 150

    def position(row: int, value: float) -> tuple[float, float]:
        return left + (right - left) * row / (rows - 1), top + (height - top - 34) * (1 - value / 100)

    parts = []
    for mark in (0, 25, 50, 75, 100):
        y = position(0, mark)[1]
        parts.append(
            f'<line class="axis" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/><text x="4" '
            f'y="{y + 4:.1f}">{mark}</text>'
        )
    for row, names in enumerate(scores.learned):
        label = _text(("+".join(names) or ("erased" if row else "start"))[:14])
        parts.append(f'<text x="{position(row, 0)[0]:.1f}" y="{height - 12}" text-anchor="middle">{label}</text>')
    ends: list[tuple[float, str, str]] = []
    for number, name in enumerate(scores.scored):
        points = [(row, value) for row in range(rows) if (value := scores.value(row, name)) is not None]
        if not points:
            continue
        hue = HUES[number % len(HUES)]
        dash = ' stroke-dasharray="5 4"' if name in scores.unseen() else ""
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (position(row, value) for row, value in points))
        parts.append(f'<polyline fill="none" stroke="{hue}" stroke-width="2.2"{dash} points="{line}"/>')
        parts += [
            f'<circle cx="{position(*point)[0]:.1f}" cy="{position(*point)[1]:.1f}" r="3" fill="{hue}"/>'
            for point in points
        ]
        ends.append((position(*points[-1])[1], hue, f"{name} {points[-1][1]:.1f}"))
    for y, hue, label in _spread(ends, height - 34):
        parts.append(
            f'<circle cx="{right + 14}" cy="{y:.1f}" r="4" fill="{hue}"/><text x="{right + 23}" '
            f'y="{y + 4:.1f}">{_text(label[:22])}</text>'
        )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="mAP of every domain after each '
        f'step">{"".join(parts)}</svg>'
    )


def _spread(ends: list[tuple[float, str, str]], lowest: float, gap: float = 15) -> Iterator[tuple[float, str, str]]:
    """Move labels apart so that none overlap."""
    placed: list[float] = []
    ordered = sorted(ends)
    for y, _, _ in ordered:
        placed.append(max(y, placed[-1] + gap) if placed else y)
    over = max(0.0, placed[-1] - lowest) if placed else 0.0
    for index in range(len(placed) - 1, -1, -1):
        limit = placed[index + 1] - gap if index + 1 < len(placed) else lowest
        placed[index] = min(placed[index], limit) if over else placed[index]
    for y, (_, hue, label) in zip(placed, ordered, strict=True):
        yield y, hue, label


def _effect(run: Steps, step: Sealed) -> str:
    rows = "".join(
        f"<tr><td>{_text(row['domain'])}</td><td "
        f"class='soft'>{_text(row['role'])}</td><td>{_number(row['before'])}</td><td>{_number(row['after'])}</td>"
        f"{_change(row['change'])}<td>{_number(row['rank1'])}</td></tr>"
        for row in run.scores.effect(step.index)
    )
    header = "<tr><th>domain</th><th></th><th>mAP before</th><th>after</th><th>change</th><th>rank-1</th></tr>"
    return f'<h3>{_text(step.folder.name)}</h3><div class="scroll"><table>{header}{rows}</table></div>'


def _losses(step: Sealed) -> str:
    records = _records(step.folder / "log.jsonl")
    if not records:
        return ""
    width, height = 230, 110
    top = max((max(record.values(), default=0.0) for record in records), default=0.0) or 1.0
    parts, labels = [], []
    for number, name in enumerate(dict.fromkeys(name for record in records for name in record)):
        values = [record[name] for record in records if name in record]  # a term may have no loss in some iterations
        sampled = values[:: max(1, len(values) // 120)]
        points = " ".join(
            f"{width * index / max(1, len(sampled) - 1):.1f},{height - (height - 8) * max(0.0, v) / top:.1f}"
            for index, v in enumerate(sampled)
        )
        hue = HUES[number % len(HUES)]
        parts.append(f'<polyline fill="none" stroke="{hue}" stroke-width="1.5" points="{points}"/>')
        labels.append(f'<span style="color:{hue}">■</span> {_text(name.replace("_", " "))} {values[-1]:.2f}')
    line = f'<line class="axis" x1="0" x2="{width}" y1="{height}" y2="{height}"/>'
    caption = f"<small>{_text(step.folder.name)}<br>{'<br>'.join(labels)}</small>"
    return f'<div><svg viewBox="0 0 {width} {height + 2}">{line}{"".join(parts)}</svg>{caption}</div>'


def _records(path: Path) -> list[dict[str, float]]:
    """Read the losses of each iteration from a step's log, if it has one; raises ArtefactError."""
    if not path.is_file():
        return []
    try:
        lines = read_bytes(path).decode().splitlines()
        losses = [parse_json(line.encode(), path)["losses"] for line in lines]
        records = [{str(name): float(value) for name, value in record.items()} for record in losses]
        if not all(math.isfinite(value) for record in records for value in record.values()):
            raise ValueError("a loss is not finite")
        return records
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(f"{path} is not the log of a step; restore it from a backup") from error


def _costs(steps: list[Sealed]) -> str:
    header = "".join(
        f"<th>{name}</th>"
        for name in (
            "step",
            "crops",
            "identities",
            "seconds",
            "ending",
            "crops/s",
            "waiting",
            "memory",
            "old rows",
            "teachers",
            "fused with",
            "transport",
            "further weights",
        )
    )
    rows, unreadable = [], []
    for step in steps:
        train, stored = step.card["train"], step.card["bytes"]
        sizes = [stored[name] for name in ("memory", "classifier_rows_of_old_identities", "teachers", "fusion_partner")]
        sizes += [stored.get(name, 0) for name in ("transport", "kept")]  # older cards lack them
        crops = sum(entry["crops"]["train"] for entry in step.card["domains"])
        seconds = [f"{value:.0f}" for value in (train["seconds"], train.get("seconds_ending", 0.0))]
        cells = [
            crops,
            len(step.card["classes"]),
            *seconds,
            f"{train['crops_per_second']:.0f}" if train["crops_per_second"] else "–",  # nothing was trained
            f"{100 * train['waiting']:.1f} %" if train["crops_per_second"] else "–",
        ]
        row = "".join(f"<td>{cell}</td>" for cell in [*cells, *map(_size, sizes)])
        rows.append(f"<tr><td>{_text(step.folder.name)}</td>{row}</tr>")
        unreadable += [f"{step.folder.name}: {name}" for name in train["left_out"]]
    broken = (
        f"<p>Images that could not be read and were left out: {_text(', '.join(unreadable))}</p>" if unreadable else ""
    )
    note = (
        "Seconds: training. Ending: seconds for prototypes, fusion, repair, transport, metric and adapter after it. "
        "Waiting: "
        "share of the training time spent waiting for crops. "
        "Memory: what is kept of a domain besides the model. Old rows: classifier rows of earlier identities. Teachers "
        "and the model fused with are read from the previous step and not stored twice. Transport: the map from the "
        "previous feature space. Further weights: models that the fusion keeps for the next step. No image is kept."
    )
    return (
        f'<div class="scroll"><table><tr>{header}</tr>{"".join(rows)}</table></div>{broken}<p class="soft">{note}</p>'
    )


def _size(count: int) -> str:
    for unit, size in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _limits() -> str:
    return (
        "<p>Scores hold for these test sets and say little about another place, season or group of people. A match "
        "says that two pictures look alike; it is a hint for a person to check, never an identification. Embeddings "
        "and galleries of people are personal data, often biometric data: use them only on a legal basis, for a stated "
        "purpose, and no longer than it requires.</p>"
    )
