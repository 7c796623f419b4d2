"""Every shipped method learns two domains on every kind of backbone, and what it seals opens again."""

import numpy as np
import pytest
import torch
from backbones import Encoder, exported

from reid.config import build_config, read_method, shipped
from reid.run import Run

METHODS = sorted(name for name in shipped("methods") if "published" not in name)
SETTINGS = {"crop": {"height": 64, "width": 32}, "train": {"iterations": 2, "identities": 4, "instances": 2}}


def settings(kind, folder):
    if kind != "onnx":
        return {"backbone": kind, "weights": "none", "dim": 32}
    path = exported(Encoder(), folder / "encoder.onnx", size=(64, 32))
    return {"backbone": f"onnx:{path}", "channels": "bgr", "mean": [100.0] * 3, "std": [50.0] * 3}


def quick(method):
    """The method, with a style network that learns nearly nothing."""
    shorter = {"style_network": {"iterations": 2, "batch": 4}}
    terms = tuple({name: given | shorter.get(name, {}) for name, given in entry.items()} for entry in method.terms)
    return method.model_copy(update={"terms": terms})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["test_resnet", "test_vit", "test_convnext", "onnx"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_two_domains(tmp_path, tiny_domain, kind, name):
    sites = [tiny_domain(tmp_path / "north"), tiny_domain(tmp_path / "south", seed=1)]
    method = quick(read_method(name))
    run = Run.create(tmp_path / "run", build_config(SETTINGS | {"model": settings(kind, tmp_path)}))
    for learned in [sites] if method.needs_all_images else sites:
        run.learn(learned, method=method)
    assert run.learned == ["north", "south"]
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), dtype=np.uint8))
    found = [Run.open(run.folder).model()[0].eval().embed(crops) for _ in range(2)]
    assert torch.isfinite(found[0]).all()
    assert torch.equal(*found)
