"""What a wheel holds, and that the edge needs no torch."""

import re
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the source distribution, and the wheel from it, so that nothing else of this folder can get into it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


WALK = """
    import importlib, pkgutil
    import deploy, domains, prototypes
    served = {"fastapi", "starlette", "uvicorn", "prometheus_client", "multipart"}  # the extra [serve], not here
    count = 0
    for package in (deploy, domains, prototypes):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                known = module.name.startswith("deploy.service") and error.name.split(".")[0] in served
                assert known, (module.name, error)
            count += 1
    print(count)
"""
"""Import every module of the three packages that promise to need no torch and no onnx, and count them."""


def test_every_package_of_the_tree_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    roots = ("deploy", "domains", "prototypes", "reid")
    inits = [path.parent for root in roots for path in (ROOT / root).rglob("__init__.py")]
    tree = {".".join(folder.relative_to(ROOT).parts) for folder in inits}
    configs = {
        ".".join(("reid", *folder.relative_to(ROOT).parts))
        for folder in [ROOT / "configs", *(ROOT / "configs").iterdir()]
        if folder.is_dir() and folder.name != "__pycache__"
    }
    assert sorted(listed) == sorted(tree | configs)


@pytest.mark.slow
def test_the_source_distribution_holds_every_tracked_file(built):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    present = {name for name in tracked.stdout.splitlines() if (ROOT / name).exists()}
    assert not present - packed


@pytest.mark.slow
def test_the_package_page_links_to_nothing_relative(wheel):
    with zipfile.ZipFile(wheel) as archive:
        page = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert len(targets) > 10
    assert all(target.startswith("https://") for target in targets), targets


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
    walked = subprocess.run(
        [str(python), "-c", textwrap.dedent(WALK)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert walked.returncode == 0, walked.stderr
    assert int(walked.stdout) > 90
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
