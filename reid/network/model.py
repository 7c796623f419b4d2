"""The re-ID network: normalisation → backbone → pooling → embedding → BNNeck → classifier.

The feature used for matching is the embedding before the neck ("bag of tricks", Luo et al., CVPRW 2019), at unit
length. Input crops are as decoded, RGB in 0..255: channel order and normalisation are the first layer, here and in the
exported graph.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.artefact import content_id
from domains.crops import CropSpec
from domains.errors import BackboneError
from prototypes.metric import Metric
from reid.network.backbone import Backbone, InputRule
from reid.network.distribution import DistributionHead, HeadKind

DEFAULT_DIM = 512
NOT_EMBEDDING = ("neck.", "classifier.", "distribution.")
"""Name prefixes of weights that have no part in the embedding."""


class Output(NamedTuple):
    """The network's output for a batch.

    Attributes:
        features: the backbone's map ``[B, C, h, w]`` or tokens ``[B, N, C]``.
        embedding: ``[B, D]`` float32, before the neck, not yet at unit length.
        neck: ``[B, D]`` float32, the embedding after BatchNorm.
        logits: ``[B, K]`` float32, one column per identity learned so far.
    """

    features: Tensor
    embedding: Tensor
    neck: Tensor
    logits: Tensor


class Normalise(nn.Module):
    """RGB crops ``[B, H, W, 3]`` in 0..255 (uint8 or float) → ``[B, 3, H, W]`` as the backbone expects them."""

    mean: Tensor
    std: Tensor

    def __init__(self, rule: InputRule) -> None:
        super().__init__()
        self.flip = rule.channels == "bgr"
        self.register_buffer("mean", torch.tensor(rule.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(rule.std, dtype=torch.float32))

    @property
    def fill(self) -> list[float]:
        """The mean as RGB in 0..255: the colour that padding and erasing paint, which becomes zero."""
        mean: list[float] = self.mean.tolist()
        return mean[::-1] if self.flip else mean

    def forward(self, crops: Tensor) -> Tensor:
        """Normalise; the result is contiguous in channels-last order, which suits CPUs and tensor cores."""
        pixels = crops.float()
        if self.flip:
            pixels = pixels[..., [2, 1, 0]]
        return ((pixels - self.mean) / self.std).permute(0, 3, 1, 2)


class GeM(nn.Module):
    """Generalised-mean pooling with fixed p = 3 (Radenović et al., TPAMI 2019): ``[B, C, h, w]`` → ``[B, C]``."""

    def __init__(self, power: float = 3.0, floor: float = 1e-6) -> None:
        super().__init__()
        self.power = power
        self.floor = floor

    def forward(self, features: Tensor) -> Tensor:
        """Pool in float32: the cube of a bf16 activation loses what distinguishes people."""
        return features.float().clamp(min=self.floor).pow(self.power).mean((2, 3)).pow(1 / self.power)


class AveragePool(nn.Module):
    """Mean over space, ``[B, C, h, w]`` → ``[B, C]``, or over the grid's tokens, ``[B, N, C]`` → ``[B, C]``, then the
    norm, if any.
    """

    def __init__(self, prefix_tokens: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens
        self.norm = norm

    def forward(self, features: Tensor) -> Tensor:
        """Pool a map or tokens."""
        pooled = (
            features.float().mean((2, 3))
            if self.prefix_tokens < 0
            else features[:, self.prefix_tokens :].float().mean(1)
        )
        return pooled if self.norm is None else self.norm(pooled)


class TokenPool(nn.Module):
    """The class token of a ViT, ``[B, N, C]`` → ``[B, C]``, then the norm, if any."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the class token, after the norm if there is one."""
        token = tokens[:, 0].float()
        return token if self.norm is None else self.norm(token)


class MetricLayer(nn.Module):
    """A metric as the last layer: unit vectors ``[B, D]`` → unit vectors (:class:`prototypes.metric.Metric`)."""

    mean: Tensor
    shrink: Tensor

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(metric.mean))
        self.register_buffer("shrink", torch.from_numpy(metric.shrink))

    def forward(self, vectors: Tensor) -> Tensor:
        """Centre, shrink, and scale to unit length."""
        centred = vectors - self.mean
        return F.normalize(centred - centred @ self.shrink.T @ self.shrink, dim=1)


