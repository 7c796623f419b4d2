"""Embeddings that know which feature space they belong to, so that vectors from two models are never compared by
mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

_JOINING = (np.concatenate, np.where)

COLLAPSED = 0.9999
"""Mean cosine between different crops above which a model no longer tells people apart."""


class Embeddings(np.ndarray):
    """Unit-length float32 vectors ``[N, D]`` with the name of their feature space.

    Slices, copies, and combinations with plain arrays or with the same space keep the name; combining two spaces gives
    ``None``, which a gallery refuses. Scores (``a @ b.T``) and comparisons are plain arrays.

    Attributes:
        feature_space: name of the space, or ``None`` after vectors of different spaces were mixed.
    """

    feature_space: str | None

    def __new__(cls, values: ArrayLike, feature_space: str | None) -> Embeddings:
        """View ``values`` (converted to float32 where needed) as embeddings of ``feature_space``."""
        self = np.asarray(values, np.float32).view(cls)
        self.feature_space = feature_space
        return self

    def __array_finalize__(self, obj: NDArray[Any] | None) -> None:
        """Pass the name on to views, slices and copies."""
        self.feature_space = getattr(obj, "feature_space", None)

    def __array_ufunc__(self, ufunc: np.ufunc, method: Any, *inputs: Any, **kwargs: Any) -> Any:
        """Compute on plain arrays, then label the result with the space that all inputs share."""
        space = _shared_space([*inputs, *(out := kwargs.get("out", ()))])
        if out:
            kwargs["out"] = tuple(_plain(value) for value in out)
        result = getattr(ufunc, method)(*(_plain(value) for value in inputs), **kwargs)
        if out:
            for value in out:
                if isinstance(value, Embeddings):
                    value.feature_space = space
            return out[0] if len(out) == 1 else out
        return result if ufunc is np.matmul else _named(result, space)

    def __array_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Iterable[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Label arrays that NumPy joins with the space that all inputs share: NumPy does not check, and the name must
        be neither lost nor guessed.
        """
        result = super().__array_function__(func, types, args, kwargs)
        space = _shared_space([*args, *kwargs.values()])
        if isinstance(result, Embeddings):
            result.feature_space = space
        return _named(result, space) if func in _JOINING else result

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write rows; rows of another space clear the name."""
        super().__setitem__(key, value)
        self.feature_space = _shared_space([self, value])

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the name when an array is sent to another process."""
        return Embeddings, (np.asarray(self), self.feature_space)


def likeness(vectors: NDArray[np.float32]) -> float:
    """Mean cosine between different rows of unit vectors ``[N, D]``, N at least 2."""
    cosines = np.asarray(vectors) @ np.asarray(vectors).T
    return float((cosines.sum() - np.trace(cosines)) / (len(cosines) * (len(cosines) - 1)))


def _spaces(values: Iterable[Any]) -> Iterator[str | None]:
    for value in values:
        if isinstance(value, Embeddings):
            yield value.feature_space
        elif isinstance(value, (list, tuple)):
            yield from _spaces(value)


def _shared_space(values: Iterable[Any]) -> str | None:
    spaces = set(_spaces(values))
    return spaces.pop() if len(spaces) == 1 else None


def _plain(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, Embeddings) else value


def _named(result: Any, space: str | None) -> Any:
    if isinstance(result, np.ndarray) and result.dtype.kind == "f":
        named = cast(Embeddings, result.view(Embeddings))
        named.feature_space = space
        return named
    return result
