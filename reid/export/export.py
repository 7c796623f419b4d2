"""Export a sealed step as a bundle: one ONNX graph that takes uint8 RGB crops, and the proof that it does what the model does.

The only module of this room that needs torch.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.bundle import Bundle, write_bundle
from deploy.bundle.signature import sign
from domains.arrays import Embed, Float32s, Float64s
from domains.artefact import code_version
from domains.domain import Domain
from domains.errors import ArtefactError, ExportError, UsageError
from domains.scoring import bootstrap_interval
from domains.synthetic import golden_crops
from prototypes.transport import Transport
from reid.batches.loader import CropStore
from reid.export.card import Scored, Taught, card_text
from reid.export.lowering import Lowered, Lowering, Trial, eight_bit, halved
from reid.export.ranges import answers, start_session
from reid.network.model import ReidModel
from reid.progress import Progress
from reid.run import Run
from reid.run.routing import routing_term
from reid.run.sealed import Sealed
from reid.scores.evaluate import can_be_scored, evaluate

OPSET = 18
PARITY_BATCHES = (1, 2, 7, 32)
PARITY_COSINE = 0.9999
UNDECLARED = "not declared"
GOLDEN = 16
UNIT = 1e-3
"""How far from 1 the length of a graph's answers may be."""

COLLAPSED = 0.9999
"""Mean cosine between different crops above which a model says the same of everyone."""


