"""The small-5 study's results as Markdown: all of them in ``docs/results.md``, a summary in ``README.md``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

METHODS = ("fine_tune", "fusion", "lwf", "affinity", "lstkc", "lstkc++", "dask", "dkp", "dkp++")
METHODS += ("default, no metric", "default", "hyper_merged", "hyper_averaged", "hyper_routed")
METHODS += ("hyper_default, no metric", "hyper_default", "metric", "joint")
"""The rows of every table, in this order; *no metric* is a method as it was before it had a site's metric."""
SHOWN = ("fine_tune", "metric", "dkp++", "default", "joint")
"""The rows of the README, after the start's own."""
ROOT = Path(__file__).parent.parent
DOCUMENT, README = ROOT / "docs" / "results.md", ROOT / "README.md"
MARKS = ("<!-- tables: written by a benchmark -->", "<!-- tables: end -->")
TITLES = (("test", "From an ImageNet start"), ("strong", "From a person-trained start (small-5-strong)"))

Result = dict[str, Any]


def table(results: list[Result], kind: str = "test") -> str:
    """Markdown: means over seeds of order 1 with the spread (sample standard deviation), and order 2."""
    columns = ("method", "order", "seeds", "Seen mAP", "Seen R1", "Unseen mAP", "Unseen R1", "plasticity")
    columns += ("forgetting (all rows)", "forgetting (since learned)", "backward transfer")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    found = [result for result in results if result["kind"] == kind]
    for method in METHODS:
        for order in (1, 2):
            group = [result for result in found if result["method"] == method and result["order"] == order]
            if not group:
                continue
            cells = _cells(
                group, ("plasticity", "forgetting_all_rows", "forgetting_since_learned", "backward_transfer")
            )
            rows.append(
                f"| {method} | {order} | {len(group)} | " + " | ".join(_spread(values) for values in cells) + " |"
            )
    return "\n".join(rows)


def summary(results: list[Result]) -> str:
    """Markdown: a few methods in order 1 from the ImageNet start, in the columns that tell most."""
    columns = ("method", "Seen mAP", "Seen R1", "Unseen mAP", "Unseen R1", "when just learned", "forgotten since")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    if begun := next((result for result in results if (result["kind"], result["order"]) == ("test", 1)), None):
        rows.append(f"| the start | {' | '.join(_spread([value]) for value in _start(begun))} | – | – |")
    for method in SHOWN:
        group = [
            result for result in results if (result["kind"], result["method"], result["order"]) == ("test", method, 1)
        ]
        if group:
            cells = _cells(group, ("plasticity", "forgetting_since_learned"))
            rows.append(f"| `{method}` | {' | '.join(_spread(values) for values in cells)} |")
    return "\n".join(rows)


def costs(results: list[Result], kind: str = "test") -> str:
    """Markdown: what the last step of order 1, seed 0 needed and kept, and how retrieval does on a gallery that is not
    embedded again.
    """
    columns = (
        "method",
        "memory per domain, KB",
        "transport, KB",
        "further weights, MB",
        "teachers, MB",
        "seconds per step",
        "of that at its end",
    )
    columns += ("reindexed", "carried", "as it was")
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method in METHODS:
        group = [
            result
            for result in results
            if (result["kind"], result["method"], result["order"], result["seed"]) == (kind, method, 1, 0)
        ]
        for result in group:
            size, steps = result["bytes"][-1], len(result["seconds"])
            ending = result.get("seconds_ending") or [0.0]
            carried = [
                [entry[name] for entry in result.get("without_reindexing", {}).values()]
                for name in ("reindexed", "carried", "as_it_was")
            ]
            rows.append(
                f"| {method} | {statistics.mean(step['memory'] for step in result['bytes']) / 1e3:.1f} | "
                f"{size.get('transport', 0) / 1e3:.0f} | "
                f"{size.get('kept', 0) / 1e6:.1f} | {size['teachers'] / 1e6:.1f} | "
                f"{(sum(result['seconds']) + sum(ending)) / steps:.0f} | "
                f"{statistics.mean(ending):.0f} | "
                + " | ".join(_spread([statistics.mean(v)]) if v and None not in v else "–" for v in carried)
                + " |"
            )
    return "\n".join(rows)


