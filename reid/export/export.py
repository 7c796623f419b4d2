"""Export a sealed step as a bundle: one ONNX graph that takes uint8 RGB crops, and the proof that it does what the
model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle, Golden, write_bundle
from deploy.bundle.signature import sign
from domains.arrays import Embed
from domains.artefact import code_version
from domains.domain import Domain
from domains.errors import ArtefactError, ExportError, UsageError
from domains.synthetic import golden_crops
from prototypes.transport import Transport
from reid.export.card import card_of
from reid.export.graph import OPSET, export_graph
from reid.export.lowering import Lowered, Lowering, Trial, eight_bit, halved
from reid.export.parity import check_parity, crops_to_compare
from reid.export.ranges import answers, start_session
from reid.export.transports import route_transport, transport_since
from reid.network.embedding import embedder
from reid.network.model import ReidModel
from reid.progress import Progress
from reid.run import Run
from reid.run.sealed import Sealed
from reid.scores.evaluate import can_be_scored, evaluate

UNDECLARED = "not declared"
GOLDEN = 16


@dataclass(frozen=True)
class Provenance:
    """What whoever exports vouches for.

    Attributes:
        weights: licence of the weights, in one line.
        data: licence of the data that they were learned from.
        key: file of a private key to sign with.
    """

    weights: str = UNDECLARED
    data: str = UNDECLARED
    key: Path | None = None


def export_run(
    run: Run,
    folder: Path,
    *,
    step: int = -1,
    site: Domain | str | None = None,
    since: int | None = None,
    lowering: Lowering | None = None,
    provenance: Provenance | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export one step of a run, checked on real crops of the domains that it knows, and on drawn people where there are
    not enough.

    Args:
        run: the run.
        folder: where the bundle goes; must not exist.
        step: which step; by default the last.
        site: whose route, where the step's method keeps one per domain (:mod:`reid.run.routing`); by default the step's
            own network.
        since: the step whose galleries the bundle's transport carries; by default the one before, if it can.
        lowering: how precise the graph is; float32 by default.
        provenance: licences for manifest and card, and the key to sign with.
        progress: where to show it.

    Raises:
        ExportError: the step has no routes, or no transports since then; graph and model disagree: says at which batch
            size and by how much; or int8 loses too much: names the layers to blame. Nothing is written.
        UsageError: a key that can't sign, or a domain without the splits that int8 needs.
    """
    lowering, provenance = lowering or Lowering(), provenance or Provenance()
    trial = None if lowering.int8 is None else _trial(run, lowering.int8)
    if folder.exists():
        raise ArtefactError(f"{folder} exists already; choose another name or delete it first")
    if provenance.key is not None:
        sign(b"", provenance.key)
    served = _served(run, step, site, since)
    made = _lowered(run, served, lowering, trial, progress or Progress())
    spec = run.config.crop.spec()
    crops = golden_crops(GOLDEN, height=spec.height, width=spec.width)
    embed: Embed = (
        embedder(served.model)
        if made.body["precision"] == "fp32"
        else lambda shown: answers(start_session(made.data), shown)
    )
    body = _manifest(run, served, provenance) | {
        "parity": {str(batch): cosine for batch, cosine in made.parity.items()},
        **made.body,
    }
    return write_bundle(
        folder,
        model_onnx=made.data,
        golden=Golden(crops, embed(crops)),
        card=card_of(run, served.sealed, body),
        body=body,
        parent=served.sealed.card["id"],
        transport=None if made.transport is None else made.transport.to_bytes(),
        key=provenance.key,
    )


@dataclass(frozen=True)
class _Served:
    """The network that is exported.

    Attributes:
        model: the network.
        sealed: the step that it is of.
        site: whose route it is, if it is one.
        transport: leads into its feature space.
        transport_was_asked_for: whether the caller named the step that it leads from.
    """

    model: ReidModel
    sealed: Sealed
    site: str | None
    transport: Transport | None
    transport_was_asked_for: bool


def _served(run: Run, step: int, site: Domain | str | None, since: int | None) -> _Served:
    """Find the network that serves everyone, or a site; raises ExportError."""
    model, sealed = run.model(step)
    if site is None:
        return _Served(model, sealed, None, transport_since(run, sealed, since), since is not None)
    name, routed = site if isinstance(site, str) else site.name, run.route(site, step)
    if routed is None:
        raise ExportError(
            f"{sealed.folder.name} serves {name} by the network that serves every site: leave the site out"
        )
    return _Served(routed, sealed, name, route_transport(run, sealed, name, since, routed), since is not None)


def _lowered(run: Run, served: _Served, lowering: Lowering, trial: Trial | None, progress: Progress) -> Lowered:
    """Its graph at the precision that is asked for, compared with the network; raises ExportError."""
    model, spec, crops = served.model, run.config.crop.spec(), crops_to_compare(run)
    data = export_graph(model, golden_crops(2, height=spec.height, width=spec.width))
    body = {"precision": "fp32", "feature_space": model.feature_space(spec)}
    made = Lowered(data, check_parity(model, data, crops), body, served.transport)

    def check(lowered: bytes, least: float) -> Mapping[int, float]:
        return check_parity(model, lowered, crops, least)

    if lowering.half:
        return halved(made, check)
    if trial is not None:
        return eight_bit(made, trial, check, lowering, keep_transport=served.transport_was_asked_for, say=progress.say)
    return made


def _manifest(run: Run, served: _Served, provenance: Provenance) -> dict[str, Any]:
    """What the manifest says whatever the precision."""
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
    """What int8 is calibrated and judged on; raises UsageError if the domain lacks it."""
    if (why := can_be_scored(domain)) is not None:
        raise UsageError(f"int8 is judged on the test split of {domain.name}, and {why}; name another domain")
    if not len(domain.train):
        raise UsageError(
            f"int8 is calibrated on the train crops of {domain.name}, and it has none; name another domain"
        )

    def score(ask: Embed, hold: Embed) -> float:
        return evaluate(domain, ask, run.stores, gallery_embed=hold).mAP

    train, *test = (run.stores.get(domain, split).crops for split in (domain.train, domain.query, domain.gallery))
    return Trial(domain.name, domain.fingerprint, train, np.concatenate(test), score)
