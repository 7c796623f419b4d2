"""Adapters written by a hypernetwork from a domain's embedding.

After "Exploiting Task Relationships for Continual Learning Using Transferability-Aware Task Embeddings" (NeurIPS 2025),
with one embedding space and one exported network instead of a known task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from domains.choice import check_choice
from domains.errors import ConfigError
from domains.transferability import h_score, relations
from prototypes.memory import Memory
from reid.config import learning_rate
from reid.network.adapter import Slot, changes, find_slots, has_attention, merge
from reid.network.backbone import Backbone
from reid.network.h_embedding import h_embedding
from reid.network.hypernetwork import CHUNK, EMBEDDING_DIM, HIDDEN, Guide, HyperNetwork, drift
from reid.network.model import ReidModel
from reid.randomness import torch_generator, torch_seed
from reid.terms.survey import Survey
from reid.terms.term import Batch, Step, Term, check_known

KIND, BASE = "hypernetwork", "base"
SCORED = 1000
"""Number of crops that H-scores are computed on, as published."""

Use = Literal["merged", "averaged", "routed", "beside"]
Guidance = Literal["h", "random", "none"]


@dataclass(frozen=True)
class AdapterSettings:
    """What is adapted and how, and how strongly older adapters are preserved.

    Attributes:
        rank: rank of the low-rank changes.
        where: what is adapted, see :data:`reid.network.adapter.WHERE`; by default a ViT's attention, or a CNN's
            convolutions and BatchNorms.
        frozen: whether the backbone below the adapter is frozen; always so unless the adapter is merged.
        beta: β_c, how strongly older adapters are preserved.
        look_ahead: compute L_c after the step that the other losses alone would take, as in von Oswald et al.
        guide: what the new embedding is pulled towards: ``h`` its place by transferability, ``random`` a random place
            for comparison, ``none`` nothing.
        gain: factor on what the hypernetwork writes, and so on the rate at which adapters learn.
        share: fraction of a ``beside`` adapter that is applied when its site is served. Half of it keeps most of the
            gain, as half of a step does in fusion (Wortsman et al., CVPR 2022).
        chunk: number of weights written at a time.
        hidden: width of the hypernetwork's hidden layer.
    """

    rank: int = 4
    where: Sequence[str] = ()
    frozen: bool = True
    beta: float = 0.05
    look_ahead: bool = False
    guide: Guidance = "none"
    gain: float = 1.0
    share: float = 1.0
    chunk: int = CHUNK
    hidden: int = HIDDEN

    def __post_init__(self) -> None:
        """Check the values; raises ValueError."""
        check_choice("guide", self.guide, Guidance, ValueError)
        for name in ("beta", "gain", "share"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of 0 or more, got {value!r}")
        for name in ("rank", "chunk", "hidden"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")


class HyperNetworkTerm(Term):
    """The backbone learns through an adapter that a hypernetwork writes; L = β_c L_c + β_e L_e is added to the other
    losses.

    A domain's memory is its embedding, 32 numbers. Each subclass is a use of the adapter; :meth:`build` builds
    one by name. Unless a use says otherwise, the first domain trains the network itself: its adapter is zero, and L_c
    keeps it so.

    Args:
        adapter: what is adapted and how.
    """

    keeps = KIND
    use: ClassVar[Use]
    listed: ClassVar[str] = "among a method's terms, and not in its adapter list"
    """Where in a method the use belongs."""
    beside: ClassVar[bool] = False
    """Whether it is trained after the step's model is finished, from the first domain on, and leaves it unchanged."""
    routes: ClassVar[bool] = False
    """Whether a learned site is served by the network with its own adapter (:mod:`reid.run.routing`)."""
    moves_embedding: ClassVar[bool] = False
    """Whether the linear embedding is trained along with the adapter."""
    others: Tensor
    before: Tensor

    @classmethod
    def build(cls, use: Use = "merged", **settings: Any) -> HyperNetworkTerm:
        """Build the subclass for a use; other settings are fields of :class:`AdapterSettings`. Raises ValueError."""
        check_choice("use", use, Use, ValueError)
        check_known(settings, [field.name for field in fields(AdapterSettings)])
        return USES[use](AdapterSettings(**settings))

    def __init__(self, adapter: AdapterSettings) -> None:
        super().__init__()
        if not self.moves_embedding and not adapter.frozen:
            raise ValueError(f"frozen must be true for use: {self.use}, got {adapter.frozen!r}")
        if not self.beside and adapter.share != 1:
            raise ValueError(
                f"share is for adapters beside the finished weights, and this one is {self.use}; leave share at 1"
            )
        self.adapter = adapter
        self.slots: list[Slot] = []
        self.net: HyperNetwork | None = None
        self.guide: Guide | None = None

    # ----------------------------------------------------------------------------------------------------------- a step

    def begin(self, step: Step) -> None:
        """Restore the last step's hypernetwork, give the new domain an embedding, and let the model learn through its
        adapter.
        """
        seed = (step.config.seed, step.index)
        if self.beside != step.finished:
            raise ConfigError(f"hypernetwork: {{use: {self.use}}} belongs {self.listed}")
        self.embedding = nn.Parameter(torch.randn(EMBEDDING_DIM, generator=torch_generator(*seed, "domain embedding")))
        if step.index == 1 and not self.beside:
            self.embedding.requires_grad_(False)
            return
        backbone = step.model.backbone
        self.slots = find_slots(backbone, rank=self.adapter.rank, where=self.places(backbone))
        self.net = self.network(step.kept.get(KIND), self.slots, seed=torch_seed(*seed, KIND))
        known = _embeddings(step.memories)
        if KIND not in step.kept and len(known) > (not self.beside):
            raise ConfigError(
                "the previous step kept no hypernetwork, so older adapters can't be preserved; continue with that "
                "step's method"
            )
        self._remember(self.net, known)
        for name, weight in step.kept.get(BASE, {}).items():
            with torch.no_grad():
                backbone.get_parameter(name).copy_(weight)
        self.to(step.runtime.device)
        if self.adapter.guide != "none" and len(known) > 1:
            self.guide = Guide(self.net, self._target(step, known), seed=torch_seed(*seed, "guide")).to(
                step.runtime.device
            )
        if self.adapter.frozen:
            step.model.still = True
            backbone.requires_grad_(False)
            step.model.embedding.requires_grad_(self.moves_embedding)
        step.model.changes = self._changes

    @torch.no_grad()
    def _remember(self, net: HyperNetwork, known: Sequence[NDArray[np.generic]]) -> None:
        """Record what the hypernetwork writes for the domains already learned."""
        self.register_buffer("others", torch.from_numpy(np.stack(known)) if known else torch.zeros(0, EMBEDDING_DIM))
        self.register_buffer(
            "before", torch.stack([net(other) for other in self.others]) if known else torch.zeros(0, net.length)
        )

    def loss(self, batch: Batch) -> Tensor | None:
        """Return β_c L_c, unless it looks ahead, plus β_e L_e with the published weight min(0.05 t, 1)."""
        if self.net is None:
            return None
        self._iteration = batch.iteration
        loss = self.net.last.bias.new_zeros(())
        if not self.adapter.look_ahead and len(self.others):
            loss = loss + self.adapter.beta * drift(
                torch.stack([self.net(other) for other in self.others]), self.before
            )
        if self.guide is not None:
            loss = loss + min(0.05 * batch.step.index, 1.0) * self.guide(self.net.hidden(self.embedding))
        return loss

    def after_backward(self, step: Step) -> None:
        """Look ahead: add L_c's gradient at the weights after a step of the other losses alone, that step treated as
        constant.
        """
        if self.net is None or not self.adapter.look_ahead or not len(self.others):
            return
        rate = learning_rate(step.config.train, self._iteration)
        ahead = {
            name: (weight - rate * weight.grad if weight.grad is not None else weight).detach().requires_grad_()
            for name, weight in self.net.named_parameters()
        }
        written = torch.stack([torch.func.functional_call(self.net, ahead, (other,)) for other in self.others])
        gradients = torch.autograd.grad(self.adapter.beta * drift(written, self.before), list(ahead.values()))
        for weight, gradient in zip(self.net.parameters(), gradients, strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad + gradient

    @torch.no_grad()
    def after_training(self, step: Step) -> None:
        """Return the network to the form in which it serves: with the adapter in its weights, or without it."""
        if self.net is None:
            return
        step.model.changes, step.model.still = None, False
        self.settle(step.model, self.net)

    def settle(self, model: ReidModel, net: HyperNetwork) -> None:
        """Apply the adapter as this use has it; by default not at all, and the model is unchanged."""

    def weights_for_next(self, step: Step) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the hypernetwork; a use may add the weights below the adapter."""
        if self.net is None:
            return {}
        return {KIND: {name: value.detach().cpu() for name, value in self.net.state_dict().items()}}

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """Return ``embedding``, ``[32]`` float32."""
        return {"embedding": self.embedding.detach().cpu()}

    # ------------------------------------------------------------------------------------------------------------ parts

    def places(self, backbone: Backbone) -> tuple[str, ...]:
        """Return what is adapted in this backbone."""
        return tuple(self.adapter.where) or (("attention",) if has_attention(backbone) else ("convolution", "norm"))

    def check(self, model: ReidModel) -> None:
        """Raise ConfigError if the backbone has nothing to adapt in these places."""
        find_slots(model.backbone, rank=self.adapter.rank, where=self.places(model.backbone))

    def network(self, state: Mapping[str, Tensor] | None, slots: Sequence[Slot], *, seed: int = 0) -> HyperNetwork:
        """Build the hypernetwork for these slots, with the weights that an earlier step kept, if any; raises
        ConfigError if they do not fit.
        """
        net = HyperNetwork(
            sum(slot.length for slot in slots), chunk=self.adapter.chunk, hidden=self.adapter.hidden, seed=seed
        )
        if state is not None:
            try:
                net.load_state_dict(dict(state))
            except RuntimeError as error:
                raise ConfigError(
                    "the previous step kept a hypernetwork of another size; leave rank, where, chunk and hidden "
                    "unchanged"
                ) from error
        return net

    def written(self, net: HyperNetwork, slots: Sequence[Slot], place: Tensor) -> dict[str, Tensor]:
        """Return the changes to the backbone's weights for an embedding ``[32]``, by parameter."""
        return changes(slots, self.adapter.gain * net(place))

    def below(
        self, backbone: Backbone, kept: Mapping[str, Mapping[str, Tensor]], slots: Sequence[Slot]
    ) -> Mapping[str, Tensor]:
        """Return the weights below a sealed step's adapters, by parameter: the network's own, or those that it kept."""
        return (
            kept[BASE]
            if BASE in kept
            else {slot.name: backbone.get_parameter(slot.name).detach().clone() for slot in slots}
        )

    def _changes(self) -> dict[str, Tensor]:
        if self.net is None:
            raise RuntimeError("an adapter has no changes before its step has started")
        return self.written(self.net, self.slots, self.embedding)

    def _target(self, step: Step, known: Sequence[NDArray[np.generic]]) -> Tensor:
        """Return ê: from the H-scores of each learned domain's network on the new crops, or a random place."""
        seed = (step.config.seed, step.index)
        if self.adapter.guide == "random":
            return torch.randn(EMBEDDING_DIM, generator=torch_generator(*seed, "random guide"))
        if step.survey is None or self.net is None:
            raise ValueError("H-scores are computed on a survey of the step's crops, and the step has none")
        model, survey = step.model, step.survey.shuffled(*seed)
        part = Survey(survey.store, survey.positions[:SCORED], survey.labels[:SCORED], survey.device)
        scores = []
        for other in self.others:
            with torch.no_grad():
                written = self.written(self.net, self.slots, other)
            model.changes = lambda written=written: written
            scores.append(max(h_score(part.embeddings(model), part.labels).value, 1e-6))
        target = h_embedding(np.stack(known), relations(scores), seed=torch_seed(*seed, "H-embedding") % 2**31)
        return torch.from_numpy(target.vector)


class Merged(HyperNetworkTerm):
    """The adapter is added to the weights after training, before fusion; the linear embedding is trained along with
    it.
    """

    use = "merged"
    moves_embedding = True

    def settle(self, model: ReidModel, net: HyperNetwork) -> None:
        """Add this domain's adapter to the weights."""
        merge(model.backbone, self.written(net, self.slots, self.embedding))
        _trainable(model)


class _OverFirst(HyperNetworkTerm):
    """The weights are always those of the first step, plus the adapter of the mean of all embeddings."""

    def settle(self, model: ReidModel, net: HyperNetwork) -> None:
        """Keep the weights below the adapter, and add the mean embedding's adapter to them."""
        self._base = {slot.name: model.backbone.get_parameter(slot.name).detach().cpu().clone() for slot in self.slots}
        merge(model.backbone, self.written(net, self.slots, torch.cat([self.others, self.embedding[None]]).mean(0)))
        _trainable(model)

    def weights_for_next(self, step: Step) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the hypernetwork and the weights below the adapter."""
        weights = super().weights_for_next(step)
        return {**weights, BASE: self._base} if weights else weights


class Averaged(_OverFirst):
    """Every site is served by the network of the mean embedding."""

    use = "averaged"


class Routed(_OverFirst):
    """A learned site is served by the network with its own adapter, any other by a mixture, see
    :mod:`reid.run.routing`.
    """

    use = "routed"
    routes = True


class Beside(HyperNetworkTerm):
    """For a method's ``adapter`` list: every learned site, including the first, has its own adapter beside the weights
    that the other parts produce.
    """

    use = "beside"
    listed = "in a method's adapter list, and nowhere else"
    beside = True
    routes = True


USES: Mapping[str, type[HyperNetworkTerm]] = {kind.use: kind for kind in (Merged, Averaged, Routed, Beside)}


def _embeddings(memories: Sequence[Memory]) -> list[NDArray[np.generic]]:
    """Return the embeddings of the domains that have one, in order."""
    return [memory.arrays[f"{KIND}.embedding"] for memory in memories if f"{KIND}.embedding" in memory.arrays]


def _trainable(model: ReidModel) -> None:
    """Unfreeze all weights except the neck's bias, which no method trains."""
    model.requires_grad_(True)
    model.neck.bias.requires_grad_(False)