class _Embedder(nn.Module):
    """Only the embedding path: crops in, unit vectors out."""

    def __init__(self, model: ReidModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        return self.model.embed(crops)


def export_run(
    run: Run,
    folder: Path,
    *,
    step: int = -1,
    site: Domain | str | None = None,
    since: int | None = None,
    lowering: Lowering | None = None,
    licences: Mapping[str, str] | None = None,
    key: Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export one step of a run, checked on real crops of the domains that it knows, and on drawn people where there are not enough.

    Args:
        run: the run.
        folder: where the bundle goes; must not exist.
        step: which step; by default the last.
        site: whose route, where the step's method keeps one per domain (:mod:`reid.run.routing`); by default the step's own network.
        since: the step whose galleries the bundle's transport carries; by default the one before, if it can.
        lowering: how precise the graph is; float32 by default.
        licences: of ``weights`` and ``data``, as the card is to state them.
        key: file of a private key to sign with.
        progress: where to show it.

    Raises:
        ExportError: the step has no routes, or no transports since then; graph and model disagree: says at which batch size and by how much; or int8
            loses too much: names the layers to blame. Nothing is written.
        UsageError: a key that can't sign, or a domain without the splits that int8 needs.
    """
    lowering, stated = lowering or Lowering(), {"weights": UNDECLARED, "data": UNDECLARED} | dict(licences or {})
    trial = None if lowering.int8 is None else _trial(run, lowering.int8)
    if folder.exists():
        raise ArtefactError(f"{folder} exists already; choose another name or delete it first")
    if key is not None:
        sign(b"", key)
    model, sealed = run.model(step)
    if site is not None:
        routed = run.route(site, step)
        if routed is None:
            raise ExportError(f"{sealed.folder.name} serves {getattr(site, 'name', site)} by the network that serves every site: leave the site out")
        model = routed
    spec = run.config.crop.spec()
    drawn = golden_crops(max(PARITY_BATCHES), height=spec.height, width=spec.width)
    crops = np.concatenate([*real_crops(run, max(PARITY_BATCHES)), drawn])[: max(PARITY_BATCHES)]
    transport = transport_since(run, sealed, since) if site is None else _route_transport(run, sealed, str(getattr(site, "name", site)), since, model)
    data, golden = export_graph(model, drawn[:2]), drawn[:GOLDEN]
    parity = check_parity(model, data, crops)
    made = Lowered(data, parity, {"precision": "fp32", "feature_space": model.feature_space(spec)}, transport)

    def check(lowered: bytes, least: float) -> Mapping[int, float]:
        return check_parity(model, lowered, crops, least)

    if lowering.half:
        made = halved(made, check)
    elif trial is not None:
        made = eight_bit(made, trial, check, lowering, keep_transport=since is not None, say=(progress or Progress()).say)
    body = {
        "site": getattr(site, "name", site),
        "dim": model.dim,
        "crop": spec.to_dict(),
        "backbone": run.config.model.backbone.rsplit("/", 1)[-1],
        "opset": OPSET,
        "step": sealed.index,
        "domains": [name for done in run.steps[: sealed.index + 1] for name in done.learned],
        "method": sealed.card["method"]["name"] if sealed.card["method"] else "none",
        "parity": {str(batch): cosine for batch, cosine in made.parity.items()},
        "licences": stated,
        "thresholds": {},
        "producer": {"lifelong-reid": code_version()} | {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        **made.body,
    }
    embeddings = _embed(model, golden) if made.data is data else answers(start_session(made.data), golden)
    return write_bundle(
        folder, model_onnx=made.data, golden_crops=golden, golden_embeddings=embeddings, card=card_of(run, sealed, body), body=body,
        parent=sealed.card["id"], transport=None if made.transport is None else made.transport.to_bytes(), key=key,
    )  # fmt: skip


def _trial(run: Run, domain: Domain) -> Trial:
    """What int8 is calibrated and judged on; raises UsageError if the domain lacks it."""
    if (why := can_be_scored(domain)) is not None:
        raise UsageError(f"int8 is judged on the test split of {domain.name}, and {why}; name another domain")
    if not len(domain.train):
        raise UsageError(f"int8 is calibrated on the train crops of {domain.name}, and it has none; name another domain")

    def score(ask: Embed, hold: Embed) -> float:
        return evaluate(domain, ask, run.stores, gallery_embed=hold).mAP

    train, *test = (run.stores.get(domain, split).crops for split in (domain.train, domain.query, domain.gallery))
    return Trial(domain.name, domain.fingerprint, train, np.concatenate(test), score)


def transport_since(run: Run, sealed: Sealed, since: int | None) -> Transport | None:
    """The map from an earlier step's feature space to this one; None if there is none and none was asked for.

    Raises:
        ExportError: ``since`` is no earlier step, or a step after it fitted no transport.
    """
    start = sealed.index - 1 if since is None else since
    if since is not None and not 0 <= since < sealed.index:
        raise ExportError(f"a transport leads from an earlier step: since must lie in 0..{sealed.index - 1}, got {since}")
    found = [step.transport() for step in run.steps[start + 1 : sealed.index + 1]]
    if not found or None in found:
        if since is not None:
            lacking = run.steps[start + 1 + found.index(None)]
            raise ExportError(f"{lacking.folder.name} fitted no transport, so galleries of step {since} have to be embedded again")
        return None
    return reduce(lambda first, later: first.then(later), [transport for transport in found if transport])


def _route_transport(run: Run, sealed: Sealed, site: str, since: int | None, model: ReidModel) -> Transport | None:
    """The map that sites share, between the spaces of a site's own networks: what moves from step to step is what is shared, an adapter is held.

    Raises:
        ExportError: as :func:`transport_since`; or one was asked for and the site had no adapter beside a shared network then.
    """
    start = sealed.index - 1 if since is None else since
    term = routing_term(sealed.card)
    then = run.steps[max(start, 0)]
    before = routing_term(then.card)
    held = term is not None and term.use == "beside" and before is not None and before.use == "beside"
    if not held or not any(site in step.learned for step in run.steps[: then.index + 1]):
        if since is not None:
            raise ExportError(f"{site} had no adapter of its own at step {since}, so its galleries of then have to be embedded again")
        return None
    found = transport_since(run, sealed, since)
    old = run.route(site, then.index)
    if found is None or old is None:
        return None
    return replace(found, source=old.feature_space(run.config.crop.spec()), target=model.feature_space(run.config.crop.spec()))


def real_crops(run: Run, count: int) -> list[NDArray[np.uint8]]:
    """Up to ``count`` crops, in equal parts from the query splits that can still be read: each ``[n, H, W, 3]``."""
    able = [domain for domain in run.known_domains().values() if can_be_scored(domain) is None]
    each = -(-count // max(1, len(able)))
    spec = run.config.crop.spec()
    return [CropStore.decode(domain, domain.query.take(np.arange(min(each, len(domain.query)))), spec).crops for domain in able]


def export_graph(model: ReidModel, sample: NDArray[np.uint8]) -> bytes:
    """ONNX bytes of the embedding path, batch dynamic. Works on a copy: the model in hand is left as it was, mode and memory layout included."""
    twin = _Embedder(copy.deepcopy(model)).cpu().to(memory_format=torch.contiguous_format).eval()
    buffer = io.BytesIO()
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _silent_stdout():
            warnings.simplefilter("ignore")
            # Traced first: modules made from ONNX have an export path of their own that current torch no longer serves, and tracing goes past it.
            with torch.no_grad():
                traced = torch.jit.trace(twin, (torch.from_numpy(sample),), check_trace=False)  # type: ignore[no-untyped-call]
            torch.onnx.export(
                traced, (torch.from_numpy(sample),), buffer,  # type: ignore[arg-type]
                dynamo=False, opset_version=OPSET, input_names=["crops"], output_names=["embeddings"],
                dynamic_axes={"crops": {0: "N"}, "embeddings": {0: "N"}},
            )  # fmt: skip
    except Exception as error:  # the exporter raises whatever an operator's translation raises
        raise ExportError(f"torch can't export this model to ONNX: {type(error).__name__}: {str(error).splitlines()[0]:.200}") from error
    finally:
        quiet.setLevel(level)
    graph = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(graph, full_check=True)
    data: bytes = graph.SerializeToString()
    return data


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Throw away what C++ writes to stdout: the exporter prints the whole graph there when it lacks an operator, and stdout is for results."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def check_parity(model: ReidModel, data: bytes, crops: NDArray[np.uint8], least: float = PARITY_COSINE) -> dict[int, float]:
    """Compare graph and model at every batch size; returns the smallest cosine of each.

    Raises:
        ExportError: a cosine under ``least``, a wrong shape or length, or embeddings that no longer tell different crops apart.
    """
    try:
        session = start_session(data)
    except ModuleNotFoundError as error:
        raise ExportError("an export is checked with ONNX Runtime before it counts: pip install 'lifelong-reid[cpu]'") from error
    smallest: dict[int, float] = {}
    for batch in PARITY_BATCHES:
        part = np.resize(crops, (batch, *crops.shape[1:]))
        wanted = _embed(model, part)
        got = session.run(None, {"crops": part})[0]
        if got.shape != wanted.shape or got.dtype != np.float32:
            raise ExportError(f"at batch {batch} the graph returns {got.dtype} {got.shape} and the model float32 {wanted.shape}")
        cosine = _cosines(got, wanted)
        worst = int(np.argmin(np.where(np.isfinite(cosine), cosine, -2)))
        if not cosine[worst] >= least:
            raise ExportError(f"graph and model differ at batch {batch}, crop {worst}: cosine {cosine[worst]:.6f}, at least {least} is needed")
        lengths = np.linalg.norm(got.astype(np.float64), axis=1)
        longest = int(np.argmax(np.abs(lengths - 1)))
        if not abs(lengths[longest] - 1) <= UNIT:
            raise ExportError(f"at batch {batch}, crop {longest} the graph's answer is no unit vector: length {lengths[longest]:.6f}")
        smallest[batch] = round(float(cosine[worst]), 7)
    likeness = got @ got.T
    others = (likeness.sum() - np.trace(likeness)) / (batch * (batch - 1))
    if others > COLLAPSED:
        raise ExportError(
            f"the model gives nearly the same embedding for {batch} different crops (mean cosine {others:.5f}); it has learned nothing to export"
        )
    return smallest


def _cosines(one: Float32s, other: Float32s) -> Float64s:
    """Cosine of each pair of rows, whatever their lengths; in float64 and at most 1. NaN where a row is none that has a direction."""
    one64, other64 = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.einsum("nd,nd->n", one64, other64) / (np.linalg.norm(one64, axis=1) * np.linalg.norm(other64, axis=1))
    clipped: Float64s = np.clip(cosine, -1, 1)
    return clipped


def _embed(model: ReidModel, crops: NDArray[np.uint8]) -> Float32s:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model.embed(torch.from_numpy(np.ascontiguousarray(crops))).cpu().numpy()
    finally:
        model.train(was_training)


def _was_scored(sealed: Sealed, site: str | None, name: str, *, learned: bool) -> bool:
    """Whether a domain's score in the matrix is of the network that is exported: where sites have networks of their own, those were scored."""
    term = routing_term(sealed.card)
    if term is None:
        return True
    return name == site if site is not None else term.use == "beside" and not learned


def card_of(run: Run, sealed: Sealed, body: Mapping[str, Any]) -> str:
    """The model card of a sealed step."""
    learned = [(entry, step) for step in run.steps[: sealed.index + 1] for entry in step.card["domains"]]
    taught = [
        Taught(entry["name"], len(step.card["classes"]) if len(step.learned) == 1 else None, entry.get("crops", {}).get("train"))
        for entry, step in learned
    ]
    scored = []
    for (row, name), cell in run.scores.cells.items():
        known = any(entry["name"] == name for entry, _ in learned)
        if row == sealed.index and _was_scored(sealed, body["site"], name, learned=known):
            low, high = bootstrap_interval(cell.ap)
            scored.append(Scored(name, known, cell.scores["mAP"], (100 * low, 100 * high), cell.scores["rank1"], int(cell.scores["queries"])))
    return card_text(body, taught, scored, parent=sealed.card["id"], producer=code_version())
