"""The edge as it is installed: no torch, and nothing heavy loaded before it is needed."""

import subprocess
import sys

import pytest

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
"""
TRAINING = ("torch", "torchvision", "timm", "onnx", "safetensors", "sklearn")


def run(code, *arguments, blocked=TRAINING):
    script = BLOCK.format(blocked=blocked) + code
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_nothing_heavy():
    code = """
import deploy, deploy.gallery.sources, deploy.answers.picture
print(sorted({"torch", "faiss", "onnxruntime", "onnx", "timm", "reid"} & set(sys.modules)))
print(sorted(deploy.__all__))
"""
    assert run(code, blocked=(*TRAINING, "faiss", "onnxruntime")).splitlines() == [
        "[]",
        "['Bundle', 'Embeddings', 'Encoder', 'Gallery', 'Match', 'Refinement', 'Thresholds', 'Transitions']",
    ]


def test_encoder_gallery_query_and_picture_without_torch(bundle, people, tmp_path):
    pytest.importorskip("faiss", reason="FAISS is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    code = """
from pathlib import Path
from deploy import Encoder, Gallery
from deploy.gallery import open_or_create
from deploy.answers.picture import draw_matches, stack, write_picture
from deploy.gallery.sources import fill, read_sources
from domains.crops import read_crop

bundle, people, out = map(Path, sys.argv[1:])
with open_or_create(out / "gallery", bundle) as gallery:
    filled = fill(gallery, Encoder.load(gallery.bundle, threads=1), read_sources(people))
    print(filled.added, filled.known, len(filled.skipped))
with Gallery.open(out / "gallery") as gallery:
    encoder = Encoder.load(gallery.bundle, threads=1)
    crops = [read_crop(path) for path in sorted(people.rglob("*.png"))]
    found = gallery.search(encoder(crops), k=3)
    for crop, matches in zip(crops, found):
        print(matches[0].source, matches[0].camera, f"{matches[0].score:.3f}", len(matches))
    write_picture(out / "found.png", stack([draw_matches(crop, matches) for crop, matches in zip(crops, found)]))
print(sorted({"torch", "reid", "timm"} & set(sys.modules)))
"""
    lines = run(code, bundle.folder, people, tmp_path).splitlines()
    assert lines[0] == "6 0 0"
    assert lines[1:-1] == [f"{path} {path.parent.name} 1.000 3" for path in sorted(people.rglob("*.png"))]
    assert lines[-1] == "[]"
    assert (tmp_path / "found.png").stat().st_size > 1000
