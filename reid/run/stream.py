"""A sequence of domains learned in one run, every domain scored after every step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import domains
from domains.domain import Domain
from domains.errors import UsageError
from reid.config import Config, Method, Stream
from reid.progress import Progress
from reid.run.checks import check_names, check_step
from reid.run.consent import chosen_method
from reid.run.run import Run
from reid.run.sealed import Sealed


def open_stream(stream: Stream) -> tuple[list[Domain], list[Domain]]:
    """Open the domains to learn and those that are only scored; raises DataError."""
    root = Path(stream.root)
    learned = [domains.open(root / path) for path in stream.domains]
    return learned, [domains.open(root / entry.path, same_camera=entry.same_camera) for entry in stream.unseen]


def check_stream(
    learned: list[Domain], method: Method, config: Config, *, done: Sequence[str], allow_code: Collection[str]
) -> None:
    """Check each step that is still to be learned, without any network; raises what :func:`check_step` raises."""
    so_far = list(done)
    for part in _parts(learned, method):
        if part[0].name not in done:
            check_step(part, method, config, learned=so_far, allow_code=allow_code)
            so_far += [member.name for member in part]


def _parts(learned: list[Domain], method: Method) -> list[list[Domain]]:
    """Return what each step learns."""
    return [learned] if method.needs_all_images else [[domain] for domain in learned]


def in_proposed_order(run: Run, learned: list[Domain], *, progress: Progress | None = None) -> list[Domain]:
    """Put the domains that a run has learned first, in that order, then the others as proposed.

    The proposal is that of :func:`reid.run.relate.order_domains`.

    Raises:
        UsageError: a learned domain is not among these and no longer at its old path.
    """
    from reid.run.relate import order_domains

    known = {domain.name: domain for domain in learned} | {
        name: domain for name, domain in run.known_domains().items() if name in run.learned
    }
    if gone := [name for name in run.learned if name not in known]:
        raise UsageError(
            f"{', '.join(gone)} was learned, but is neither in the stream nor at its old path; add it to the stream, "
            "or learn the new sites one by one"
        )
    done = [known[name] for name in run.learned]
    left = [domain for domain in learned if domain.name not in run.learned]
    return done + (order_domains(run, left, progress=progress)[0] if len(left) > 1 else left)


def learn_stream(
    run: Run,
    learned: list[Domain],
    unseen: Iterable[Domain] = (),
    *,
    method: str | Method | None = None,
    config: Config | None = None,
    allow_code: Collection[str] | None = None,
    progress: Progress | None = None,
    after: Callable[[Sealed], None] | None = None,
) -> list[str]:
    """Learn the domains that are not learned yet, in order, and score all before the first step and after each.

    Args:
        run: opened or new; what it has learned must be the beginning of this sequence.
        learned: the sequence.
        unseen: domains that are only scored.
        method: as for :meth:`reid.run.Run.learn`.
        config: settings of the steps.
        allow_code: as for :meth:`reid.run.Run.learn`.
        progress: where to show progress.
        after: called with each new step once it is scored.

    Returns:
        A line for each domain that could not be scored.
    """
    settings = config or run.config
    chosen, allowed = chosen_method(method or run.own_method(settings), settings, run.config.method, allow_code)
    everyone = [*learned, *unseen]
    check_names(everyone)
    names = [domain.name for domain in everyone]
    done = run.learned
    if done != names[: len(done)] or len(done) > len(learned):
        raise UsageError(
            f"{run.folder} has learned {', '.join(done)}, which is not how this stream begins; use another run"
        )
    check_stream(learned, chosen, config or run.config, done=done, allow_code=allowed)
    notes = run.fill_scores(everyone, progress=progress)
    for part in _parts(learned, chosen):
        if part[0].name in done:
            continue
        sealed = run.learn(part, method=chosen, config=config, allow_code=allowed, progress=progress)
        notes += run.fill_scores(everyone, progress=progress)
        if after:
            after(sealed)
    return list(dict.fromkeys(notes))
