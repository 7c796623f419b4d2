"""The score matrix a[t][j]: every model of a run on every domain, and the measures of forgetting.

Row t = 0 is the untrained start. Definitions, with T the last row, L the learned domains and s(j) the step that learned
j (after Díaz-Rodríguez et al. 2018 and Chaudhry et al. ECCV 2018):

* Seen-Avg of row t: mean over domains learned by t of a[t][j]; Unseen-Avg: mean over those never learned.
* plasticity: mean over L of a[s(j)][j].
* forgetting, all rows: mean over j with s(j) < T of max_{t < T} a[t][j] - a[T][j]; since learned: the maximum over s(j)
  <= t < T.
* backward transfer: mean over j with s(j) < T of a[T][j] - a[s(j)][j].
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domains.arrays import Float64s
from domains.artefact import code_version, read_bytes, read_json, write_atomic, write_json
from domains.errors import ArtefactError
from domains.npz import read_npz
from domains.scoring import Scores

SAMPLES = 1000
SCHEMA = 1
FILE, QUERIES = "scores.json", "queries.npz"
MAX_QUERIES = 512 * 2**20
PERCENT = ("mAP", "rank1", "rank5", "rank10", "mINP")
MOST = 2**53
"""Largest value of a score that is no percentage, as the number of queries."""

Values = Mapping[tuple[int, str], Float64s]


@dataclass(frozen=True, eq=False)
class Cell:
    """One model on one domain: the scores in percent, and the average precision (0..1) of each scored query."""

    scores: Mapping[str, float | int]
    ap: Float64s

    @classmethod
    def of(cls, scores: Scores) -> Cell:
        """Build a cell from a ranking's scores."""
        return cls(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in scores.to_dict().items()},
            scores.ap,
        )


