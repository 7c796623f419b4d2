"""A bundle small enough to build in a moment, and what the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import DIM, HEIGHT, WIDTH, body, embed, graph

from deploy.bundle import Bundle, Golden, write_bundle


@pytest.fixture(scope="session")
def projection():
    return np.random.default_rng(7).normal(size=(HEIGHT * WIDTH // 16 * 3, DIM))


@pytest.fixture(scope="session")
def golden_crops():
    return np.random.default_rng(8).integers(0, 256, (16, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture
def make_bundle(tmp_path, projection, golden_crops):
    """Write a bundle; arguments replace its parts, ``options`` those of the graph."""

    def make(
        name="bundle",
        *,
        model=None,
        crops=golden_crops,
        embeddings=None,
        changes=None,
        transport=None,
        parts=None,
        **options,
    ) -> Bundle:
        return write_bundle(
            tmp_path / name,
            model_onnx=graph(projection, **options) if model is None else model,
            golden=Golden(crops, embed(golden_crops, projection) if embeddings is None else embeddings),
            card="# Tiny\n",
            body=body(**(changes or {})),
            parent="12" * 32,
            parts=({} if transport is None else {"transport.npz": transport}) | (parts or {}),
        )

    return make


@pytest.fixture
def bundle(make_bundle) -> Bundle:
    return make_bundle()


@pytest.fixture
def people(tmp_path, golden_crops) -> Path:
    """A folder with a sub-folder per camera, 3 images in each, sizes that are not the model's."""
    import cv2

    for index, crop in enumerate(golden_crops[:6]):
        folder = tmp_path / "people" / f"c{index % 2 + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), np.kron(crop[..., ::-1], np.ones((3, 3, 1), np.uint8)))
    return tmp_path / "people"