class ReidModel(nn.Module):
    """The network that the module's docstring describes; ``classes`` is the number of identities learned so far.

    Attributes:
        metric: the metric that embeddings are returned in, for export alone: sealed steps keep sites' statistics
            instead.
        distribution: the head for instance-level distribution modelling, if a method needs one; never exported.
        changes: returns changes to the backbone's weights, by parameter, which its forward pass adds; None except while
            an adapter is trained.
        still: keep the backbone in eval mode, whatever the mode of the rest.
    """

    metric: MetricLayer | None
    distribution: DistributionHead | None
    changes: Callable[[], Mapping[str, Tensor]] | None
    still: bool

    def __init__(
        self, backbone: Backbone, *, pooling: str, dim: int | None, classes: int = 0, linear: bool = True
    ) -> None:
        super().__init__()
        self.normalise = Normalise(backbone.rule)
        head, backbone.head = backbone.head, None
        self.backbone = backbone
        norm, backbone.norm = backbone.norm, None
        self.pool = head if head is not None else _pooling(pooling, backbone, norm)
        if not linear and dim not in (None, backbone.width):
            raise BackboneError(
                f"without a linear embedding the width is the backbone's {backbone.width}, not {dim}; leave model.dim "
                "unset"
            )
        keeps_own = not linear or (head is not None and dim in (None, backbone.width))
        self.dim = backbone.width if keeps_own else dim or DEFAULT_DIM
        self.embedding: nn.Module = nn.Identity() if keeps_own else nn.Linear(backbone.width, self.dim)
        if isinstance(self.embedding, nn.Linear):
            # An orthogonal map preserves the start's neighbourhoods, so an untrained embedding already ranks as the
            # pooled feature does.
            nn.init.orthogonal_(self.embedding.weight)
            nn.init.zeros_(self.embedding.bias)
        self.neck = nn.BatchNorm1d(self.dim)
        self.neck.bias.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            self.classifier = nn.Linear(self.dim, classes, bias=False)
        self.metric = None
        self.distribution = None
        self.changes = None
        self.still = False

    @property
    def classes(self) -> int:
        """Number of classifier rows."""
        return self.classifier.out_features

    def grow(self, classes: int, *, seed: int = 0) -> None:
        """Add classifier rows, drawn from ``seed``, for new identities; old rows are unchanged."""
        old = self.classifier
        self.classifier = nn.Linear(self.dim, old.out_features + classes, bias=False)
        with torch.no_grad():
            self.classifier.weight[: old.out_features] = old.weight
            self.classifier.weight[old.out_features :].normal_(std=0.001, generator=torch.Generator().manual_seed(seed))

    def add_distribution(self, kind: HeadKind, *, seed: int = 0) -> None:
        """Add a distribution head, drawn from ``seed``, unless there is one of this kind; raises BackboneError."""
        if self.distribution is not None and self.distribution.kind == kind:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self.distribution = DistributionHead(
                    self.backbone.channels, self.dim, kind, self.backbone.prefix_tokens
                )
            except ValueError as error:
                raise BackboneError(str(error)) from error

    def spread(self, features: Tensor) -> Tensor:
        """Backbone features → standard deviation of each embedding dimension, ``[B, D]``; raises BackboneError if no
        head fits them.
        """
        if self.distribution is None:
            raise BackboneError("this network has no distribution head; use a method with a distribution term")
        try:
            out: Tensor = self.distribution(features)
        except ValueError as error:
            raise BackboneError(f"{error}; use larger crops, model.stages: 3, or a method with head: pooled") from error
        return out

    def classify(self, vectors: Tensor) -> Tensor:
        """Embeddings ``[N, D]`` → logits ``[N, K]`` float32, through neck and classifier."""
        logits: Tensor = self.classifier(self.neck(vectors))
        return logits.float()

    def forward(self, crops: Tensor) -> Output:
        """RGB crops ``[B, H, W, 3]`` in 0..255 → :class:`Output`."""
        features = self._features(crops)
        embedding = self.embedding(self.pool(features).flatten(1)).float()
        neck = self.neck(embedding)
        return Output(features, embedding, neck, self.classifier(neck).float())

    def embed(self, crops: Tensor) -> Tensor:
        """RGB crops ``[B, H, W, 3]`` → the matching feature ``[B, D]`` at unit length; this is what is exported."""
        features = self._features(crops)
        vectors = F.normalize(self.embedding(self.pool(features).flatten(1)).float(), dim=1)
        return vectors if self.metric is None else self.metric(vectors)

    def train(self, mode: bool = True) -> ReidModel:
        """Set the mode; a ``still`` backbone stays in eval mode."""
        super().train(mode)
        if self.still:
            self.backbone.eval()
        return self

    def _features(self, crops: Tensor) -> Tensor:
        images = self.normalise(crops)
        if self.changes is None:
            return self.backbone(images)  # type: ignore[no-any-return]
        changed = {name: self.backbone.get_parameter(name) + change for name, change in self.changes().items()}
        return torch.func.functional_call(self.backbone, changed, (images,))  # type: ignore[no-any-return]

    def feature_space(self, crop: CropSpec) -> str:
        """Name of the feature space: sha256 (hex) of the embedding path (weights, pooling) and the crop rule, without
        neck and classifier.
        """
        digest = hashlib.sha256(
            content_id(crop.to_dict() | {"bgr": self.normalise.flip, "pool": type(self.pool).__name__}).encode()
        )
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith(NOT_EMBEDDING) and not name.endswith("num_batches_tracked"):
                digest.update(
                    f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.detach().cpu().numpy().tobytes()
                )
        return digest.hexdigest()


def _pooling(name: str, backbone: Backbone, norm: nn.Module | None) -> nn.Module:
    if name == "auto":
        for_tokens = "token" if backbone.prefix_tokens and norm is None else "average"
        name = for_tokens if backbone.has_tokens else "average" if backbone.signed else "gem"
    if name == "gem":
        if backbone.has_tokens:
            raise BackboneError(
                "GeM pools feature maps, and this backbone outputs tokens; set model.pooling to token or average"
            )
        return GeM()
    if name == "token":
        if not backbone.prefix_tokens > 0:
            raise BackboneError(
                "this backbone has no class token; set model.pooling to average"
                + ("" if backbone.has_tokens else " or gem")
            )
        return TokenPool(norm)
    return AveragePool(backbone.prefix_tokens, norm)
