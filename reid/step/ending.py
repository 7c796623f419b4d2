"""The end of a step, its parts in the order in which each builds on the one before.

Fuse → BatchNorm on the step's crops → go back if people kept out of training are worse off → fit the transport → carry
older prototypes through it → this domain's memory → its metric → align the classifier.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.arrays import Float32s
from domains.errors import ConfigError
from prototypes.memory import Memory
from prototypes.prototype import DistributionPrototypes
from prototypes.renewal import renewed
from prototypes.transport import KINDS, Transport
from reid.config import Entry, Method, nearest
from reid.network.checkpoint import State
from reid.network.model import ReidModel
from reid.step.fusion import Fusing, applied, blend, check_fusions, check_parameters, fuse
from reid.step.measuring import check_metric, measured
from reid.step.probe import TransportSettings, learn_transport
from reid.step.repair import AFTER, BEFORE, check_repairs
from reid.terms import Step, Term
from reid.terms.survey import Survey

FISHER_BATCHES, FISHER_BATCH = 16, 32


@dataclass(frozen=True)
class Ended:
    """The results of a step besides its model.

    Attributes:
        memory: what its terms keep of the domain, by ``kind.name``.
        transport: the map from the previous feature space, if the method fits one.
        kept: further weights that its terms and its fusion need at the next step, by name.
        figures: numbers for the step's card.
        notes: lines for the user and the card.
    """

    memory: dict[str, Tensor]
    transport: Transport | None
    kept: dict[str, State]
    figures: dict[str, float]
    notes: tuple[str, ...] = ()


def check_parts(method: Method) -> None:
    """Raise ConfigError before any training if a fusion, repair, transport or metric is unknown, or its parameters are
    wrong.
    """
    check_fusions(method.fusion)
    check_repairs(method.repair)
    check_metric(method.metric)
    if len(method.transport) > 1:
        raise ConfigError(
            f"method {method.name}: it lists {len(method.transport)} transports, and a step has one; remove the rest"
        )
    for kind, parameters in (item for entry in method.transport for item in entry.items()):
        if kind not in KINDS:
            raise ConfigError(f"unknown transport {kind!r}{nearest(kind, KINDS)}")
        check_parameters(f"transport {kind}", TransportSettings, parameters, of=("shrinkage", "recoloured", "drawn"))


def end_step(
    step: Step, terms: Mapping[str, Term], method: Method, old: ReidModel, *, space: str, rows: list[slice]
) -> Ended:
    """Finish a trained step; ``step.model`` becomes M_t.

    Args:
        step: the trained step.
        terms: those that had a part in it.
        method: its fusion, repair, transport and metric are applied; in the first step, only fusions with a
            ``first_weight``.
        old: M_{t-1}.
        space: its feature space.
        rows: classifier rows of each of ``step.memories``.
    """
    survey, model = _survey_of(step), step.model
    figures: dict[str, float] = {}
    keep: dict[str, State] = {
        name: dict(state) for term in terms.values() for name, state in term.weights_for_next(step).items()
    }
    first = step.index == 1
    fusions = applied(method.fusion, first=first, random=step.config.model.weights == "none")
    if fusions:
        old.to(step.runtime.device)
        scratch = _Scratch(step, survey)
        fusing = Fusing(_copy(model), _copy(old), scratch.embeddings, survey.labels, scratch.fisher, first, step.kept)
        model.load_state_dict(fuse(fusions, fusing))
        figures |= {f"fusion.{name}": value for name, value in fusing.figures.items()}
        keep |= fusing.keep
    model.eval()
    for name, parameters in _entries(method.repair):
        if name in BEFORE and (fusions or not first):
            BEFORE[name](step, survey, **parameters)
    notes = _judged(step, old, figures)
    transport = None
    for kind, parameters in _entries(method.transport):
        spec, seed = step.config.crop.spec(), step.config.seed
        target = model.feature_space(spec)
        old.to(step.runtime.device)
        settings = TransportSettings(kind=kind, **parameters)  # type: ignore[arg-type]
        transport = learn_transport(survey, old, model, spec, settings, source=space, target=target, seed=seed)
        figures |= {"transport.cosine": transport.cosine[0], "transport.cosine_without": transport.cosine[1]}
    memory = {f"{term.keeps}.{key}": value for term in terms.values() for key, value in term.end(step).items()}
    model.eval()
    arrays, remarks = measured(step, method.metric, figures)
    memory |= arrays
    for name, parameters in _entries(method.repair):
        if name in AFTER:
            gaussians = [
                (where, carried)
                for where, old_memory in zip(rows, step.memories, strict=True)
                if (carried := _carried(old_memory, transport))
            ]
            own = DistributionPrototypes.from_arrays({key: value.cpu().numpy() for key, value in memory.items()})
            if own is not None:
                gaussians.append((slice(step.old_classes, model.classes), own))
            if gaussians:
                AFTER[name](step, gaussians, **parameters)
    return Ended(memory, transport, keep, figures, (*notes, *remarks))


def _judged(step: Step, old: ReidModel, figures: dict[str, float]) -> tuple[str, ...]:
    """Let the people who were kept out of training judge it; where they are found less well, go back to M_{t-1}."""
    if step.judge is None:
        return ()
    model = step.model
    before, after = step.judge(old.to(step.runtime.device)), step.judge(model)
    figures |= {"held_out.before": before, "held_out.after": after}
    if after >= before:
        return ()
    model.load_state_dict(blend(_copy(model), _copy(old), 0.0))
    return (
        f"training made {step.domain.name} worse for the people kept out of it (mAP {before:.1f} → {after:.1f}), so "
        "the network stays as it was",
    )


def _carried(memory: Memory, transport: Transport | None) -> DistributionPrototypes | None:
    return DistributionPrototypes.from_arrays(renewed(memory, [transport] if transport else []).arrays)


def _entries(entries: tuple[Entry, ...]) -> list[tuple[str, dict[str, object]]]:
    return [item for entry in entries for item in entry.items()]


def _survey_of(step: Step) -> Survey:
    if step.survey is None:
        raise ValueError("ending a step needs a survey of its crops, and the step has none")
    return step.survey


def _copy(model: ReidModel) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class _Scratch:
    """Evaluates any weights on the step's crops, in the step's network, whose own weights are restored afterwards."""

    def __init__(self, step: Step, survey: Survey) -> None:
        self.step = step
        self.survey = survey

    def embeddings(self, state: State) -> Float32s:
        model = self.step.model
        own = _copy(model)
        model.load_state_dict(own | {name: value for name, value in state.items() if value.shape == own[name].shape})
        try:
            return self.survey.embeddings(model)
        finally:
            model.load_state_dict(own)

    def fisher(self, state: State) -> State:
        """Mean over some batches of the squared gradient of the batch's mean cross-entropy, per parameter of the
        embedding path.

        One backward pass per batch, not per crop, so it is not the empirical Fisher information itself; see
        :class:`reid.step.fusion.Fusing`.
        """
        model = self.step.model
        own = _copy(model)
        model.load_state_dict(own | {name: value for name, value in state.items() if value.shape == own[name].shape})
        model.eval()
        importance = {name: torch.zeros_like(value) for name, value in model.named_parameters() if value.requires_grad}
        try:
            for crops, labels in itertools.islice(
                self.survey.shuffled(self.step.config.seed).batches(FISHER_BATCH), FISHER_BATCHES
            ):
                model.zero_grad(set_to_none=True)
                logits = model(crops).logits[:, self.step.old_classes :]
                F.cross_entropy(logits, torch.from_numpy(labels).to(logits.device)).backward()  # type: ignore[no-untyped-call]
                for name, value in model.named_parameters():
                    if value.grad is not None:
                        importance[name] += value.grad.square() / FISHER_BATCHES
        finally:
            model.zero_grad(set_to_none=True)
            model.load_state_dict(own)
        return importance
