"""A run: the folder that holds every step of one model's life, and the score matrix."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from domains.artefact import PRIVATE_FOLDER, code_version, fsync_folder, make_private, sha256_file, write_atomic
from domains.domain import Domain
from domains.errors import ArtefactError, ConfigError, UsageError
from reid.config import Config, Method, build_config, read_yaml
from reid.network.build import build_model
from reid.network.runtime import Runtime
from reid.progress import Progress
from reid.run import scoring as run_scores
from reid.run.changes import finish, unfinished
from reid.run.checks import check_weights
from reid.run.consent import chosen_method
from reid.run.erasure import Erasure, erase, plan_erasure
from reid.run.folder import GRAPH, RUN, begun, clear_unmade, locked, number, sweep
from reid.run.learning import learn_step
from reid.run.sealed import SCHEMAS, Sealed, seal
from reid.run.steps import Steps
from reid.scores.matrix import ScoreMatrix

REPLACED = ".replaced-"


class Run(Steps):
    """A run, made by :meth:`create` or :meth:`open`; see :class:`reid.run.steps.Steps` for what can be read."""

    # ----------------------------------------------------------------------------------------------- making and opening

    created_here = False
    """Whether this process created the run, so that its settings are the caller's own and nobody else's."""

    @classmethod
    def create(cls, folder: str | Path, config: Config | None = None, *, recipe: str = "") -> Run:
        """Create a run and seal its untrained start as step 0.

        Args:
            folder: where; must be missing or empty.
            config: its settings, by default those of :class:`reid.config.Config`.
            recipe: name of the shipped recipe that was chosen for the user, for the record.

        Raises:
            UsageError: the folder is not empty.
            ReidError: the backbone, its weights or the device is not available.
        """
        folder, config = Path(folder), config or Config()
        if folder.exists() and (not folder.is_dir() or any(item.name != ".lock" for item in folder.iterdir())):
            raise UsageError(
                f"{folder} already exists and is not an empty folder; open it, or choose another name for a new run"
            )
        Runtime.choose(config.device, config.train.precision, torch.nn.Identity())  # before anything is written
        name = config.model.backbone.removeprefix("onnx:")
        check_weights(config)
        if (
            config.model.weights == "timm" and name == config.model.backbone
        ):  # wrong settings, before weights are fetched
            build_model(config.model, config.crop.spec(), load_weights=False)
        model = build_model(config.model, config.crop.spec(), seed=config.seed)
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_private(folder)
        with suppress(PermissionError):  # it was there, and is another's, who decides who may look into it
            folder.chmod(PRIVATE_FOLDER)
        if config.model.backbone.startswith("onnx:"):
            write_atomic(folder / GRAPH, Path(name).read_bytes())
        start = cls(folder, config, "")
        card: dict[str, Any] = {"method": None, "domains": [], "classes": [], "train": {}, "notes": []}
        seal(folder / "steps" / "00-start", 0, model, config.crop.spec(), card, {}, parent=None)
        head = {
            "kind": "run",
            "schema": 1,
            "code": code_version(),
            "start": start.steps[0].card["id"],
            "config": config.model_dump(mode="json"),
        }
        if recipe:
            head["recipe"] = recipe
        if (folder / GRAPH).is_file():
            head["graph"] = sha256_file(folder / GRAPH)
        write_atomic(folder / RUN, yaml.safe_dump(head, sort_keys=False, allow_unicode=True).encode())
        run = cls.open(folder)
        run.created_here = True
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a run; raises ArtefactError naming what is missing or damaged."""
        folder = Path(folder)
        if not (folder / RUN).is_file():
            raise ArtefactError(f"{folder} is not a run: it has no {RUN}")
        if unfinished(folder):  # an erasure was interrupted
            with locked(folder):
                finish(folder)
        head = read_yaml(folder / RUN)
        if head.get("kind") != "run" or head.get("schema") not in SCHEMAS:
            raise ArtefactError(
                f"{folder / RUN} has kind {head.get('kind')!r} and schema {head.get('schema')!r}; this version reads "
                "runs of schema 1"
            )
        if "graph" in head and head["graph"] != sha256_file(folder / GRAPH):  # runs of the first versions have no hash
            raise ArtefactError(f"{folder / GRAPH} was changed after the run was made; restore it from a backup")
        run = cls(folder, build_config(head.get("config") or {}), str(head.get("start")))
        steps = run.steps
        if not steps or steps[0].card["id"] != run.identity:
            raise ArtefactError(
                f"{folder} lacks the untrained start that its {RUN} names; restore the folder from a backup"
            )
        run.scores.learned = [step.learned for step in steps]  # a step may be sealed but not scored yet
        return run

    @classmethod
    def open_or_create(
        cls, folder: str | Path, layers: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()
    ) -> tuple[Run, Config]:
        """Open a run, or create it with these settings; also returns the settings for the next step.

        Raises:
            ConfigError: a setting that is fixed for the run's life would change; one line per difference.
        """
        run, config = cls.open_if_there(folder, layers, overrides)
        return run or cls.create(folder, config), config

    @classmethod
    def open_if_there(
        cls, folder: str | Path, layers: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()
    ) -> tuple[Run | None, Config]:
        """The same without creating it, so that the settings can be checked before anything is built.

        Raises:
            ConfigError: as for :meth:`open_or_create`.
        """
        if not (Path(folder) / RUN).exists():
            config = build_config(*layers, overrides=overrides)
            clear_unmade(Path(folder))
            return None, config
        run = cls.open(folder)
        config = build_config(run.config.model_dump(mode="json"), *layers, overrides=overrides)
        run._check_fixed(config)
        run.config = run.config.model_copy(update={"device": config.device})  # where scores are computed, too
        return run, config

    def own_method(self, config: Config) -> str | None:
        """The method in the settings if the caller chose it by creating the run; None if only the run names it."""
        return config.method if self.created_here and config.method == self.config.method else None

    def _check_fixed(self, config: Config) -> None:
        saved = self.config.fixed()
        differing = {key: value for key, value in config.fixed().items() if saved[key] != value}
        if differing:
            raise ConfigError(
                f"these settings are fixed for the life of {self.folder}; keep them, or start another run:",
                *(f"  {key}: saved {saved[key]!r}, requested {value!r}" for key, value in differing.items()),
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run against a second learner, until the block or process ends; raises UsageError if it is locked."""
        with locked(self.folder):
            yield

    # ------------------------------------------------------------------------------------------------------------ steps

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
        """Tidy up after interrupted learners; return whether a step is still set aside to be replaced.

        A step that was set aside is deleted once its successor is sealed. While the successor has no progress to resume
        from, the step is put back, unless it is to be replaced now.
        """
        sweep(self.folder / "steps")
        for aside in sorted((self.folder / "steps").glob(REPLACED + "*")):
            original = aside.with_name(aside.name.removeprefix(REPLACED))
            if number(original) < len(self.steps):
                shutil.rmtree(aside)
            elif replacing or begun(self.folder / "steps"):
                return True
            else:
                aside.rename(original)
                fsync_folder(original.parent)
        return False

    # --------------------------------------------------------------------------------------------------------- learning

    def learn(
        self,
        domain: Domain | list[Domain],
        *,
        method: str | Method | None = None,
        config: Config | None = None,
        replace_last: bool = False,
        restart: bool = False,
        allow_code: Collection[str] | None = None,
        progress: Progress | None = None,
    ) -> Sealed:
        """Learn one more domain and seal the step; resumes an interrupted step where it stopped.

        Args:
            domain: the domain; a list is learned as one step by a method that needs all images.
            method: a shipped name, a YAML file or a Method; by default the one in the settings, which can't be a file
                that only the run's own settings name.
            config: settings of this step; ``model``, ``crop`` and ``seed`` must be the run's.
            replace_last: discard the last sealed step and learn this domain in its place.
            restart: start an interrupted step over instead of resuming it.
            allow_code: terms of one's own, ``module:Class``, that may be imported; by default those of the ``method``
                given here, and none that only settings lead to.
            progress: where to show progress.

        Raises:
            ReidError: see the message; nothing sealed is ever changed. A step that was to be replaced is restored,
                unless its successor has made progress.

        Example:
            >>> import domains, reid
            >>> run = reid.Run.open("runs/site")
            >>> step = run.learn(domains.open("sites/south"), method="default")
            >>> step.learned, run.learned
            (('south',), ['north', 'south'])
        """
        config, progress = config or self.config, progress or Progress()
        method = method or self.own_method(config)
        chosen, allowed = chosen_method(method, config, self.config.method, allow_code)
        members = domain if isinstance(domain, list) else [domain]
        if len(members) > 1 and not chosen.needs_all_images:
            raise UsageError(f"method {chosen.name} learns one domain at a time")
        if chosen.needs_all_images and self.learned:
            raise UsageError(
                f"method {chosen.name} learns all domains at once, breaking the rule that old images are not kept: "
                "use reid stream with a new run"
            )
        self._check_fixed(config)
        with self.lock():
            scores = ScoreMatrix.read(self.folder)
            if not self._settle(replacing=replace_last) and replace_last:
                self._set_aside(self._last_to_drop())
            try:
                sealed = learn_step(
                    self, members, chosen, config, allow_code=allowed, restart=restart, progress=progress
                )
            except BaseException:
                if not self._settle(replacing=False) and replace_last:
                    self.scores = scores
                    self.scores.write(self.folder)
                raise
            self._settle(replacing=False)
            self.scores.learned = [step.learned for step in self.steps]
            return sealed

    def forget(
        self,
        *,
        identity: str | None = None,
        domain: str | None = None,
        dry_run: bool = False,
        discard_progress: bool = False,
    ) -> Erasure:
        """Erase an identity, or all of a domain, from every step; see :mod:`reid.run.erasure`.

        Args:
            identity: a person's label, wherever it occurs, or ``LABEL@DOMAIN``.
            domain: a domain's name, instead of an identity.
            dry_run: report what would be erased, and change nothing.
            discard_progress: discard an unfinished step, as its state holds what is to be erased.

        Raises:
            ReidError: the run does not know it, a step is in progress, or the disk failed; nothing was changed.
        """
        with self.lock():
            if not dry_run:
                self._settle(replacing=False)
            erasure = plan_erasure(self, identity=identity, domain=domain)
            if not dry_run:
                erase(self, erasure, discard_progress=discard_progress)
                self.scores = ScoreMatrix.read(self.folder)
                self.scores.learned = [step.learned for step in self.steps]
        return erasure

    # ---------------------------------------------------------------------------------------------------------- scoring

    def known_domains(self) -> dict[str, Domain]:
        """Learned and otherwise scored domains whose folders can still be opened."""
        return run_scores.known_domains(self)

    def check_name(self, domain: Domain) -> None:
        """Raise UsageError if the run knows other data under this domain's name: learned, or scored before."""
        run_scores.check_name(self, domain)

    def fill_scores(
        self, wanted: Iterable[Domain] = (), *, rows: Iterable[int] | None = None, progress: Progress | None = None
    ) -> list[str]:
        """Score every (row, domain) that the matrix lacks, and save it after each domain; see
        :func:`reid.run.scoring.fill`.
        """
        return run_scores.fill(self, list(wanted), rows=rows, progress=progress or Progress())

    def evaluate_without_reindexing(self, wanted: Iterable[Domain] = ()) -> dict[str, dict[str, float | None]]:
        """Score the last model's queries on galleries that older models embedded; see
        :func:`reid.run.scoring.without_reindexing`.
        """
        return run_scores.without_reindexing(self, wanted)
