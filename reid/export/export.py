"""Export a sealed step as a bundle: one ONNX graph that takes uint8 RGB crops, and proof that it matches the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle, Golden, write_bundle
from deploy.bundle.manifest import POOLED
from deploy.bundle.signature import sign
from domains.arrays import Embed
from domains.artefact import code_version
from domains.domain import Domain
from domains.errors import ArtefactError, ExportError, UsageError
from domains.synthetic import golden_crops
from prototypes.metric import Metric, SiteStatistics, sites_to_bytes
from prototypes.transport import Transport
from reid.export.card import card_of
from reid.export.graph import OPSET, export_graph
from reid.export.lowering import Lowered, Lowering, Trial, eight_bit, halved
from reid.export.parity import check_parity, crops_to_compare
from reid.export.ranges import answers, start_session
from reid.export.transports import route_transport, transport_since
from reid.network.embedding import embedder
from reid.network.model import MetricLayer, ReidModel
from reid.progress import Progress
from reid.run import Run
from reid.run.sealed import Sealed
from reid.scores.evaluate import can_be_scored, evaluate

UNDECLARED = "not declared"
NONE = "none"
GOLDEN = 16


@dataclass(frozen=True)
class Provenance:
    """What the exporter vouches for.

    Attributes:
        weights: licence of the weights, in one line.
        data: licence of the data that they were trained on.
        key: file of a private key to sign with.
    """

    weights: str = UNDECLARED
    data: str = UNDECLARED
    key: Path | None = None


@dataclass(frozen=True)
class Serving:
    """Whom a bundle serves.

    Attributes:
        site: whose route to export, where the step's method keeps one per domain (:mod:`reid.run.routing`); by default
            the step's own network.
        metric: ``pooled``, one for the queries and galleries of all sites; ``site:NAME``, one site's own;
            ``mixed:NAME``, for its queries in a gallery of all; or ``none``. By default the named site's own where it
            has one, else pooled, else none.
        since: the step whose galleries the bundle's transport carries; by default the previous one, if possible.
        sites: put the sites' statistics into a bundle of the pooled metric, so that a query can be answered in the
            mixed metric of its site.
    """

    site: Domain | str | None = None
    metric: str | None = None
    since: int | None = None
    sites: bool = True


def export_run(
    run: Run,
    folder: Path,
    *,
    step: int = -1,
    serving: Serving | None = None,
    lowering: Lowering | None = None,
    provenance: Provenance | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export one step of a run, checked on real crops of the domains it knows, and on drawn people where those are few.

    Args:
        run: the run.
        folder: where the bundle goes; must not exist.
        step: which step; by default the last.
        serving: whom it serves: everyone, or one site.
        lowering: the precision of the graph; float32 by default.
        provenance: licences for the manifest and card, and the key to sign with.
        progress: where to show progress.

    Raises:
        ExportError: the step has no routes, or no transports since then; graph and model disagree (the message says at
            which batch size and by how much); or int8 loses too much (it names the layers to blame). Nothing is
            written.
        UsageError: a key that can't sign, a domain without the splits that int8 needs, or a metric that the step does
            not have.
    """
    lowering, provenance = lowering or Lowering(), provenance or Provenance()
    if folder.exists():
        raise ArtefactError(f"{folder} already exists; choose another name or delete it first")
    if provenance.key is not None:
        sign(b"", provenance.key)
    run.sealed(step)
    trial = None if lowering.int8 is None else _trial(run, lowering.int8)
    served = _served(run, step, serving or Serving())
    lowered = _lowered(run, served, lowering, trial, progress or Progress())
    spec = run.config.crop.spec()
    crops = golden_crops(GOLDEN, height=spec.height, width=spec.width)
    embed: Embed = (
        embedder(served.model)
        if lowered.body["precision"] == "fp32"
        else lambda batch: answers(start_session(lowered.data), batch)
    )
    body = _manifest(run, served, provenance) | {
        "parity": {str(batch): cosine for batch, cosine in lowered.parity.items()},
        **lowered.body,
    }
    parts = {
        name: part.to_bytes()
        for name, part in (("transport.npz", lowered.transport), ("metric.npz", lowered.metric))
        if part is not None
    }
    if served.sites:
        parts["sites.npz"] = sites_to_bytes(served.sites)
    return write_bundle(
        folder,
        model_onnx=lowered.data,
        golden=Golden(crops, embed(crops)),
        card=card_of(run, served.sealed, body, sites_bytes=len(parts.get("sites.npz", b""))),
        body=body,
        parent=served.sealed.card["id"],
        parts=parts,
        key=provenance.key,
    )


