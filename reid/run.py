"""A run: the folder that holds every step of one model's life, and the score matrix."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from domains.artefact import code_version, fsync_folder, read_manifest, write_atomic
from domains.domain import Domain
from domains.errors import ArtefactError, ConfigError, UsageError
from domains.style import StyleStatistics
from prototypes.memory import Memory
from reid import run_scores
from reid.checkpoint import read_tensors
from reid.config import Config, Method, build_config, read_method, read_yaml
from reid.ending import renewed
from reid.erasure import Erasure, erase, plan_erasure
from reid.evaluate import Embed, batches, evaluate, torch_embedder
from reid.folder import GRAPH, RUN, clear_unmade, locked, number
from reid.fusion import State
from reid.journal import finish, unfinished
from reid.learning import begun, learn_step, sweep
from reid.loader import StoreCache
from reid.matrix import ScoreMatrix
from reid.model import ReidModel, build_model
from reid.optim import Runtime
from reid.progress import Progress
from reid.routing import router_of, routing_term
from reid.sealed import CARD, SCHEMAS, WEIGHTS, Sealed, seal

REPLACED = ".replaced-"


class Run:
    """See the module's docstring. Make one with :meth:`create` or :meth:`open`.

    Attributes:
        folder: where it lives.
        config: the settings it was created with.
        scores: the matrix.
    """

    def __init__(self, folder: Path, config: Config, identity: str) -> None:
        self.folder = folder
        self.config = config
        self.identity = identity
        self.scores = ScoreMatrix.read(folder)
        self.stores = StoreCache(config.crop.spec(), config.storage.crop_memory_mb)

    # ------------------------------------------------------------------------------------------------------------------ making and opening

    @classmethod
    def create(cls, folder: str | Path, config: Config | None = None) -> Run:
        """Make a run and seal its untrained start as step 0.

        Raises:
            UsageError: the folder holds something already.
            ReidError: the backbone, its weights or the device can't be had.
        """
        folder, config = Path(folder), config or Config()
        if folder.exists() and (not folder.is_dir() or any(item.name != ".lock" for item in folder.iterdir())):
            raise UsageError(f"{folder} exists already and is no empty folder; open it, or choose another name for a new run")
        Runtime.choose(config.device, config.train.precision, torch.nn.Identity())  # before anything is written
        name = config.model.backbone.removeprefix("onnx:")
        model = build_model(config.model, config.crop.spec(), seed=config.seed)
        folder.mkdir(parents=True, exist_ok=True)
        if config.model.backbone.startswith("onnx:"):
            write_atomic(folder / GRAPH, Path(name).read_bytes())
        start = cls(folder, config, "")
        card: dict[str, Any] = {"method": None, "domains": [], "classes": [], "train": {}, "notes": []}
        seal(folder / "steps" / "00-start", 0, model, config.crop.spec(), card, {}, parent=None)
        head = {"kind": "run", "schema": 1, "code": code_version(), "start": start.steps[0].card["id"], "config": config.model_dump(mode="json")}
        write_atomic(folder / RUN, yaml.safe_dump(head, sort_keys=False, allow_unicode=True).encode())
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a run; raises ArtefactError naming what is missing or damaged."""
        folder = Path(folder)
        if not (folder / RUN).is_file():
            raise ArtefactError(f"{folder} is no run: it has no {RUN}")
        if unfinished(folder):  # an erasure was cut short
            with locked(folder):
                finish(folder)
        head = read_yaml(folder / RUN)
        if head.get("kind") != "run" or head.get("schema") not in SCHEMAS:
            raise ArtefactError(
                f"{folder / RUN} has kind {head.get('kind')!r} and schema {head.get('schema')!r}; this version reads runs of schema 1"
            )
        run = cls(folder, build_config(head.get("config") or {}), str(head.get("start")))
        steps = run.steps
        if not steps or steps[0].card["id"] != run.identity:
            raise ArtefactError(f"{folder} lacks the untrained start that its {RUN} names; restore the folder from a backup")
        run.scores.learned = [step.learned for step in steps]  # a step may be sealed and not scored yet
        return run

    @classmethod
    def open_or_create(cls, folder: str | Path, layers: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()) -> tuple[Run, Config]:
        """Open a run, or create it with these settings; also returns the settings for the next step.

        Raises:
            ConfigError: a setting that is fixed for the run's life is to be changed; one line per difference.
        """
        folder, layers, overrides = Path(folder), list(layers), list(overrides)
        if not (folder / RUN).exists():
            config = build_config(*layers, overrides=overrides)
            clear_unmade(folder)
            return cls.create(folder, config), config
        run = cls.open(folder)
        config = build_config(run.config.model_dump(mode="json"), *layers, overrides=overrides)
        run._check_fixed(config)
        run.config = run.config.model_copy(update={"device": config.device})  # where scores are computed, too
        return run, config

    def _check_fixed(self, config: Config) -> None:
        saved = self.config.fixed()
        differing = {key: value for key, value in config.fixed().items() if saved[key] != value}
        if differing:
            lines = "\n".join(f"  {key}: saved {saved[key]!r}, requested {value!r}" for key, value in differing.items())
            raise ConfigError(f"these settings are fixed for the life of {self.folder}; keep them, or start another run:\n{lines}")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against a second learner; the lock of a dead process is gone with it. Raises UsageError."""
        with locked(self.folder):
            yield

    # ------------------------------------------------------------------------------------------------------------------ steps

    @property
    def steps(self) -> list[Sealed]:
        """Sealed steps in order; raises ArtefactError if one is damaged or missing."""
        folders = sorted((folder for folder in (self.folder / "steps").glob("[0-9]*-*") if (folder / CARD).is_file()), key=number)
        sealed = [Sealed(folder, read_manifest(folder, CARD, kind="step", schemas=SCHEMAS, check_files=False)) for folder in folders]
        for place, step in enumerate(sealed):
            if step.index != place or step.card["parent"] != (sealed[place - 1].card["id"] if place else None):
                raise ArtefactError(f"{step.folder} does not follow the step before it; restore {self.folder} from a backup")
        return sealed

    @property
    def learned(self) -> list[str]:
        """Names of the learned domains, in order."""
        return [name for step in self.steps for name in step.learned]

    @property
    def unfinished(self) -> list[str]:
        """Names of steps that were begun and not finished: the same command goes on with them."""
        return [folder.name for folder in begun(self.folder / "steps")]

    def model(self, step: int = -1) -> tuple[ReidModel, Sealed]:
        """Build the network of a sealed step and check its weights' hash; raises ArtefactError."""
        steps = self.steps
        if not -len(steps) <= step < len(steps):
            raise UsageError(f"{self.folder} has the steps 0 to {len(steps) - 1}, not {step}")
        sealed = steps[step]
        tensors, _ = read_tensors(sealed.file(WEIGHTS))
        return self.build(tensors), sealed

    def build(self, weights: State) -> ReidModel:
        """Build the run's network for these weights, in eval mode."""
        config = self.config.model
        if config.backbone.startswith("onnx:"):
            config = config.model_copy(update={"backbone": f"onnx:{self.folder / GRAPH}"})
        classes = len(weights["classifier.weight"])
        model = build_model(config, self.config.crop.spec(), classes=classes, load_weights=False, seed=self.config.seed)
        if any(name.startswith("distribution.") for name in weights):
            model.add_distribution("convolution" if "distribution.convolution.weight" in weights else "pooled")
        model.load_state_dict(weights)
        return model.eval()

    def drop_last(self) -> str:
        """Discard the last step, and return its name; raises UsageError if only the start is left."""
        with self.lock():
            last = self._last_to_drop()
            shutil.rmtree(self._set_aside(last))
            return last.folder.name

    def _last_to_drop(self) -> Sealed:
        steps = self.steps
        if len(steps) < 2:
            raise UsageError(f"{self.folder} has learned nothing yet, so there is no step to drop")
        return steps[-1]

    def _set_aside(self, step: Sealed) -> Path:
        aside = step.folder.with_name(REPLACED + step.folder.name)
        step.folder.rename(aside)
        fsync_folder(aside.parent)
        self.scores.drop_rows(step.index)
        self.scores.write(self.folder)
        return aside

    def _settle(self, *, replacing: bool) -> bool:
        """Tidy up after learners that were stopped; returns whether a step is set aside whose successor is to be learned, or is being.

        A step that was set aside goes once its successor is sealed. While that has no progress to go on from, the step is put in its place again,
        unless it is to be replaced now.
        """
        sweep(self.folder / "steps")
        for aside in sorted((self.folder / "steps").glob(REPLACED + "*")):
            place = aside.with_name(aside.name.removeprefix(REPLACED))
            if number(place) < len(self.steps):
                shutil.rmtree(aside)
            elif replacing or begun(self.folder / "steps"):
                return True
            else:
                aside.rename(place)
                fsync_folder(place.parent)
        return False

    # ------------------------------------------------------------------------------------------------------------------ learning

    def learn(
        self,
        domain: Domain | list[Domain],
        *,
        method: str | Method | None = None,
        config: Config | None = None,
        replace_last: bool = False,
        restart: bool = False,
        progress: Progress | None = None,
    ) -> Sealed:
        """Learn one more domain and seal the step; picks up an interrupted step where it was.

        Args:
            domain: the domain; a list is learned as one step by a method that needs all images.
            method: a shipped name, a YAML file or a Method; by default the one the settings name.
            config: settings of this step; ``model``, ``crop`` and ``seed`` must be the run's.
            replace_last: discard the last sealed step and learn this domain in its place.
            restart: begin an interrupted step again instead of going on.
            progress: where to show it.

        Raises:
            ReidError: see the message; nothing sealed is ever changed. A step that was to be replaced is back, unless its successor has made
                progress.
        """
        config, progress = config or self.config, progress or Progress()
        chosen = method if isinstance(method, Method) else read_method(method or config.method)
        members = domain if isinstance(domain, list) else [domain]
        if len(members) > 1 and not chosen.needs_all_images:
            raise UsageError(f"method {chosen.name} learns one domain at a time")
        if chosen.needs_all_images and self.learned:
            raise UsageError(
                f"method {chosen.name} learns all domains at once, breaking the rule that old images are not kept: use reid stream with a new run"
            )
        self._check_fixed(config)
        with self.lock():
            scores = ScoreMatrix.read(self.folder)
            if not self._settle(replacing=replace_last) and replace_last:
                self._set_aside(self._last_to_drop())
            try:
                sealed = learn_step(self, members, chosen, config, restart=restart, progress=progress)
            except BaseException:
                if not self._settle(replacing=False) and replace_last:
                    self.scores = scores
                    self.scores.write(self.folder)
                raise
            self._settle(replacing=False)
            self.scores.learned = [step.learned for step in self.steps]
            return sealed

    def memories(self, *, renew: bool = False) -> list[Memory]:
        """What is kept of each learned domain, in order.

        Args:
            renew: carry prototypes through the sealed transports into the feature space of the last step. A step without one leaves those before it
                where they are.
        """
        steps = self.steps[1:]
        memories = [step.memory() for step in steps]
        if not renew:
            return memories
        transports = [step.transport() for step in steps]
        return [renewed(memory, [later for later in transports[place + 1 :] if later]) for place, memory in enumerate(memories)]

    @property
    def rows(self) -> list[slice]:
        """Classifier rows of each learned domain."""
        ends = list(itertools.accumulate(len(step.card["classes"]) for step in self.steps))
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def forget(self, *, identity: str | None = None, domain: str | None = None, dry_run: bool = False, discard_progress: bool = False) -> Erasure:
        """Erase an identity, or all of a domain, from every step; see :mod:`reid.erasure`.

        Args:
            identity: a person's label, wherever it occurs, or ``LABEL@DOMAIN``.
            domain: a domain's name, in its place.
            dry_run: say what would go, and change nothing.
            discard_progress: throw a step away that was begun and not finished, for its state holds what is to be erased.

        Raises:
            ReidError: the run knows no such, a step is in progress, or the disk failed; nothing was changed.
        """
        with self.lock():
            if not dry_run:
                self._settle(replacing=False)
            found = plan_erasure(self, identity=identity, domain=domain)
            if not dry_run:
                erase(self, found, discard_progress=discard_progress)
                self.scores = ScoreMatrix.read(self.folder)
                self.scores.learned = [step.learned for step in self.steps]
        return found

    # ------------------------------------------------------------------------------------------------------------------ scoring

    def known_domains(self) -> dict[str, Domain]:
        """Learned and otherwise scored domains whose folders can still be opened."""
        return run_scores.known_domains(self)

    def check_name(self, domain: Domain) -> None:
        """Raise UsageError if the run knows other data under this domain's name: learned, or scored before."""
        run_scores.check_name(self, domain)

    def fill_scores(self, wanted: Iterable[Domain] = (), *, rows: Iterable[int] | None = None, progress: Progress | None = None) -> list[str]:
        """Score every (row, domain) that the matrix lacks, and save it after each domain; see :func:`reid.run_scores.fill`."""
        return run_scores.fill(self, list(wanted), rows=rows, progress=progress or Progress())

    def evaluate(self, domain: Domain, *, step: int = -1, rerank: bool = False) -> dict[str, float | int]:
        """Score one domain with one step's model, in percent."""
        return evaluate(domain, self.served(step)(domain), self.stores, rerank=rerank).to_dict()

    def evaluate_without_reindexing(self, wanted: Iterable[Domain] = ()) -> dict[str, dict[str, float | None]]:
        """Score the last model's queries on galleries that older models embedded; see :func:`reid.run_scores.without_reindexing`."""
        return run_scores.without_reindexing(self, wanted)

    def route(self, site: Domain | str, step: int = -1) -> ReidModel | None:
        """Build the network that serves a site, where a step's method keeps one per domain; None where all are served by the step's own.

        A learned site's name is enough; of another the query crops are looked at. None, too, where another site is served by the step's own network.
        """
        term = routing_term(self.steps[step].card)
        if term is None:
            return None
        model, sealed = self.model(step)
        router = router_of(model, term, sealed.kept(), self.memories()[: sealed.index])
        if router is None:
            return None
        name, look = site if isinstance(site, str) else site.name, None
        if name not in router.embeddings:
            if isinstance(site, str):
                raise UsageError(f"step {sealed.index} has no route for {name}; it has learned {', '.join(router.embeddings)}")
            if len(site.query) and not router.shared:
                look = StyleStatistics.of(batches(self.stores.get(site, site.query).crops))
        place = router.place(name, look)
        return None if place is None else router.route(model, place)

    def served(self, step: int) -> Callable[[Domain], Embed]:
        """How a step's model embeds a domain's crops."""
        own = self.embedder(step)

        def serve(domain: Domain) -> Embed:
            model = self.route(domain, step)
            return own if model is None else self.embedder(step, model)

        return serve

    def embedder(self, step: int, model: ReidModel | None = None) -> Embed:
        """How a step's model, or another network of this run, embeds crops."""
        model = model or self.model(step)[0]
        runtime = Runtime.choose(self.config.device, "fp32", model)
        return torch_embedder(model.to(runtime.device, memory_format=torch.channels_last), runtime.device)  # type: ignore[call-overload]
