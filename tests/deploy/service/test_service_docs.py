"""The commands of docs/service.md and the tests that docs/security.md names."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from asking import encoded
from tiny import DIM, SPACE, embed, graph

from deploy.service.access import ROUTES
from prototypes.transport import fit_transport

ROOT = Path(__file__).parent.parent.parent.parent
PAGE = (ROOT / "docs" / "service.md").read_text("utf-8")
BLOCKS = re.findall(r"<!-- runs[^>]*-->\n```sh\n(.*?)```", PAGE, re.DOTALL)


def shell(command, folder, **environment):
    done = subprocess.run(
        [
            "bash",
            "-c",
            f'set -e\ncurl() {{ command curl -sS --fail-with-body "$@"; }}\nreid() {{ {sys.executable} -m reid.cli '
            f'"$@"; }}\n{command}',
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_of_the_interface(listen, tokens, make_bundle, projection, golden_crops, tmp_path):
    turned = projection @ np.linalg.qr(np.random.default_rng(5).normal(size=(DIM, DIM)))[0]
    crops = np.random.default_rng(6).integers(0, 256, (400, *golden_crops.shape[1:]), np.uint8)
    transport = fit_transport(embed(crops, projection), embed(crops, turned), source=SPACE, target="cd" * 32).to_bytes()
    (tmp_path / "bundles").mkdir()
    parts = {"model": graph(turned), "embeddings": embed(golden_crops, turned), "changes": {"feature_space": "cd" * 32}}
    make_bundle("bundles/bundle-2", transport=transport, **parts)
    (tmp_path / "person.jpg").write_bytes(encoded(golden_crops[0], ".jpg"))
    (tmp_path / "person2.jpg").write_bytes(encoded(golden_crops[9], ".jpg"))
    url = listen(tokens=tokens["file"].file, bundles=tmp_path / "bundles", rate=0)
    commands = BLOCKS[1].splitlines()
    asked = set()
    for command in commands:
        shell(command, tmp_path, URL=url, AUTH=f"Authorization: Bearer {tokens['all']}")
        method = "DELETE" if "-X DELETE" in command else "POST" if " -F " in command or " -d " in command else "GET"
        asked.add((method, re.search(r"\$URL(/[\w/]+)", command)[1]))
    missing = {key for key, route in ROUTES.items() if route.name not in ("page", "openapi", "livez")} - asked
    assert not missing, f"docs/service.md shows no example of {missing}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_quick_start(bundle, people, tmp_path):
    shutil.copytree(people / "c1", tmp_path / "crops")
    shutil.copy(next((people / "c1").glob("*.png")), tmp_path / "person.jpg")
    install, add, make, serve, ask = BLOCKS[0].splitlines()
    assert install.startswith("pip install")
    place = {"REID_TOKENS": str(tmp_path / "tokens.json")}
    shell(add, tmp_path, **place)
    shell(make, tmp_path, **place)
    log = tmp_path / "log"
    with log.open("w") as stream:
        words = serve.replace("8080", "0").split()[1:]
        server = subprocess.Popen(
            [sys.executable, "-m", "reid.cli", *words],
            cwd=tmp_path,
            stderr=stream,
            env={**os.environ, "PYTHONPATH": str(ROOT), **place},
        )
    try:
        for _ in range(600):
            if '"event": "ready"' in log.read_text():
                break
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
        port = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())[1]
        assert '"rank":1' in shell(ask.replace("8080", port), tmp_path, **place)
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_the_table_names_every_route_and_its_scope():
    for (method, path), route in ROUTES.items():
        if path.startswith("/v1"):
            row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{method} {path}"))
            assert f"| {'any token' if route.access == 'any' else route.access} |" in row


def test_every_test_that_the_threat_model_names_is_there():
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    known = {path.name: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`(?:[a-z]+/)*(test_\w+\.py)?(?:::(test_\w+))?`", text)
    count, last = 0, ""
    for file, test in named:
        last = file or last
        if not (file or test):
            continue
        assert last in known, last
        assert not test or f"def {test}(" in known[last], (last, test)
        count += 1
    assert count > 30