@dataclass(frozen=True)
class _Served:
    """The network that is exported.

    Attributes:
        model: the network, ending with the metric.
        sealed: the step that it belongs to.
        site: whose route it is, if it is one.
        transport: leads into the network's own feature space.
        transport_was_asked_for: whether the caller named the step that it starts from.
        metric: the metric, with its name, the network's own feature space and the names of the sites whose statistics
            go with it; None for none.
        sites: these statistics.
    """

    model: ReidModel
    sealed: Sealed
    site: str | None
    transport: Transport | None
    transport_was_asked_for: bool
    metric: tuple[Metric, dict[str, Any]] | None = None
    sites: Mapping[str, SiteStatistics] = field(default_factory=dict)


def _served(run: Run, step: int, serving: Serving) -> _Served:
    """Find the network that serves everyone, or a site, and its metric; raises ExportError."""
    (model, sealed), site, since = run.model(step), serving.site, serving.since
    name = site.name if isinstance(site, Domain) else site
    chosen = _metric_name(run, sealed, name, serving.metric)
    metric = run.metric(chosen, sealed.index)
    if site is None or name is None:
        found = _Served(model, sealed, None, transport_since(run, sealed, since), since is not None)
    elif (routed := run.route(site, step)) is not None:
        transport = route_transport(run, sealed, name, since, routed)
        found = _Served(routed, sealed, name, transport, since is not None)
    else:
        raise ExportError(
            f"{sealed.folder.name} serves {name} with the network that serves every site; leave the site out"
            + (f", or name its metric (site:{name})" if name in run.statistics(sealed.index) else "")
        )
    if metric is None:
        return found
    about: dict[str, Any] = {"name": chosen, "network": found.model.feature_space(run.config.crop.spec())}
    sites = run.statistics(sealed.index) if chosen == POOLED and serving.sites else {}
    if sites:
        about |= {"sites": list(sites)}
    found.model.metric = MetricLayer(metric)
    return replace(found, metric=(metric, about), sites=sites)


def _metric_name(run: Run, sealed: Sealed, site: str | None, wanted: str | None) -> str:
    """The metric that was asked for, or what serves a site, or everyone."""
    if wanted is not None:
        return wanted
    known = run.statistics(sealed.index)
    if site is not None and site in known:
        return f"site:{site}"
    return POOLED if known else NONE


def _lowered(run: Run, served: _Served, lowering: Lowering, trial: Trial | None, progress: Progress) -> Lowered:
    """Return the network's graph at the requested precision, compared with the network; raises ExportError."""
    model, spec, crops = served.model, run.config.crop.spec(), crops_to_compare(run)
    data = export_graph(model, golden_crops(2, height=spec.height, width=spec.width))
    body: dict[str, Any] = {"precision": "fp32", "feature_space": model.feature_space(spec)}
    metric, about = served.metric or (None, None)
    body |= {"metric": about} if about else {}
    full = Lowered(data, check_parity(model, data, crops), body, served.transport, metric)

    def check(lowered: bytes, least: float) -> Mapping[int, float]:
        return check_parity(model, lowered, crops, least)

    if lowering.half:
        return halved(full, check)
    if trial is not None:
        return eight_bit(full, trial, check, lowering, keep_transport=served.transport_was_asked_for, say=progress.say)
    return full


def _manifest(run: Run, served: _Served, provenance: Provenance) -> dict[str, Any]:
    """Return the part of the manifest that does not depend on the precision."""
    sealed = served.sealed
    return {
        "site": served.site,
        "dim": served.model.dim,
        "crop": run.config.crop.spec().to_dict(),
        "backbone": run.config.model.backbone.rsplit("/", 1)[-1],
        "opset": OPSET,
        "step": sealed.index,
        "domains": [name for done in run.steps[: sealed.index + 1] for name in done.learned],
        "method": sealed.card["method"]["name"] if sealed.card["method"] else "none",
        "licences": {"weights": provenance.weights, "data": provenance.data},
        "thresholds": {},
        "producer": {"lifelong-reid": code_version()}
        | {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    }


def _trial(run: Run, domain: Domain) -> Trial:
    """Return what int8 is calibrated and judged on; raises UsageError if the domain lacks it."""
    if (why := can_be_scored(domain)) is not None:
        raise UsageError(f"int8 is judged on the test split of {domain.name}, but {why}; name another domain")
    if not len(domain.train):
        raise UsageError(
            f"int8 is calibrated on the train crops of {domain.name}, but it has none; name another domain"
        )

    def score(query_embed: Embed, gallery_embed: Embed) -> float:
        return evaluate(domain, query_embed, run.stores, gallery_embed=gallery_embed).mAP

    train, *test = (run.stores.get(domain, split).crops for split in (domain.train, domain.query, domain.gallery))
    return Trial(domain.name, domain.fingerprint, train, np.concatenate(test), score)
