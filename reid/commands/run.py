"""``reid run``: show what a run has learned, or undo its last step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from reid.commands.options import Json, PathArgument, print_json, say, table

if TYPE_CHECKING:
    from reid.run import Run
    from reid.run.sealed import Sealed

run_app = typer.Typer(no_args_is_help=True, help="Show a run, or undo its last step.")


@run_app.command("show")
def run_show(run: PathArgument, as_json: Json = False) -> None:
    """Show what a run has learned: every model on every domain, and what each step took and keeps."""
    from reid.run import Run

    opened = Run.open(run)
    steps, unfinished = [_facts(step) for step in opened.steps], opened.unfinished
    if as_json:
        cells = {f"{row}/{name}": dict(cell.scores) for (row, name), cell in opened.scores.cells.items()}
        print_json(
            {
                "run": opened.identity,
                "steps": steps,
                "unfinished": unfinished,
                "scores": cells,
                "summary": opened.scores.summary(),
            }
        )
        return
    model, crop = opened.config.model, opened.config.crop
    learned = ", ".join(opened.learned) or "nothing"
    say(
        f"{opened.folder}: {model.backbone}, crops of {crop.height}×{crop.width}, {model.dim} dimensions; learned "
        f"{learned}"
    )
    show_scores(opened)
    costs = [
        [
            step["step"],
            step["method"],
            str(step["crops"]),
            str(step["identities"]),
            f"{step['seconds']:.0f}",
            f"{step['kept'] / 1024:,.0f}",
        ]
        for step in steps[1:]
    ]
    if costs:
        table(
            "what each step took, and keeps besides its model",
            ["step", "method", "crops", "identities", "seconds", "KiB kept"],
            costs,
        )
    for name in unfinished:
        say(f"{name} was started but is not finished: run its command again to continue")


@run_app.command("drop-last")
def run_drop_last(run: PathArgument) -> None:
    """Discard the last step, so that the next domain builds on the one before it."""
    from reid.run import Run

    say(f"dropped {Run.open(run).drop_last()}")


def show_scores(run: Run) -> None:
    """Show every model on every domain, and what that says about the run as a whole."""
    from reid.run.report import MEASURES

    scores, summary = run.scores, run.scores.summary()
    names = list(scores.scored)
    if not names:
        return
    averages = ["seen", "unseen"] if scores.unseen() else ["seen"]
    rows = []
    for row, step in zip(summary["rows"], run.steps, strict=True):
        values = [*(scores.value(row["step"], name) for name in names), *(row[group]["mAP"] for group in averages)]
        rows.append([step.folder.name, *map(_number, values)])
    table(
        "each model on each domain (mAP, %)",
        ["after", *names, *(f"{group.capitalize()}-Avg" for group in averages)],
        rows,
    )
    for name, _, _ in MEASURES:
        value, interval = summary[name]["mAP"], summary[name]["interval"]
        if value is not None:
            spread = f"  (95 % interval, queries resampled: {interval[0]:.1f} to {interval[1]:.1f})" if interval else ""
            say(f"{name.replace('_', ' ')}: {value:.1f}{spread}")


def _facts(step: Sealed) -> dict[str, Any]:
    """Summarise a step's card; the bytes kept are its memory, transport and further weights."""
    card = step.card
    train, sizes = card.get("train", {}), card.get("bytes", {})
    return {
        "step": step.folder.name,
        "id": card["id"],
        "feature_space": step.feature_space,
        "learned": list(step.learned),
        "method": card["method"]["name"] if step.index else None,
        "crops": sum(entry["crops"]["train"] for entry in card["domains"]),
        "identities": len(card["classes"]),
        "seconds": train.get("seconds", 0.0) + train.get("seconds_ending", 0.0),
        "kept": sum(sizes.get(name, 0) for name in ("memory", "transport", "kept")),
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
