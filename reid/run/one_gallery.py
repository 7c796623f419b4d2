"""What ``reid evaluate --union`` found, kept in the run's folder: the queries of each site in one gallery of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domains.artefact import code_version, read_json, write_json
from domains.domain import Domain
from domains.errors import ArtefactError
from domains.scoring import Scores
from reid.run.folder import locked
from reid.run.sealed import Sealed
from reid.run.steps import Steps
from reid.scores.matrix import Cell, check_scores

FILE = "one_gallery.json"
SCHEMA = 1
METRICS = ("cosine", "pooled", "own", "mixed")


@dataclass(frozen=True)
class OneGallery:
    """One step's scores.

    Attributes:
        sites: all sites of the gallery, by name: what the scores describe, ``{"same_camera", "data"}``.
        scores: percentages and the number of queries by site, for each kind of metric.
    """

    sites: Mapping[str, Mapping[str, Any]]
    scores: Mapping[str, Mapping[str, Mapping[str, float | int]]]

    def value(self, metric: str, score: str, site: str | None = None) -> float:
        """Return a score of one site's queries, or its mean over all sites."""
        found = self.scores[metric]
        return float(found[site][score]) if site is not None else sum(one[score] for one in found.values()) / len(found)


def read(folder: Path) -> dict[str, OneGallery]:
    """Return what a run's folder keeps, by the id of the step; nothing if there is no file.

    Raises:
        ArtefactError: the file is damaged, or of a newer version.
    """
    path = folder / FILE
    if not path.exists() and not path.is_symlink():
        return {}
    stored = read_json(path)
    try:
        if stored["kind"] != "one_gallery" or stored["schema"] != SCHEMA:
            raise ValueError(f"kind {stored['kind']!r:.40}, schema {stored['schema']!r:.40}")
        return {str(step): _entry(entry) for step, entry in stored["steps"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(
            f"{path} can't be read ({error}); delete it, and reid evaluate --union will write it again"
        ) from error


def keep(run: Steps, step: Sealed, sites: Iterable[Domain], found: Mapping[str, Mapping[str, Scores]]) -> None:
    """Keep a step's scores in place of what was kept of it, and drop those of steps that are gone.

    A file that can't be read is replaced.

    Args:
        run: the run.
        step: the step, as it was when it was scored.
        sites: all sites of the gallery.
        found: see :func:`reid.run.scoring.in_one_gallery`.

    Raises:
        UsageError: another process is learning in the run.
        ArtefactError: something else is in the file's place.
        OSError: the file can't be written.
    """
    with locked(run.folder):
        there = [sealed.card["id"] for sealed in run.steps]
        try:
            kept = read(run.folder)
        except ArtefactError:
            kept = {}
        kept[step.card["id"]] = OneGallery(
            {site.name: {"same_camera": site.same_camera, "data": site.test_fingerprint} for site in sites},
            {metric: {name: Cell.of(one).scores for name, one in scores.items()} for metric, scores in found.items()},
        )
        steps = {
            name: {"domains": one.sites, "scores": one.scores} for name in there if (one := kept.get(name)) is not None
        }
        write_json(run.folder / FILE, {"kind": "one_gallery", "schema": SCHEMA, "code": code_version(), "steps": steps})


def _entry(entry: Mapping[str, Any]) -> OneGallery:
    """Check a step's entry; raises ValueError, KeyError, TypeError or AttributeError."""
    sites = {str(name): dict(site) for name, site in entry["domains"].items()}
    scores = {
        str(metric): {str(name): check_scores(one) for name, one in by_site.items()}
        for metric, by_site in entry["scores"].items()
    }
    if any(set(site) != {"same_camera", "data"} or not isinstance(site["data"], str) for site in sites.values()):
        raise ValueError("a domain lacks its fingerprint")
    if not sites or "cosine" not in scores or not set(scores) <= set(METRICS):
        raise ValueError("a step lacks its domains or has other metrics")
    if any(by_site.keys() != sites.keys() for by_site in scores.values()):
        raise ValueError("scores and domains do not belong together")
    return OneGallery(sites, scores)
