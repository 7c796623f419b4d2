"""The doctor: clashes that pip does not notice, and the self-test of a bundle."""

import json
import subprocess
import sys

import pytest

from reid import doctor


@pytest.mark.parametrize(
    ("module", "rivals"),
    [
        ("onnxruntime", ["onnxruntime-gpu", "onnxruntime"]),
        ("cv2", ["opencv-python", "opencv-python-headless"]),
        ("faiss", ["faiss-cpu", "faiss-gpu"]),
    ],
)
def test_two_distributions_of_one_package_are_a_fault(monkeypatch, module, rivals):
    real = doctor.packages_distributions()
    monkeypatch.setattr(doctor, "packages_distributions", lambda: real | {module: rivals})
    monkeypatch.setattr(doctor, "_version", lambda *_: "1")
    wrong = [item for item in doctor.examine() if not item.ok and item.what.startswith("package")]
    assert [item.what for item in wrong] == [f"package {module}"]
    assert f"pip uninstall {' '.join(sorted(rivals))}" in wrong[0].remedy


def test_one_distribution_listed_twice_is_none(monkeypatch):
    real = doctor.packages_distributions()
    monkeypatch.setattr(doctor, "packages_distributions", lambda: real | {"cv2": real["cv2"] * 2})
    assert not [item for item in doctor.examine() if not item.ok and item.what == "package cv2"]


def test_a_package_of_ours_that_another_owns_is_a_fault(monkeypatch):
    real = doctor.packages_distributions()
    monkeypatch.setattr(doctor, "packages_distributions", lambda: real | {"reid": ["reid", "lifelong_reid"]})
    assert [item.found for item in doctor.examine() if item.what == "package reid"] == ["clash"]


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "reid.cli", *map(str, words)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_the_command_tests_a_bundle(tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("torch", reason="an export needs torch")
    from reid.config import build_config
    from reid.export import export_run
    from reid.run import Run

    settings = {"model": {"backbone": "test_resnet", "weights": "none", "dim": 32}, "crop": {"height": 64, "width": 32}}
    export_run(Run.create(tmp_path / "run", build_config(settings)), tmp_path / "bundle")
    done = command("doctor", "--bundle", tmp_path / "bundle", "--threads", 1, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {item["what"]: item for item in json.loads(done.stdout)}
    assert found["golden embeddings, batch 32"]["figures"]["cosine"] > 0.9999
    (tmp_path / "bundle" / "CARD.md").write_text("changed")
    done = command("doctor", "--bundle", tmp_path / "bundle")
    assert done.returncode == 1
    assert "not in order: bundle on cpu" in done.stdout
    assert command("doctor", "--bundle", tmp_path / "bundle", "--provider", "gpu").returncode == 2
    done = command("engine", "build", tmp_path / "bundle", "--provider", "cuda")
    assert (done.returncode, done.stderr) == (
        2,
        "reid: cuda builds no engines in advance; only tensorrt and tensorrt:N do\n",
    )


def test_a_package_that_can_not_be_loaded_is_a_finding(monkeypatch):
    def broken(name, *_):
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr("reid.doctor.importlib.import_module", broken)
    found = {finding.what: finding for finding in doctor.examine()}
    assert not found["engines"].ok
    assert "libcudart" in found["engines"].found
