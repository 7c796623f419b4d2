"""The proof that a graph matches the model, on real crops and at several batch sizes."""

from __future__ import annotations

import numpy as np

from deploy.embeddings import COLLAPSED, likeness
from domains.arrays import Crops, Float32s, Float64s
from domains.errors import ExportError
from domains.synthetic import golden_crops
from reid.batches.loader import CropStore
from reid.export.ranges import start_session
from reid.network.embedding import embedder
from reid.network.model import ReidModel
from reid.run import Run
from reid.scores.evaluate import can_be_scored

BATCHES = (1, 2, 7, 32)
COSINE = 0.9999
UNIT = 1e-3
"""How far from 1 the length of a graph's embeddings may be."""


def check_parity(model: ReidModel, data: bytes, crops: Crops, least: float = COSINE) -> dict[int, float]:
    """Compare graph and model at every batch size; return the smallest cosine of each.

    Raises:
        ExportError: a cosine under ``least``, a wrong shape or length, or embeddings that no longer tell different
            crops apart.
    """
    try:
        session = start_session(data)
    except ModuleNotFoundError as error:
        raise ExportError(
            "exports are checked with ONNX Runtime, which is not installed: pip install 'lifelong-reid[cpu]'"
        ) from error
    embed = embedder(model)
    smallest: dict[int, float] = {}
    for batch in BATCHES:
        part = np.resize(crops, (batch, *crops.shape[1:]))
        expected = embed(part)
        actual = session.run(None, {"crops": part})[0]
        if actual.shape != expected.shape or actual.dtype != np.float32:
            raise ExportError(
                f"at batch {batch} the graph returns {actual.dtype} {actual.shape} and the model float32 "
                f"{expected.shape}"
            )
        cosine = _cosines(actual, expected)
        worst = int(np.argmin(np.where(np.isfinite(cosine), cosine, -2)))
        if not cosine[worst] >= least:
            raise ExportError(
                f"graph and model differ at batch {batch}, crop {worst}: cosine {cosine[worst]:.6f}, at least {least} "
                "is needed"
            )
        lengths = np.linalg.norm(actual.astype(np.float64), axis=1)
        longest = int(np.argmax(np.abs(lengths - 1)))
        if not abs(lengths[longest] - 1) <= UNIT:
            raise ExportError(
                f"at batch {batch}, crop {longest} the graph's embedding is not a unit vector: length "
                f"{lengths[longest]:.6f}"
            )
        smallest[batch] = round(float(cosine[worst]), 7)
    if (alike := likeness(actual)) > COLLAPSED:
        raise ExportError(
            f"the model gives nearly the same embedding for {batch} different crops (mean cosine {alike:.5f}); it has "
            "learned nothing to export"
        )
    return smallest


def _cosines(actual: Float32s, expected: Float32s) -> Float64s:
    """Cosine of each pair of rows of any length, in float64 and at most 1; NaN where a row has no direction."""
    first, second = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.einsum("nd,nd->n", first, second) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
    clipped: Float64s = np.clip(cosine, -1, 1)
    return clipped


def real_crops(run: Run, count: int) -> list[Crops]:
    """Read up to ``count`` crops, in equal parts from the query splits still readable: ``[n, H, W, 3]`` each."""
    scorable = [domain for domain in run.known_domains().values() if can_be_scored(domain) is None]
    each = -(-count // max(1, len(scorable)))
    spec = run.config.crop.spec()
    return [
        CropStore.decode(domain, domain.query.take(np.arange(min(each, len(domain.query)))), spec).crops
        for domain in scorable
    ]


def crops_to_compare(run: Run) -> Crops:
    """Return as many crops as the largest batch: real ones of the run's domains, topped up with drawn people."""
    most, spec = max(BATCHES), run.config.crop.spec()
    return np.concatenate([*real_crops(run, most), golden_crops(most, height=spec.height, width=spec.width)])[:most]
