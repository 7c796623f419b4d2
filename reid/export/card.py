"""The model card: what a bundle is, what it learned, how well it does, what it is for and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from domains.artefact import code_version
from domains.scoring import bootstrap_interval
from domains.text import shown
from reid.run import Run
from reid.run.routing import routing_term
from reid.run.sealed import Sealed


class Taught(NamedTuple):
    """A learned domain, with its train split's identities and images where known."""

    name: str
    identities: int | None
    images: int | None


class Scored(NamedTuple):
    """A domain's scores in percent, with the 95 % interval of its mAP over the queries."""

    name: str
    learned: bool
    mean_ap: float
    interval: tuple[float, float]
    rank1: float
    queries: int


def card_of(run: Run, sealed: Sealed, body: Mapping[str, Any], *, sites_bytes: int = 0) -> str:
    """Write the model card of a sealed step; ``sites_bytes`` is the size of the sites' statistics in the bundle."""
    learned = [(entry, step) for step in run.steps[: sealed.index + 1] for entry in step.card["domains"]]
    taught = [
        Taught(
            entry["name"],
            len(step.card["classes"]) if len(step.learned) == 1 else None,
            entry.get("crops", {}).get("train"),
        )
        for entry, step in learned
    ]
    scored = []
    for (row, name), cell in run.scores.cells.items():
        known = any(entry["name"] == name for entry, _ in learned)
        if row == sealed.index and _was_scored(run, sealed, body, name, learned=known):
            low, high = bootstrap_interval(cell.ap)
            scored.append(
                Scored(
                    name,
                    known,
                    cell.scores["mAP"],
                    (100 * low, 100 * high),
                    cell.scores["rank1"],
                    int(cell.scores["queries"]),
                )
            )
    return card_text(body, taught, scored, parent=sealed.card["id"], producer=code_version(), sites_bytes=sites_bytes)


def _was_scored(run: Run, sealed: Sealed, body: Mapping[str, Any], name: str, *, learned: bool) -> bool:
    """Whether a domain's score is the exported network's, in its metric: where sites have networks and metrics of their
    own, those were scored.
    """
    term, site, measured = routing_term(run.taught(sealed.index).card), body["site"], run.statistics(sealed.index)
    metric = (body.get("metric") or {}).get("name", "none")
    own = {f"site:{name}"} | ({"pooled", f"mixed:{name}"} if list(measured) == [name] else set())
    if metric not in (own if name in measured else {"none"}):
        return False
    if term is None:
        return True
    return name == site if site is not None else term.beside and not learned


def card_text(
    body: Mapping[str, Any],
    taught: Sequence[Taught],
    scored: Sequence[Scored],
    *,
    parent: str,
    producer: str,
    sites_bytes: int = 0,
) -> str:
    """Write the card as Markdown.

    Args:
        body: the manifest's own keys.
        taught: learned domains in order.
        scored: the float32 model's scores.
        parent: id of the sealed step.
        producer: the code's version.
        sites_bytes: size of the sites' statistics in the bundle.
    """
    crop, licences = body["crop"], body["licences"]
    parts = [
        "# Person re-identification encoder",
        f"Measures how similar two pictures of people are. {body['backbone']}, {body['dim']} dimensions, "
        f"{body['precision']}; method of the last step: {body['method']}.",
        _facts(body, parent, producer, sites_bytes),
        "## Use",
        "Ranks a gallery of person crops by similarity to a query, within one operator's cameras: which of the people "
        "seen here may be in this picture? "
        f"Takes RGB crops of single people, resized to {crop['height']}×{crop['width']}. A match is a hint for a "
        "person to check.",
        "## Out of scope",
        "- Telling who someone is: embeddings hold no name, and mostly reflect how similar clothes are.\n"
        "- Decisions about people without human review.\n"
        "- Covert identification, or real-time identification in public where the law forbids it.\n"
        "- The same person on another day or in other clothes, faces, and crops with several people: none of this "
        "was tested.\n"
        "- Cameras unlike those below: expect lower scores than in these tables. Calibrate and measure on your own "
        "crops first.",
        "Embeddings are personal data derived from pictures of people: store, share and erase them as such.",
        "## Learned",
        _taught(taught),
        "## Scores",
        _scored(scored, body["precision"]),
    ]
    if "quantisation" in body:
        parts += ["## Quantisation", _quantised(body["quantisation"])]
    parts += [
        "## Calibration",
        "No threshold was calibrated when this card was written. `reid calibrate` adds thresholds to `bundle.json`, "
        "under `thresholds`; the values there are authoritative.",
        "## Licences",
        f"- weights: {licences['weights']}\n- data: {licences['data']}",
    ]
    return shown("\n\n".join(parts) + "\n", lines=True)


