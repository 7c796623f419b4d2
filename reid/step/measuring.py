"""Measuring a site at the end of its step: the statistics that its own metric is made of (:mod:`prototypes.metric`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from domains.arrays import Float32s
from domains.errors import ConfigError
from prototypes.metric import PAIRS, RANK, SiteStatistics, pairs_of_crops
from reid.batches.augment import Augment
from reid.config import Entry, nearest
from reid.network.embedding import evaluating
from reid.randomness import torch_generator
from reid.step.fusion import check_parameters
from reid.terms.survey import Survey
from reid.terms.term import Step

WITHIN = "within_person"
COLLAPSED = 0.02
"""Where a train person's crops differ by less than this, relative to how all crops differ, the network has learned them
by heart, and their differences say nothing of people it has not seen.
"""


def check_metric(entries: tuple[Entry, ...]) -> None:
    """Raise ConfigError before any training if a part of the metric is unknown or its parameters are wrong."""
    for entry in entries:
        ((name, parameters),) = entry.items()
        if name != WITHIN:
            raise ConfigError(f"unknown metric {name!r}{nearest(name, [WITHIN])}")
        check_parameters(f"metric {name}", within_person, parameters)
    if len(entries) > 1:
        raise ConfigError(f"metric {WITHIN} is listed {len(entries)} times; remove the rest")


def measured(
    step: Step, entries: tuple[Entry, ...], figures: dict[str, float]
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Measure a site with the step's finished model.

    Args:
        step: the step, whose model is M_t.
        entries: the method's ``metric`` list.
        figures: numbers for the step's card are added to these.

    Returns:
        The arrays that the memory keeps, and a line where there is something that the user has to know.
    """
    for entry in entries:
        site, about, why = within_person(step, **entry[WITHIN])
        figures |= about
        if site is None:
            return {}, (f"the site gets no metric of its own: {why}",)
        return {name: torch.from_numpy(array) for name, array in site.to_arrays().items()}, ((why,) if why else ())
    return {}, ()


def within_person(
    step: Step, *, rank: int = RANK, pairs: int = PAIRS
) -> tuple[SiteStatistics | None, Mapping[str, float], str]:
    """Measure how crops of the same person differ: from camera to camera where a person was seen by several.

    Where the network tells train people apart so well that their crops hardly differ, the crops are augmented first.

    Args:
        step: the step.
        rank: number of eigenvectors that are kept.
        pairs: number of pairs of crops that one person adds at most.

    Returns:
        The statistics, or None; figures for the card; and a line that says what was done instead, or why there is None.
    """
    survey, model, note = step.survey, step.model, ""
    if survey is None:
        raise ValueError("measuring a site needs a survey of its crops, and the step has none")
    chosen = pairs_of_crops(survey.labels, survey.cameras, limit=pairs, seed=step.config.seed)
    if not len(chosen):
        return None, {"metric.pairs": 0.0}, "no person has two crops"
    embeddings = survey.embeddings(model)
    differences = embeddings[chosen[:, 0]] - embeddings[chosen[:, 1]]
    everyone = 2 * float(embeddings.var(0, dtype=np.float64).sum())
    ratio = float(np.square(differences, dtype=np.float64).sum(1).mean()) / max(everyone, 1e-12)
    if ratio < COLLAPSED:
        note = "the network knows the train people by heart, so the site's metric comes from augmented crops"
        changed = _augmented(step, survey)
        differences = changed[chosen[:, 0]] - changed[chosen[:, 1]]
    about = {"metric.pairs": float(len(chosen)), "metric.within": ratio}
    try:
        people = len(np.unique(survey.labels))
        return SiteStatistics.of(embeddings, differences, people, rank=rank), about, note
    except ValueError as error:
        return None, about, str(error)


def _augmented(step: Step, survey: Survey) -> Float32s:
    """Embeddings ``[N, D]`` of the survey's crops under the run's augmentation."""
    augment = Augment(step.config.augment, step.model.normalise.fill)
    generator, parts = torch_generator(step.config.seed, step.index, "metric"), list[NDArray[np.float32]]()
    with evaluating(step.model):
        for crops, _ in survey.batches():
            parts.append(step.model.embed(augment(crops, generator)).cpu().numpy())
    return np.concatenate(parts)
