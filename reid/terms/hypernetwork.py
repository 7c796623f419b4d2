"""Adapters written by a hypernetwork from a domain's embedding.

After "Exploiting Task Relationships for Continual Learning Using Transferability-Aware Task Embeddings" (NeurIPS 2025), with one embedding space and
one exported network in the place of a task that is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from domains.errors import ConfigError
from domains.transferability import h_embedding, h_score, relations
from reid.config import learning_rate
from reid.network.adapter import Slot, changes, find_slots, has_attention, merge
from reid.network.backbone import Backbone
from reid.network.hypernetwork import CHUNK, EMBEDDING_DIM, HIDDEN, Guide, HyperNetwork, drift
from reid.network.model import ReidModel
from reid.randomness import torch_generator, torch_seed
from reid.terms.survey import Survey
from reid.terms.term import Batch, Step, Term

KIND, BASE = "hypernetwork", "base"
SCORED = 1000
"""Crops that H-scores are computed on, as published."""

Use = Literal["merged", "averaged", "routed", "beside"]
USES = ("merged", "averaged", "routed", "beside")


class HyperNetworkTerm(Term):
    """From the second domain on the backbone learns through an adapter that a hypernetwork writes; L = β_c L_c + β_e L_e is added to the rest.

    The first domain trains the network itself; its adapter is none, and L_c keeps it so. What is kept of a domain is its embedding, 32 numbers.

    Args:
        use: ``merged``: the adapter is added to the weights when the step is trained, before fusion. ``averaged``: the weights are always those of
            the first step with the adapter that the mean of all embeddings gives. ``routed``: likewise, but a site has its own. ``beside``, in a
            method's ``adapter`` list: every learned site, the first too, has its own beside the weights that the method's other parts give.
        rank: of the low-rank changes.
        where: what is adapted, see :data:`reid.network.adapter.WHERE`; by default attention of a ViT, convolutions and BatchNorms of a CNN.
        frozen: whether the backbone below the adapter is held; always so where it is not merged.
        beta: β_c, how strongly older adapters are held.
        look_ahead: compute L_c after the step that the other losses alone would take, as von Oswald et al.
        guide: where the new embedding is pulled: ``h`` by transferability, ``random`` to a random place for comparison, ``none``.
        gain: factor of what the hypernetwork writes, so of the rate at which adapters learn.
        share: how much of an adapter that is ``beside`` is used when its site is served. Half of it keeps most of the gain, as half of a step does in
            fusion (Wortsman et al., CVPR 2022).
        chunk: weights written at a time.
        hidden: width of its hidden layer.
    """

    keeps = KIND
    others: Tensor
    before: Tensor

    def __init__(
        self, use: Use = "merged", rank: int = 4, where: Sequence[str] = (), *, frozen: bool = True, beta: float = 0.05, look_ahead: bool = False,
        guide: Literal["h", "random", "none"] = "none", gain: float = 1.0, share: float = 1.0, chunk: int = CHUNK, hidden: int = HIDDEN,
    ) -> None:  # fmt: skip
        super().__init__()
        if use not in USES:
            raise ValueError(f"use must be {', '.join(USES[:-1])} or {USES[-1]}, got {use!r}")
        if guide not in ("h", "random", "none"):
            raise ValueError(f"guide must be h, random or none, got {guide!r}")
        for name, value in (("beta", beta), ("gain", gain), ("share", share)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of 0 or more, got {value!r}")
        if use != "merged" and not frozen:
            raise ValueError(f"adapters that are {use} need the backbone below them frozen")
        self.use, self.rank, self.where, self.frozen = use, rank, tuple(where), frozen
        self.beta, self.look_ahead, self.guided, self.gain = beta, look_ahead, guide, gain
        if use != "beside" and share != 1:
            raise ValueError(f"share is for adapters beside the finished weights, and this one is {use}")
        self.share = share
        self.chunk, self.width = chunk, hidden
        self.slots: list[Slot] = []
        self.net: HyperNetwork | None = None
        self.guide: Guide | None = None

    # ------------------------------------------------------------------------------------------------------------------ a step

    def begin(self, step: Step) -> None:
        """Take up the hypernetwork where the last step left it, place the new domain, and let the model learn through its adapter."""
        seed = (step.config.seed, step.index)
        if (self.use == "beside") != step.finished:
            where = "in a method's adapter list, and nowhere else" if self.use == "beside" else "among a method's terms, and not in its adapter list"
            raise ConfigError(f"hypernetwork: {{use: {self.use}}} belongs {where}")
        self.embedding = nn.Parameter(torch.randn(EMBEDDING_DIM, generator=torch_generator(*seed, "domain embedding")))
        if step.index == 1 and self.use != "beside":
            self.embedding.requires_grad_(False)
            return
        backbone = step.model.backbone
        self.slots = find_slots(backbone, rank=self.rank, where=self.places(backbone))
        self.net = self.network(step.kept.get(KIND), self.slots, seed=torch_seed(*seed, KIND))
        known = [memory.arrays[f"{KIND}.embedding"] for memory in step.memories if f"{KIND}.embedding" in memory.arrays]
        if KIND not in step.kept and len(known) > (self.use != "beside"):
            raise ConfigError("the step before kept no hypernetwork, so older adapters can't be held; go on with the method of the step before it")
        self.register_buffer("others", torch.from_numpy(np.stack(known)) if known else torch.zeros(0, EMBEDDING_DIM))
        with torch.no_grad():
            self.register_buffer("before", torch.stack([self.net(other) for other in self.others]) if known else torch.zeros(0, self.net.length))
            if BASE in step.kept:
                for name, weight in step.kept[BASE].items():
                    backbone.get_parameter(name).copy_(weight)
        self.to(step.runtime.device)
        if self.guided != "none" and len(known) > 1:
            target = self._target(step, known)
            self.guide = Guide(self.net, target, seed=torch_seed(*seed, "guide")).to(step.runtime.device)
        if self.frozen:
            step.model.still = True
            backbone.requires_grad_(False)
            step.model.embedding.requires_grad_(self.use == "merged")
        step.model.changes = self._changes

    def loss(self, batch: Batch) -> Tensor | None:
        """β_c L_c, unless it looks ahead, and β_e L_e with the published weight min(0.05 t, 1)."""
        if self.net is None:
            return None
        self._iteration = batch.iteration
        loss = self.net.last.bias.new_zeros(())
        if not self.look_ahead and len(self.others):
            loss = loss + self.beta * drift(torch.stack([self.net(other) for other in self.others]), self.before)
        if self.guide is not None:
            loss = loss + min(0.05 * batch.step.index, 1.0) * self.guide(self.net.hidden(self.embedding))
        return loss

    def after_backward(self, step: Step) -> None:
        """Look ahead: L_c's gradient where the weights would be after the step of the other losses, that step taken as given."""
        if self.net is None or not self.look_ahead or not len(self.others):
            return
        rate = learning_rate(step.config.train, self._iteration)
        ahead = {
            name: (weight - rate * weight.grad if weight.grad is not None else weight).detach().requires_grad_()
            for name, weight in self.net.named_parameters()
        }
        written = torch.stack([torch.func.functional_call(self.net, ahead, (other,)) for other in self.others])
        found = torch.autograd.grad(self.beta * drift(written, self.before), list(ahead.values()))
        for weight, gradient in zip(self.net.parameters(), found, strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad + gradient

    @torch.no_grad()
    def after_training(self, step: Step) -> None:
        """Add the adapter to the weights: this domain's, or that of the mean domain."""
        if self.net is None:
            return
        backbone = step.model.backbone
        step.model.changes, step.model.still = None, False
        if self.use == "beside":
            return
        if self.use != "merged":
            self._base = {slot.name: backbone.get_parameter(slot.name).detach().cpu().clone() for slot in self.slots}
        place = self.embedding if self.use == "merged" else torch.cat([self.others, self.embedding[None]]).mean(0)
        merge(backbone, self.written(self.net, self.slots, place))
        step.model.requires_grad_(True)
        step.model.neck.bias.requires_grad_(False)

    def weights_for_next(self, step: Step) -> Mapping[str, Mapping[str, Tensor]]:
        """The hypernetwork, and the weights below the adapter where they are not the model's own."""
        if self.net is None:
            return {}
        kept = {KIND: {name: value.detach().cpu() for name, value in self.net.state_dict().items()}}
        return kept if self.use in ("merged", "beside") else {**kept, BASE: self._base}

    def end(self, step: Step) -> Mapping[str, Tensor]:
        """``embedding``, ``[32]`` float32."""
        return {"embedding": self.embedding.detach().cpu()}

    # ------------------------------------------------------------------------------------------------------------------ parts

    def places(self, backbone: Backbone) -> tuple[str, ...]:
        """What is adapted in this backbone."""
        return self.where or (("attention",) if has_attention(backbone) else ("convolution", "norm"))

    def check(self, model: ReidModel) -> None:
        """Raise ConfigError if the backbone has nothing to adapt in these places."""
        find_slots(model.backbone, rank=self.rank, where=self.places(model.backbone))

    def network(self, state: Mapping[str, Tensor] | None, slots: Sequence[Slot], *, seed: int = 0) -> HyperNetwork:
        """Build the hypernetwork of these slots, with the weights that an earlier step kept if there are any; raises ConfigError if they misfit."""
        net = HyperNetwork(sum(slot.length for slot in slots), chunk=self.chunk, hidden=self.width, seed=seed)
        if state is not None:
            try:
                net.load_state_dict(dict(state))
            except RuntimeError as error:
                raise ConfigError("the step before kept a hypernetwork of another size; keep rank, where, chunk and hidden as they were") from error
        return net

    def written(self, net: HyperNetwork, slots: Sequence[Slot], place: Tensor) -> dict[str, Tensor]:
        """Changes of the backbone's weights for an embedding ``[32]``, by parameter."""
        return changes(slots, self.gain * net(place))

    def _changes(self) -> dict[str, Tensor]:
        if self.net is None:
            raise RuntimeError("changes are asked for before the step has begun")
        return self.written(self.net, self.slots, self.embedding)

    def _target(self, step: Step, known: list[NDArray[np.generic]]) -> Tensor:
        """ê: from the H-scores of each learned domain's network on the new crops, or a random place."""
        seed = (step.config.seed, step.index)
        if self.guided == "random":
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
        found = h_embedding(np.stack(known), relations(scores), seed=torch_seed(*seed, "H-embedding") % 2**31)
        return torch.from_numpy(found.vector)
