"""Graphs below float32: what they may lose, what the manifest states, and whether they share the feature space."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from domains.arrays import Crops, Embed, Float32s
from domains.artefact import content_id
from domains.domain import Domain
from domains.errors import UsageError
from prototypes.metric import Metric
from prototypes.transport import Transport, fit_transport
from reid.export.half import to_half
from reid.export.quantize import CALIBRATION, MAP_LOSS, quantise
from reid.export.ranges import answers, start_session

HALF_COSINE = 0.998
"""Smallest cosine of fp16 to float32. Measured on 32 real crops: MobileNetV2 0.9996, ResNet-50 and ViT-tiny above
0.99999.
"""

INT8_COSINE = 0.8
"""The same for int8, where it only catches a broken graph; mAP decides whether one is good enough."""

SAME_SPACE = 0.99
"""Smallest cosine between a crop's embeddings at two precisions that share a feature space. A similarity then moves by
less than 0.15 even in the worst case, so mAP of int8 queries on a float32 gallery must hold too.
"""

CARRIED = 1024
"""Number of crops that the map from float32 to int8's own feature space is fitted on."""

Say = Callable[[str], None]
Check = Callable[[bytes, float], Mapping[int, float]]
"""Smallest cosine between a graph and the trained model at each batch size; raises ExportError if one is below the
second argument.
"""


@dataclass(frozen=True)
class Lowering:
    """The precision that a graph is exported at.

    Attributes:
        half: fp16 inside.
        int8: the domain whose train crops calibrate 8 bits, and whose queries and gallery judge them.
        exclude: layers that stay in float32.
        strict: refuse int8 at once if it loses too much, instead of leaving the worst layers in float32.
        reduce_range: 7-bit weights, for x86 processors without VNNI.
    """

    half: bool = False
    int8: Domain | None = None
    exclude: Sequence[str] = ()
    strict: bool = False
    reduce_range: bool = False

    def __post_init__(self) -> None:
        """Check that the options fit together; raises UsageError."""
        if self.half and self.int8 is not None:
            raise UsageError("a graph is fp16 or int8, not both: choose one of --fp16 and --int8")
        if self.int8 is None and (self.exclude or self.strict or self.reduce_range):
            raise UsageError(
                "--exclude, --strict and --reduce-range apply to quantisation: name a domain with --int8 too"
            )


class Lowered(NamedTuple):
    """A graph at a given precision.

    Attributes:
        data: ONNX bytes.
        parity: smallest cosine to the trained model, by batch size.
        body: its entries in the manifest: ``precision``, ``feature_space`` and more.
        transport: leads into the feature space of its network.
        metric: the one that the graph ends with; its ``name`` and ``network`` are in the body.
    """

    data: bytes
    parity: Mapping[int, float]
    body: Mapping[str, Any]
    transport: Transport | None
    metric: Metric | None = None


class Trial(NamedTuple):
    """What 8 bits are calibrated and judged on.

    Attributes:
        domain: name of the domain.
        fingerprint: of its content.
        train: crops ``[N, H, W, 3]``.
        test: crops of its queries and gallery.
        score: percent mAP of queries embedded by the first on a gallery embedded by the second.
    """

    domain: str
    fingerprint: str
    train: Crops
    test: Crops
    score: Callable[[Embed, Embed], float]


def halved(made: Lowered, check: Check) -> Lowered:
    """Convert the float32 graph to fp16; embeddings move less than ``SAME_SPACE`` allows, so it is the same space."""
    data = to_half(made.data)
    return made._replace(
        data=data,
        parity=check(data, HALF_COSINE),
        body={**made.body, "precision": "fp16", "golden_cosine": HALF_COSINE},
    )


def eight_bit(
    made: Lowered,
    trial: Trial,
    check: Check,
    lowering: Lowering,
    *,
    keep_transport: bool = False,
    say: Say = lambda line: None,
) -> Lowered:
    """Convert the float32 graph to int8, in its feature space if it can query float32 galleries, else in a new one.

    Args:
        made: the float32 graph.
        trial: what it is calibrated and judged on.
        check: compares it with the trained model.
        lowering: how to quantise.
        say: receives progress messages.
        keep_transport: in a new space, lead there from where ``made.transport`` starts rather than from the float32
            space.

    Raises:
        ExportError: it loses too much; names the layers to blame.
        UsageError: an excluded layer that does not exist.
    """

    def judge(data: bytes) -> float:
        return trial.score(*[_embedder(data)] * 2)

    quantised = quantise(
        made.data,
        trial.train,
        judge,
        exclude=lowering.exclude,
        strict=lowering.strict,
        reduce_range=lowering.reduce_range,
        say=say,
    )
    before, after = _embedder(made.data), _embedder(quantised.data)
    cosine = _least_cosine(before(trial.test), after(trial.test))
    mixed = trial.score(after, before)
    own = cosine < SAME_SPACE or quantised.before - mixed > MAP_LOSS
    space, transport, metric = str(made.body["feature_space"]), made.transport, dict(made.body.get("metric", {}))
    if own:
        sample = trial.train[np.linspace(0, len(trial.train) - 1, min(len(trial.train), CARRIED)).astype(int)]
        space = content_id([space, "int8", hashlib.sha256(quantised.data).hexdigest()])
        source, target, vectors = str(made.body["feature_space"]), space, (before(sample), after(sample))
        if made.metric is not None:  # a transport leads from network to network, with the metric taken off
            source, target = metric["network"], content_id([metric["network"], space])
            vectors = made.metric.undone(vectors[0]), made.metric.undone(vectors[1])
            metric["network"] = target
        bridge = fit_transport(*vectors, source=source, target=target)
        transport = transport.then(bridge) if keep_transport and transport is not None else bridge
    quantisation = {
        "domain": trial.domain,
        "fingerprint": trial.fingerprint,
        "crops": min(len(trial.train), CALIBRATION),
        "layers": quantised.layers,
        "left_out": list(quantised.left_out),
        "blamed": {item.layer: round(item.loss, 6) for item in quantised.blamed[:10]},
        "map_fp32": round(quantised.before, 4),
        "map_int8": round(quantised.after, 4),
        "map_mixed": round(mixed, 4),
        "cosine": round(cosine, 6),
        "own_space": own,
        "reduce_range": lowering.reduce_range,
    }
    body = {
        "precision": "int8",
        "feature_space": space,
        **({"metric": metric} if metric else {}),
        "golden_cosine": _golden_cosine(quantised.data, trial.test[:32]),
        "quantisation": quantisation,
    }
    return Lowered(quantised.data, check(quantised.data, INT8_COSINE), body, transport, made.metric)


def _embedder(data: bytes) -> Embed:
    session = start_session(data)
    return lambda crops: answers(session, crops)


def _golden_cosine(data: bytes, crops: Crops) -> float:
    """Return the cosine to expect of other engines, which round differently.

    It is four times as far from 1 as that of this engine's own float32 reading of the same 8-bit graph.
    """
    distance = 1 - _least_cosine(
        answers(start_session(data, optimise=False), crops), answers(start_session(data), crops)
    )
    return round(float(np.clip(1 - 4 * distance, 0.95, 0.999)), 4)


def _least_cosine(first: Float32s, second: Float32s) -> float:
    return float(np.einsum("nd,nd->n", first, second).min())
