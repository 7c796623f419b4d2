"""What a wheel holds, and that the edge needs no torch."""

import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_a_built_wheel_holds_the_configurations_and_reads_them(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    shipped = {f"reid/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert shipped <= set(names)
    assert {"domains/formats/splits/viper.json", "reid/py.typed", "deploy/py.typed"} <= set(names)
    assert {f"deploy/service/page/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]
    code = """
        import sys; sys.path.insert(0, sys.argv[1])
        import reid; assert reid.__file__.startswith(sys.argv[1]), reid.__file__
        from reid.config import read_method, shipped
        known = set(shipped("methods"))
        assert {"default", "fusion", "fine_tune", "lwf", "affinity", "joint"} <= known, known
        assert str(shipped("methods")["fusion"]).startswith(sys.argv[1])
        assert read_method("fusion").fusion
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True, cwd=tmp_path, timeout=60)


@pytest.mark.slow
def test_the_edge_works_in_an_environment_without_torch(wheel, tmp_path, monkeypatch):
    """A fresh environment with the base install and the cpu extra: import, encode, fill, ask, draw. No torch is there
    to be found.
    """
    monkeypatch.delenv("PYTHONPATH", raising=False)
    environment = tmp_path / "edge"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", f"{wheel}[cpu]"], capture_output=True, text=True, timeout=500
    )
    if done.returncode and "No matching distribution" in done.stderr + done.stdout:
        pytest.skip("the package index can't be reached")
    assert done.returncode == 0, done.stderr
    assert subprocess.run([str(python), "-c", "import torch"], capture_output=True).returncode == 1
    bundle = tmp_path / "bundle"
    export = f"""
        import torch
        from pathlib import Path
        from reid import Run
        from reid.config import build_config
        from reid.export import export_run
        model = {{"backbone": "test_resnet", "weights": "none", "dim": 32}}
        settings = {{"model": model, "crop": {{"height": 64, "width": 32}}}}
        export_run(Run.create({str(tmp_path / "run")!r}, build_config(settings)), Path({str(bundle)!r}))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(export)], check=True, timeout=120)
    command = environment / "bin" / "reid"
    steps = [
        ["domain", "make", "site", "--identities", "8"],
        ["domain", "check", "site"],
        ["gallery", "add", "gallery", "site", "--bundle", str(bundle)],
        ["evaluate", "site", "--bundle", str(bundle), "--json"],
        ["doctor", "--bundle", str(bundle)],
    ]
    for words in steps:
        done = subprocess.run([str(command), *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    image = next(path for path in (tmp_path / "site").rglob("*") if path.suffix in (".png", ".jpg"))
    done = subprocess.run(
        [str(command), "query", "gallery", str(image), "--picture", "out.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").is_file()
    refused = subprocess.run(
        [str(command), "learn", "run2", "site"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert "pip install 'lifelong-reid[cpu,train]'" in refused.stderr
