"""Export a sealed step as a bundle: one ONNX graph that takes uint8 RGB crops, and the proof that it does what the model does.

The only module of this room that needs torch.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.bundle import Bundle, write_bundle
from domains.artefact import code_version
from domains.domain import Domain
from domains.errors import ExportError
from domains.synthetic import golden_crops
from prototypes.transport import Transport
from reid.evaluate import can_be_scored
from reid.loader import CropStore
from reid.model import ReidModel
from reid.run import Run
from reid.sealed import Sealed

OPSET = 18
PARITY_BATCHES = (1, 2, 7, 32)
PARITY_COSINE = 0.9999
GOLDEN = 16
COLLAPSED = 0.9999
"""Mean cosine between different crops above which a model says the same of everyone."""


class _Embedder(nn.Module):
    """Only the embedding path: crops in, unit vectors out."""

    def __init__(self, model: ReidModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        return self.model.embed(crops)


def export_run(run: Run, folder: Path, *, step: int = -1, site: Domain | str | None = None, since: int | None = None) -> Bundle:
    """Export one step of a run, checked on real crops of the domains that it knows, and on drawn people where there are not enough.

    Args:
        run: the run.
        folder: where the bundle goes; must not exist.
        step: which step; by default the last.
        site: whose route, where the step's method keeps one per domain (:mod:`reid.routing`); by default the step's own network.
        since: the step whose galleries the bundle's transport carries; by default the one before, if it can.

    Raises:
        ExportError: the step has no routes, or no transports since then; or graph and model disagree: says at which batch size and by how much.
            Nothing is written.
    """
    model, sealed = run.model(step)
    if site is not None:
        routed = run.route(site, step)
        if routed is None:
            raise ExportError(f"{sealed.folder.name} serves every site by one network: leave the site out")
        model = routed
    spec = run.config.crop.spec()
    drawn = golden_crops(max(PARITY_BATCHES), height=spec.height, width=spec.width)
    crops = np.concatenate([*real_crops(run, max(PARITY_BATCHES)), drawn])[: max(PARITY_BATCHES)]
    transport = None if site is not None and since is None else transport_since(run, sealed, since)
    data = export_graph(model, drawn[:2])
    parity = check_parity(model, data, crops)
    golden = drawn[:GOLDEN]
    body = {
        "feature_space": model.feature_space(spec),
        "site": getattr(site, "name", site),
        "dim": model.dim,
        "crop": spec.to_dict(),
        "backbone": run.config.model.backbone.rsplit("/", 1)[-1],
        "precision": "fp32",
        "step": sealed.index,
        "domains": [name for done in run.steps[: sealed.index + 1] for name in done.learned],
        "method": sealed.card["method"]["name"] if sealed.card["method"] else "none",
        "parity": {str(batch): cosine for batch, cosine in parity.items()},
        "licences": {"weights": "not declared", "data": "not declared"},
    }
    return write_bundle(
        folder, model_onnx=data, golden_crops=golden, golden_embeddings=_embed(model, golden), card=card_text(run, sealed, body), body=body,
        parent=sealed.card["id"], transport=None if transport is None else transport.to_bytes(),
    )  # fmt: skip


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
        with warnings.catch_warnings():
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


def check_parity(model: ReidModel, data: bytes, crops: NDArray[np.uint8]) -> dict[int, float]:
    """Compare graph and model at every batch size; returns the smallest cosine of each.

    Raises:
        ExportError: a cosine under 0.9999, a wrong shape, or embeddings that no longer tell different crops apart.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ExportError("an export is checked with ONNX Runtime before it counts: pip install 'lifelong-reid[cpu]'") from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    smallest: dict[int, float] = {}
    for batch in PARITY_BATCHES:
        part = np.resize(crops, (batch, *crops.shape[1:]))
        wanted = _embed(model, part)
        got = session.run(None, {"crops": part})[0]
        if got.shape != wanted.shape or got.dtype != np.float32:
            raise ExportError(f"at batch {batch} the graph returns {got.dtype} {got.shape} and the model float32 {wanted.shape}")
        cosine = np.einsum("nd,nd->n", got, wanted)
        worst = int(np.argmin(np.where(np.isfinite(cosine), cosine, -2)))
        if not cosine[worst] >= PARITY_COSINE:
            raise ExportError(
                f"graph and model differ at batch {batch}, crop {worst}: cosine {cosine[worst]:.6f}, at least {PARITY_COSINE} is needed"
            )
        smallest[batch] = round(float(cosine[worst]), 7)
    likeness = got @ got.T
    others = (likeness.sum() - np.trace(likeness)) / (batch * (batch - 1))
    if others > COLLAPSED:
        raise ExportError(
            f"the model gives nearly the same embedding for {batch} different crops (mean cosine {others:.5f}); it has learned nothing to export"
        )
    return smallest


def _embed(model: ReidModel, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model.embed(torch.from_numpy(np.ascontiguousarray(crops))).cpu().numpy()
    finally:
        model.train(was_training)


def card_text(run: Run, sealed: Sealed, body: Mapping[str, Any]) -> str:
    """Model card in Markdown: what it is, what it was taught, how well it does, and what it must not be used for."""
    scores = {name: cell for (row, name), cell in run.scores.cells.items() if row == sealed.index}
    learned = set(body["domains"])
    table = "\n".join(
        f"| {name} | {'' if name in learned else 'not '}learned | {cell.scores['mAP']:.1f} | {cell.scores['rank1']:.1f} | {cell.scores['queries']} |"
        for name, cell in scores.items()
    )
    return f"""# Person re-identification encoder

- backbone {body["backbone"]}, {body["dim"]}-dimensional unit embeddings, crops {body["crop"]["height"]}×{body["crop"]["width"]} RGB uint8
- feature space `{body["feature_space"]}`
- learned, in order: {", ".join(body["domains"]) or "nothing yet (untrained start)"}; last method: {body["method"]}
- graph and model agree: smallest cosine {min(body["parity"].values()):.6f} over batches {", ".join(body["parity"])}
- made by lifelong-reid {code_version()}

| domain | | mAP | rank-1 | queries |
|---|---|---|---|---|
{table or "| none scored | | | | |"}

Licence of weights: {body["licences"]["weights"]}. Licence of data: {body["licences"]["data"]}.

Embeddings are personal data derived from pictures of people. They say who looks alike, never who someone is: a match is a hint for a person to
check. Not for decisions about people without human review, not for covert or real-time identification in public where the law forbids it.
"""