def one_gallery(results: list[Result], kind: str = "test") -> str:
    """Markdown: queries of the learned sites in one gallery of all sites, order 1, by metric; mean mAP over sites."""
    kinds = ("cosine", "pooled", "own", "mixed")
    rows = [f"| method | seeds | {' | '.join(kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    for method in METHODS:
        group = [
            result["one_gallery"]
            for result in results
            if (result["kind"], result["method"], result["order"]) == (kind, method, 1) and "one_gallery" in result
        ]
        if group:
            cells = [
                [statistics.mean(mAP for mAP, _ in found[name].values()) if name in found else None for found in group]
                for name in kinds
            ]
            rows.append(f"| {method} | {len(group)} | {' | '.join(_spread(values) for values in cells)} |")
    return "\n".join(rows)


def paired_table(results: list[Result], kind: str, against: str) -> str:
    """Markdown: variants of a method, and how each differs from one of them, paired over seeds."""
    found = [result for result in results if result["kind"] == kind]
    columns = (
        "method",
        "seeds",
        "Seen mAP",
        f"against {against}",
        "Unseen mAP",
        "plasticity",
        "forgetting (since learned)",
        "seconds per step",
    )
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    seen = {(result["method"], result["seed"]): result["summary"]["rows"][-1]["seen"]["mAP"] for result in found}
    for method in dict.fromkeys(result["method"] for result in found):
        group = [result for result in found if result["method"] == method]
        paired = [
            seen[method, result["seed"]] - seen[against, result["seed"]]
            for result in group
            if (against, result["seed"]) in seen
        ]
        cells = [
            [result["summary"]["rows"][-1]["seen"]["mAP"] for result in group],
            [] if method == against else paired,
        ]
        cells += [[result["summary"]["rows"][-1]["unseen"]["mAP"] for result in group]]
        cells += [
            [result["summary"][name]["mAP"] for result in group] for name in ("plasticity", "forgetting_since_learned")
        ]
        seconds = statistics.mean(
            (sum(result["seconds"]) + sum(result["seconds_ending"])) / len(result["seconds"]) for result in group
        )
        rows.append(f"| {method} | {len(group)} | {' | '.join(_spread(values) for values in cells)} | {seconds:.0f} |")
    return "\n".join(rows)


def matrix(result: Result) -> str:
    """Markdown: one run's whole matrix, mAP / rank-1."""
    names = list(dict.fromkeys(key.split("/")[1] for key in result["matrix"]))
    lines = [f"| after | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in result["summary"]["rows"]:
        cells = [result["matrix"][f"{row['step']}/{name}"] for name in names]
        lines.append(
            f"| {'+'.join(row['learned']) or 'start'} | "
            + " | ".join(f"{cell['mAP']:.1f} / {cell['rank1']:.1f}" for cell in cells)
            + " |"
        )
    return "\n".join(lines)


def whole(results: list[Result]) -> str:
    """Markdown: every table that these results can fill."""
    parts = ["mAP and rank-1 in percent; ± is the standard deviation over seeds."]
    for kind, title in TITLES:
        if any(result["kind"] == kind for result in results):
            parts += [
                f"### {title}",
                table(results, kind),
                "What it takes, order 1, seed 0; the last three columns are Seen-Avg mAP without re-indexing:",
                costs(results, kind),
            ]
        if any(result["kind"] == kind and "one_gallery" in result for result in results):
            parts += [
                "Queries of the learned sites in one gallery of all sites, after the last step, by metric:",
                one_gallery(results, kind),
            ]
    if any(result["kind"] == "parts" for result in results):
        parts += [
            "### Each part of `default` taken away (small-5-dev, order 1, without the metric)",
            paired_table(results, "parts", "default"),
        ]
    if any(result["kind"] == "guides" for result in results):
        tested = [
            result
            for result in results
            if (result["kind"], result["method"], result["order"]) == ("test", "hyper_default, no metric", 1)
        ]
        guided = [{**result, "kind": "guides"} for result in tested] + [
            result for result in results if result["kind"] == "guides"
        ]
        parts += [
            "### What guides the hypernetwork (test splits, order 1)",
            paired_table(guided, "guides", "hyper_default, no metric"),
        ]
    if any(result["kind"] == "heads" for result in results):
        parts += ["### Which head models the distribution (small-5-dev, order 1, from an OSNet x0.25 of MSMT17)"]
        parts += [paired_table(results, "heads", "dkp, head convolution")]
    shown = [
        result
        for result in results
        if (result["kind"], result["order"], result["seed"]) == ("test", 1, 0) and result["method"] in METHODS
    ]
    parts += (
        ["<details><summary>The whole matrix of every method (order 1, seed 0; mAP / rank-1)</summary>"]
        if shown
        else []
    )
    for result in shown:
        parts += [f"`{result['method']}`:", matrix(result)]
    parts += ["</details>"] if shown else []
    return "\n\n".join(parts)


def write(page: Path, text: str) -> None:
    """Put tables into a page, between its marks."""
    before, rest = page.read_text("utf-8").split(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}", "utf-8")


def written(page: Path) -> str:
    """Return what stands between a page's marks."""
    return page.read_text("utf-8").split(MARKS[0])[1].split(MARKS[1])[0].strip()


def _cells(group: list[Result], names: tuple[str, ...]) -> list[list[float | None]]:
    """Values over seeds: Seen and Unseen after the last step, mAP and rank-1, then these parts of the summary."""
    lasts = [result["summary"]["rows"][-1] for result in group]
    last = [[row[which][measure] for row in lasts] for which in ("seen", "unseen") for measure in ("mAP", "rank1")]
    return last + [[result["summary"][name]["mAP"] for result in group] for name in names]


def _start(result: Result) -> list[float | None]:
    """Seen and Unseen before the first step, mAP and rank-1, of the domains that are learned in the end."""
    learned = {name for row in result["summary"]["rows"] for name in row["learned"]}
    start = {key.partition("/")[2]: scores for key, scores in result["matrix"].items() if key.startswith("0/")}
    return [
        statistics.mean(scores[measure] for name, scores in start.items() if (name in learned) is seen)
        for seen in (True, False)
        for measure in ("mAP", "rank1")
    ]


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{statistics.mean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")
