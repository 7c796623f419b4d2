"""How long a step will take on this machine, before it starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from domains.domain import Domain
from reid.config import Config, Method
from reid.progress import Progress, span
from reid.recipe import CPU, is_recipe
from reid.run.folder import begun
from reid.run.learning import planned
from reid.run.steps import Steps
from reid.step.speed import measure_speed

LONG = 600.0
"""Seconds from which on the user is told how to shorten a step."""

SLOWEST = 0.01
"""Crops a second below which a card's speed is not one."""


def estimate(
    run: Steps,
    domain: Domain,
    method: Method,
    config: Config,
    *,
    later: bool,
    allow_code: Collection[str],
    progress: Progress,
) -> str | None:
    """Say in one line how long training on a domain will take, and where that is long, how to shorten it.

    A run that has learned a domain on this device knows its speed; a new one trains a few batches of drawn people.

    Args:
        run: the run.
        domain: what it will learn.
        method: how; one without terms trains nothing.
        config: the settings of the step.
        later: whether the run has learned a domain before.
        allow_code: terms of one's own that may be imported.
        progress: where to show that it measures.

    Returns:
        The line; None where nothing is trained or an interrupted step goes on, or with ``train.compile``, which takes
        longer to time than a step may take.
    """
    if not method.terms or config.train.compile or begun(run.folder / "steps"):
        return None
    learned = run.steps[1:]
    train = planned([domain], config, later=later)[1].train
    card: Mapping[str, Any] = learned[-1].card["train"] if learned else {}
    if card.get("config", {}).get("device") == config.device and card["crops_per_second"] >= SLOWEST:
        speed = float(card["crops_per_second"])
    else:
        with progress.task("timing a few batches", None):
            speed = measure_speed(config, allow_code=allow_code).crops_per_second
    batch = train.identities * train.instances
    seconds = train.iterations * batch / speed
    line = (
        f"training takes about {span(seconds)} here: {train.iterations:,} batches of {batch} crops, {speed:.0f} crops/s"
    )
    if seconds <= LONG:
        return line
    fewer = int(LONG * speed / batch)
    ways = [f"fewer batches (--set train.iterations={fewer} takes ten minutes)"] if fewer else []
    if config.device == CPU:
        ways.append("a GPU (--device cuda)")
        ways += [] if later or is_recipe(config) else [f"a new run with a smaller network and crops (--config {CPU})"]
    return f"{line}; to shorten it: {', or '.join(ways)}"
