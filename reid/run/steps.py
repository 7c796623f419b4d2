"""Reading what a run has sealed: its steps, their models and memories, and how each serves a site."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from domains.arrays import Embed
from domains.artefact import read_manifest
from domains.domain import Domain
from domains.errors import ArtefactError, UsageError
from domains.style import StyleStatistics
from prototypes.memory import Memory
from prototypes.metric import Metric, SiteStatistics
from prototypes.renewal import renewed
from reid.batches.loader import StoreCache
from reid.config import Config, build_config
from reid.network.build import build_model
from reid.network.checkpoint import State, read_tensors
from reid.network.embedding import embedder
from reid.network.model import ReidModel
from reid.network.runtime import Runtime
from reid.run.cards import check_card
from reid.run.folder import GRAPH, begun, number
from reid.run.metrics import chosen_metric, in_metric
from reid.run.routing import router_of, routing_term
from reid.run.sealed import CARD, SCHEMAS, WEIGHTS, Sealed
from reid.scores.evaluate import batches, evaluate
from reid.scores.matrix import ScoreMatrix


class Steps:
    """The read side of a run's folder; :class:`reid.run.Run` adds what changes it.

    Attributes:
        folder: where the run lives.
        config: the settings it was created with.
        identity: id of its untrained start.
        scores: the score matrix.
        stores: decodes and caches crops of the scored domains.
    """

    def __init__(self, folder: Path, config: Config, identity: str) -> None:
        self.folder = folder
        self.config = config
        self.identity = identity
        self.scores = ScoreMatrix.read(folder)
        self.stores = StoreCache(config.crop.spec(), config.storage.crop_memory_mb, folder)

    @property
    def steps(self) -> list[Sealed]:
        """Sealed steps in order; raises ArtefactError if one is damaged or missing."""
        folders = sorted(
            (folder for folder in (self.folder / "steps").glob("[0-9]*-*") if (folder / CARD).is_file()), key=number
        )
        sealed = [
            Sealed(
                folder,
                check_card(read_manifest(folder, CARD, kind="step", schemas=SCHEMAS, check_files=False), folder / CARD),
            )
            for folder in folders
        ]
        for position, step in enumerate(sealed):
            if step.index != position or step.card["parent"] != (sealed[position - 1].card["id"] if position else None):
                raise ArtefactError(
                    f"{step.folder} does not follow the step before it; restore {self.folder} from a backup"
                )
        return sealed

    @property
    def learned(self) -> list[str]:
        """Names of the learned domains, in order."""
        return [name for step in self.steps for name in step.learned]

    @property
    def unfinished(self) -> list[str]:
        """Names of steps that were started but not finished; the same command continues them."""
        return [folder.name for folder in begun(self.folder / "steps")]

    @property
    def rows(self) -> list[slice]:
        """Classifier rows of each learned domain."""
        ends = list(itertools.accumulate(len(step.card["classes"]) for step in self.steps))
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def moved(self, since: int, until: int) -> list[Sealed]:
        """Return the steps after one up to another that changed the embedding, as those that only measure do not."""
        steps = self.steps[since : until + 1]
        return [later for before, later in itertools.pairwise(steps) if later.feature_space != before.feature_space]

    def taught(self, step: int = -1) -> Sealed:
        """Return the step that taught a step's network, and decides how sites are routed: itself, or the last one
        before it that did more than measure a site.
        """
        steps = self.steps[: self.sealed(step).index + 1]
        return next((done for done in reversed(steps) if (done.card["method"] or {}).get("terms")), steps[0])

    def use_device(self, device: str | None) -> None:
        """Compute on another device from now on, if one is named.

        Raises:
            ConfigError: it is not the name of a device.
            DeviceError: it is not available.
        """
        if device:
            self.config = build_config(self.config.model_dump(mode="json"), {"device": device})
            Runtime.choose(self.config.device, "fp32", torch.nn.Identity())

    def sealed(self, step: int = -1) -> Sealed:
        """Return a sealed step; raises UsageError if there is none of that number."""
        steps = self.steps
        if not -len(steps) <= step < len(steps):
            raise UsageError(f"{self.folder} has steps 0 to {len(steps) - 1}, not {step}")
        return steps[step]

    def model(self, step: int = -1) -> tuple[ReidModel, Sealed]:
        """Build the network of a sealed step and check its weights' hash; raises ArtefactError."""
        sealed = self.sealed(step)
        tensors, _ = read_tensors(sealed.file(WEIGHTS))
        return self.build(tensors), sealed

    def build(self, weights: State) -> ReidModel:
        """Build the run's network for these weights, in eval mode."""
        config = self.config.model
        if config.backbone.startswith("onnx:"):
            config = config.model_copy(update={"backbone": f"onnx:{self.folder / GRAPH}"})
        rows = weights.get("classifier.weight")
        if rows is None or rows.ndim != 2 or not rows.shape[1]:  # rows of no width would take no bytes, and any number
            raise ArtefactError(f"the weights of a step of {self.folder} have no classifier; restore it from a backup")
        classes = len(rows)
        model = build_model(config, self.config.crop.spec(), classes=classes, load_weights=False, seed=self.config.seed)
        if any(name.startswith("distribution.") for name in weights):
            model.add_distribution("convolution" if "distribution.convolution.weight" in weights else "pooled")
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ArtefactError(
                f"the weights of a step of {self.folder} are not those of its network, {config.backbone!r:.80}; "
                "restore it from a backup"
            ) from error
        return model.eval()

    def memories(self, *, renew: bool = False, step: int = -1) -> list[Memory]:
        """Read the memory of each domain learned up to a step, in order.

        Args:
            renew: carry prototypes and statistics through the sealed transports into the feature space of that step. A
                step without a transport leaves earlier ones where they are.
            step: the step, by default the last.
        """
        return self._memories(self.steps[1 : self.sealed(step).index + 1], renew=renew)

    def _memories(self, steps: Sequence[Sealed], *, renew: bool, of: Collection[int] | None = None) -> list[Memory]:
        """The memories of consecutive steps, or of those with these indices, carried to the last if they are to be."""
        wanted = [position for position, step in enumerate(steps) if of is None or step.index in of]
        memories = [steps[position].memory() for position in wanted]
        if not renew or not memories:
            return memories
        transports = [step.transport() for step in steps[wanted[0] + 1 :]]
        return [
            renewed(memory, [later for later in transports[position - wanted[0] :] if later])
            for position, memory in zip(wanted, memories, strict=True)
        ]

    def evaluate(self, domain: Domain, *, step: int = -1, rerank: bool = False) -> dict[str, float | int]:
        """Score one domain with one step's model, in percent."""
        return evaluate(domain, self.served(step)(domain), self.stores, rerank=rerank).to_dict()

    def route(self, site: Domain | str, step: int = -1) -> ReidModel | None:
        """Build the network that serves a site; return None if that is the step's own network.

        Only some methods keep a network per domain. A learned site's name is enough; any other site is
        placed by its query crops, unless the step's own network serves it.
        """
        sealed = self.taught(step)
        term = routing_term(sealed.card)
        if term is None:
            return None
        model, _ = self.model(step)
        router = router_of(model, term, sealed.kept(), self.memories(step=sealed.index))
        if router is None:
            return None
        name, look = site if isinstance(site, str) else site.name, None
        if name not in router.embeddings:
            if isinstance(site, str):
                raise UsageError(
                    f"step {sealed.index} has no route for {name}; it has learned {', '.join(router.embeddings)}"
                )
            if len(site.query) and not router.shared:
                look = StyleStatistics.of(batches(self.stores.get(site, site.query).crops))
        embedding = router.place(name, look)
        return None if embedding is None else router.route(model, embedding)

    def statistics(self, step: int = -1, *, carried: bool = True) -> dict[str, SiteStatistics]:
        """Return the statistics of the sites learned up to a step, by name; those that have some.

        Args:
            step: the step, by default the last.
            carried: in its feature space; False leaves them as they were sealed, for comparison.
        """
        last = self.sealed(step)
        steps = self.steps[1 : last.index + 1]
        measured = [done for done in steps if done.card["method"].get("metric")]
        memories = self._memories(steps, renew=carried, of={done.index for done in measured})
        sites = [SiteStatistics.from_arrays(memory.arrays) for memory in memories]
        if any(site and len(site.mean) != last.card["dim"] for site in sites):
            raise ArtefactError(
                f"{last.folder} has statistics of other dimensions than its network; restore it from a backup"
            )
        return {name: site for done, site in zip(measured, sites, strict=True) if site for name in done.learned}

    def metric(self, name: str, step: int = -1) -> Metric | None:
        """Return a step's metric by name: ``none``, ``pooled``, ``site:NAME`` or ``mixed:NAME``.

        Raises:
            UsageError: there is no such metric.
        """
        return chosen_metric(name, self.statistics(step), self.sealed(step).folder.name)

    def served(self, step: int, *, measured: bool = True, own: Embed | None = None) -> Callable[[Domain], Embed]:
        """Return how a step's model embeds a given domain's crops: a site that has a metric of its own, in that.

        Args:
            step: the step.
            measured: False leaves the metrics out.
            own: embeds crops as :meth:`embedder` of the step does, if the caller has that already.
        """
        own, sites = own or self.embedder(step), self.statistics(step) if measured else {}

        def serve(domain: Domain) -> Embed:
            model = self.route(domain, step)
            embed = own if model is None else self.embedder(step, model)
            return in_metric(embed, Metric.own(sites[domain.name])) if domain.name in sites else embed

        return serve

    def embedder(self, step: int, model: ReidModel | None = None) -> Embed:
        """Return how a step's model, or another network of this run, embeds crops."""
        model = model or self.model(step)[0]
        runtime = Runtime.choose(self.config.device, "fp32", model)
        return embedder(model.to(runtime.device, memory_format=torch.channels_last), runtime.device)  # type: ignore[call-overload]