@dataclass
class ScoreMatrix:
    """Cells by (row, domain), and which domains each row's step learned.

    Attributes:
        learned: for each row t the domains that step t learned; row 0 learned none.
        scored: where each domain lies and what its scores describe: ``{"path", "same_camera", "data"}``.
        cells: scores by (t, domain).
    """

    learned: list[tuple[str, ...]] = field(default_factory=lambda: [()])
    scored: dict[str, dict[str, Any]] = field(default_factory=dict)
    cells: dict[tuple[int, str], Cell] = field(default_factory=dict)

    def seen(self, row: int) -> list[str]:
        """Return the domains learned by row ``row``, in order."""
        return [name for names in self.learned[: row + 1] for name in names]

    def unseen(self) -> list[str]:
        """Return the scored domains that no step learned."""
        known = set(self.seen(len(self.learned)))
        return [name for name in self.scored if name not in known]

    def drop_rows(self, start: int) -> None:
        """Drop the rows from ``start`` on."""
        del self.learned[start:]
        self.cells = {(row, name): cell for (row, name), cell in self.cells.items() if row < start}

    def drop_domain(self, name: str) -> None:
        """Drop a domain: its scores, its location, and the record that it was learned."""
        self.learned = [tuple(other for other in names if other != name) for names in self.learned]
        self.scored = {other: entry for other, entry in self.scored.items() if other != name}
        self.cells = {(row, other): cell for (row, other), cell in self.cells.items() if other != name}

    def value(self, row: int, name: str, metric: str = "mAP") -> float | None:
        """Return one score in percent, or None if it is missing."""
        cell = self.cells.get((row, name))
        return None if cell is None else float(cell.scores[metric])

    def average(self, row: int, names: list[str], metric: str = "mAP") -> float | None:
        """Return the mean over domains, or None if any is missing."""
        mean: float | None = _mean(names, lambda name: self.value(row, name, metric))
        return mean

    def effect(self, row: int) -> list[dict[str, Any]]:
        """Return one step's effect on every scored domain: mAP before and after, the change, and rank-1 after."""
        new, seen = set(self.learned[row]), set(self.seen(row))
        out = []
        for name in self.scored:
            before, after = self.value(row - 1, name), self.value(row, name)
            out.append(
                {
                    "domain": name,
                    "role": "new" if name in new else "learned before" if name in seen else "not learned",
                    "before": before,
                    "after": after,
                    "change": None if before is None or after is None else round(after - before, 4),
                    "rank1": self.value(row, name, "rank1"),
                }
            )
        return out

    def summary(self) -> dict[str, Any]:
        """Return every row's averages and the run's plasticity, forgetting and backward transfer, each with its 95 %
        interval.
        """
        points = {key: np.array([float(cell.scores["mAP"])]) for key, cell in self.cells.items()}
        draws = self._bootstrap()
        rows = []
        for row, names in enumerate(self.learned):
            entry: dict[str, Any] = {"step": row, "learned": list(names)}
            for label, group in (("seen", self.seen(row)), ("unseen", self.unseen())):
                entry[label] = {"mAP": self.average(row, group), "rank1": self.average(row, group, "rank1")}
                entry[label]["interval"] = _interval(_mean(group, lambda name, row=row: draws.get((row, name))))  # type: ignore[misc]
            rows.append(entry)
        measures: dict[str, Any] = {}
        for name, measure in self._measures().items():
            point = measure(points)
            measures[name] = {
                "mAP": None if point is None else round(float(point[0]), 4),
                "interval": _interval(measure(draws)),
            }
        return {"rows": rows, **measures}

    def _measures(self) -> dict[str, Callable[[Values], Float64s | None]]:
        last = len(self.learned) - 1
        step_of = {name: row for row, names in enumerate(self.learned) for name in names}
        old = [name for name, row in step_of.items() if row < last]

        def forgotten(values: Values, name: str, first: int) -> Float64s | None:
            before = [values[row, name] for row in range(first, last) if (row, name) in values]
            now = values.get((last, name))
            return None if now is None or not before else np.max(before, axis=0) - now

        def moved(values: Values, name: str) -> Float64s | None:
            now, then = values.get((last, name)), values.get((step_of[name], name))
            return None if now is None or then is None else now - then

        return {
            "plasticity": lambda values: _mean(list(step_of), lambda name: values.get((step_of[name], name))),
            "forgetting_all_rows": lambda values: _mean(old, lambda name: forgotten(values, name, 0)),
            "forgetting_since_learned": lambda values: _mean(old, lambda name: forgotten(values, name, step_of[name])),
            "backward_transfer": lambda values: _mean(old, lambda name: moved(values, name)),
        }

    def _bootstrap(self) -> dict[tuple[int, str], Float64s]:
        """Draw mAP ``[SAMPLES]`` in percent for each cell; all rows of a domain share the resampled queries, so that
        differences are paired.
        """
        draws: dict[tuple[int, str], Float64s] = {}
        for number, name in enumerate(sorted({name for _, name in self.cells})):
            rows = [row for row, other in self.cells if other == name]
            lengths = {len(self.cells[row, name].ap) for row in rows}
            if len(lengths) != 1:
                continue  # the domain's queries changed between rows: nothing can be paired
            ap = np.stack([self.cells[row, name].ap for row in rows])
            generator = np.random.default_rng((20_26, number))
            picks = generator.integers(0, ap.shape[1], (SAMPLES, ap.shape[1]))
            for row, precisions in zip(rows, ap, strict=True):
                draws[row, name] = 100 * precisions[picks].mean(1)
        return draws

    def write(self, folder: Path) -> None:
        """Write ``scores.json`` and the per-query values behind its intervals."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            f"{row}/{name}": cell.ap.astype(np.float32) for (row, name), cell in self.cells.items()
        }
        np.savez_compressed(buffer, **arrays)
        write_atomic(folder / QUERIES, buffer.getvalue())
        summary = self.summary()
        for row in summary["rows"]:
            row["scores"] = {name: dict(cell.scores) for (at, name), cell in self.cells.items() if at == row["step"]}
        write_json(
            folder / FILE,
            {"kind": "scores", "schema": SCHEMA, "code": code_version(), "domains": self.scored, **summary},
        )

    @classmethod
    def read(cls, folder: Path) -> ScoreMatrix:
        """Read what :meth:`write` wrote; an absent file is an empty matrix. Raises ArtefactError."""
        if not (folder / FILE).exists():
            return cls()
        stored = read_json(folder / FILE)
        if not isinstance(stored, dict) or stored.get("kind") != "scores" or stored.get("schema") != SCHEMA:
            raise ArtefactError(
                f"{folder / FILE} is not a score matrix of schema {SCHEMA}; delete it, and reid learn will score again"
            )
        try:
            queries = read_npz(read_bytes(folder / QUERIES, MAX_QUERIES), limit=MAX_QUERIES)
            if [row["step"] for row in stored["rows"]] != list(range(len(stored["rows"]))):
                raise ValueError("its rows are not those of steps in order")
            cells = {
                (at, str(name)): _cell(scores, queries[f"{at}/{name}"])
                for at, row in enumerate(stored["rows"])
                for name, scores in row["scores"].items()
                if f"{at}/{name}" in queries
            }
            scored = {str(name): _place(entry) for name, entry in stored["domains"].items()}
            return cls([tuple(map(str, row["learned"])) for row in stored["rows"]], scored, cells)
        except (ArtefactError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(
                f"{folder / FILE} and {QUERIES} can't be read ({error}); delete both, and reid learn will score again"
            ) from error


def _cell(scores: dict[str, Any], ap: NDArray[Any]) -> Cell:
    """Check one cell; raises ValueError or TypeError."""
    checked = check_scores(scores)
    if ap.ndim != 1 or ap.dtype.kind != "f" or not len(ap) or not np.all((ap >= 0) & (ap <= 1)):
        raise ValueError("the average precisions of a cell are not numbers from 0 to 1")
    return Cell(checked, ap.astype(np.float64))


def check_scores(scores: dict[str, Any]) -> dict[str, float | int]:
    """Check scores that were read from a file; raises ValueError or TypeError."""
    if not {"mAP", "rank1"} <= set(scores):
        raise ValueError("a cell lacks its scores")
    for name, value in scores.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value <= (MOST if name not in PERCENT else 100):  # nor is NaN
            raise ValueError(f"the score {name!r:.40} can't be {value!r:.40}")
    if scores.get("queries", 1) < 1 or not isinstance(scores.get("queries", 1), int):
        raise ValueError(f"a cell can't be of {scores['queries']!r:.40} queries")
    return dict(scores)


def _place(entry: dict[str, Any]) -> dict[str, Any]:
    """Check where a scored domain was; raises ValueError, KeyError or TypeError."""
    if (
        not isinstance(entry["path"], str)
        or "\0" in entry["path"]
        or entry["same_camera"] not in ("drop", "keep", None)
    ):
        raise ValueError("a domain has no place")
    return dict(entry)


def _mean(names: list[str], value: Callable[[str], Any]) -> Any:
    values = [value(name) for name in names]
    return None if not values or any(item is None for item in values) else sum(values) / len(values)


def _interval(draws: Float64s | None) -> list[float] | None:
    return None if draws is None else [round(float(bound), 4) for bound in np.percentile(draws, (2.5, 97.5))]