def _facts(body: Mapping[str, Any], parent: str, producer: str, sites_bytes: int) -> str:
    parity, metric = body["parity"], body.get("metric")
    rows = {
        "feature space": f"`{body['feature_space']}`",
        "exported from": f"step {body['step']}, `{parent}`"
        + (f", the network of site {body['site']}" if body.get("site") else ""),
        **({"metric": f"{metric['name']}, of the sites below"} if metric else {}),
        **({"statistics of sites": _statistics(metric["sites"], sites_bytes)} if metric and "sites" in metric else {}),
        "precision": f"{body['precision']}, ONNX opset {body['opset']}",
        "agreement with the trained model": (
            f"cosine at least {min(parity.values()):.6f} (batches of {', '.join(parity)})"
        ),
        "made by": f"lifelong-reid {producer}",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _statistics(sites: Sequence[str], size: int) -> str:
    return (
        f"{', '.join(map(_cell, sites))}: {size / 1000:.0f} kB, a mean and a covariance over each site's people, for "
        "queries of a known site; `reid export --no-sites` leaves them out"
    )


def _taught(taught: Sequence[Taught]) -> str:
    if not taught:
        return "Nothing yet: this is the untrained start."
    rows = [
        f"| {number} | {_cell(item.name)} | {_known(item.identities)} | {_known(item.images)} |"
        for number, item in enumerate(taught, 1)
    ]
    return "\n".join(["| | domain | identities | images |", "|---:|---|---:|---:|", *rows])


def _scored(scored: Sequence[Scored], precision: str) -> str:
    if not scored:
        return "No domain was scored with this network in this metric; `reid evaluate DOMAIN --bundle …` scores one."
    rows = [
        f"| {_cell(item.name)} | {'yes' if item.learned else 'no'} | {item.mean_ap:.1f} | {item.interval[0]:.1f} – "
        f"{item.interval[1]:.1f} "
        f"| {item.rank1:.1f} | {item.queries} |"
        for item in scored
    ]
    note = "" if precision == "fp32" else " Measured with the float32 model."
    about = f"Percent, on each domain's own queries and gallery; interval: 95 %, bootstrap over queries.{note}"
    return "\n".join(
        [about, "", "| domain | learned | mAP | interval | rank-1 | queries |", "|---|---|---:|---:|---:|---:|", *rows]
    )


def _quantised(body: Mapping[str, Any]) -> str:
    left_out = body["left_out"]
    lines = [
        f"8-bit weights per channel and activations, calibrated on {body['crops']} train crops of {body['domain']}. "
        f"mAP there: {body['map_fp32']:.2f} in float32, {body['map_int8']:.2f} in int8, "
        f"{body['map_mixed']:.2f} with int8 queries on a float32 gallery. "
        f"Smallest cosine to the float32 embeddings of its test crops: {body['cosine']:.4f}.",
        f"Left in float32: {len(left_out)} of {body['layers']} layers"
        + (f" ({', '.join(left_out)})." if left_out else "."),
    ]
    if body["own_space"]:
        lines.append(
            "Too far from float32 to share its feature space: galleries embedded in float32 have to be carried over "
            "(`reid gallery upgrade`)."
        )
    return "\n\n".join(lines)


def _known(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
