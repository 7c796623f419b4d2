"""Nobody else is told: ONNX Runtime's reports to its makers are off, whichever module a program loads first."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")

KEPT_BACK = {
    "CI",
    "ORT_DISABLE_TELEMETRY",
    "ORT_RUNNING_UNIT_TESTS",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
}
"""With some of these set, ONNX Runtime reports nothing anyway, or keeps its files elsewhere."""


def python(code, home, **environment):
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in KEPT_BACK and not name.startswith(("GITHUB_", "GITLAB_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**clean, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "first",
    [
        "domains.synthetic",
        "deploy.encoder.engine",
        "reid.export.half",
        "reid.export.ranges",
        "deploy.encoder.selftest",
        "reid.cli",
        "benchmarks.small5_tables",
    ],
)
def test_nothing_is_written_and_nobody_is_told(tmp_path, first):
    home, model = tmp_path / "home", tmp_path / "model.onnx"
    home.mkdir()
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "graph", value[:1], value[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), model)
    python(
        f"import {first}, onnxruntime; onnxruntime.InferenceSession({str(model)!r}, "
        "providers=['CPUExecutionProvider'])",
        home,
    )
    assert [str(path) for path in home.rglob("*")] == []


def test_an_operator_who_wants_to_tell_may(tmp_path):
    said = python("import os, deploy; print(os.environ['ORT_DISABLE_TELEMETRY'])", tmp_path, ORT_DISABLE_TELEMETRY="0")
    assert said == "0\n"
