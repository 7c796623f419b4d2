"""What the proofs share: tiny bundles whose spaces are turned into each other, and one thread for FAISS, so that
processes may fork.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from oracle import SPACES, TURNS
from tiny import HEIGHT, WIDTH, body, embed, graph


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """FAISS's threads do not live through a fork."""
    faiss = pytest.importorskip("faiss", reason="FAISS is not installed")
    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Write a bundle for each of three spaces; each one's transport leads on from the space before."""
    import numpy as np

    from deploy.bundle import Golden, write_bundle
    from prototypes.transport import Transport

    root = tmp_path_factory.mktemp("bundles")
    projection = np.random.default_rng(7).normal(size=(HEIGHT * WIDTH // 16 * 3, len(TURNS[0])))
    crops = np.random.default_rng(8).integers(0, 256, (4, HEIGHT, WIDTH, 3), np.uint8)
    for number, space in enumerate(SPACES):
        transport = Transport(SPACES[number - 1], space, TURNS[number - 1], "ridge", (0.9, 0.5))
        write_bundle(
            root / str(number),
            model_onnx=graph(projection),
            golden=Golden(crops, embed(crops, projection)),
            card="# Tiny\n",
            body=body(feature_space=space),
            parent=None,
            parts={"transport.npz": transport.to_bytes()},
        )
    return [root / str(number) for number in range(len(SPACES))]
