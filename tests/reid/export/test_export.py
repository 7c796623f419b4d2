"""Export: what the graph says is what the model says, or there is no bundle."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deploy import Encoder
from deploy.bundle import Bundle
from domains.crops import CropSpec
from domains.errors import ExportError
from domains.synthetic import golden_crops
from reid.config import ModelConfig, build_config
from reid.export import export_run
from reid.export.export import check_parity, export_graph
from reid.network.build import build_model
from reid.run import Run

SMALL = {
    "mobilenetv2_050": (64, 32),
    "vit_tiny_patch16_224": (64, 32),
    "resnet10t": (64, 32),
    "convnext_atto": (64, 32),
}
REAL = {
    "osnet_x0_25_msmt17": {"channels": "rgb", "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
    "person-reidentification-retail-0277": {"channels": "bgr", "mean": (0, 0, 0), "std": (1, 1, 1)},
    "person-reidentification-retail-0288": {"channels": "bgr", "mean": (0, 0, 0), "std": (1, 1, 1)},
}


@pytest.fixture
def run(tmp_path, tiny_domain):
    settings = {
        "model": {"backbone": "test_resnet", "weights": "none", "dim": 32},
        "crop": {"height": 64, "width": 32},
        "train": {"iterations": 3, "identities": 4, "instances": 2},
    }
    run = Run.create(tmp_path / "run", build_config(settings))
    run.learn(tiny_domain(tmp_path / "site"), method="fine_tune")
    return run


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("training", [True, False])
def test_graph_and_model_agree_and_the_model_is_left_as_it_was(backbone, training):
    height, width = SMALL[backbone]
    model = build_model(ModelConfig(backbone=backbone, weights="none", dim=48), CropSpec(height, width)).train(training)
    model.to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    strides = [value.stride() for value in model.parameters()]
    crops = golden_crops(32, height=height, width=width)
    data = export_graph(model, crops[:2])
    parity = check_parity(model, data, crops)
    assert set(parity) == {1, 2, 7, 32}
    assert min(parity.values()) >= 0.9999
    assert [module.training for module in model.modules()] == modes
    assert [value.stride() for value in model.parameters()] == strides
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_operator_that_onnx_lacks_is_one_line_and_nothing_on_stdout(capfd):
    model = build_model(ModelConfig(backbone="test_vit4", weights="none", dim=48), CropSpec(64, 32))
    with pytest.raises(ExportError, match=r"torch can't export this model to ONNX: .*aten::rms_norm") as error:
        export_graph(model, golden_crops(2, height=64, width=32))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().out == ""


def test_a_bundle_embeds_what_the_run_embeds(run, tmp_path):
    bundle = export_run(run, tmp_path / "bundle")
    assert bundle.manifest["feature_space"] == run.steps[-1].card["feature_space"]
    assert bundle.manifest["parent"] == run.steps[-1].card["id"]
    encoder = Encoder.load(tmp_path / "bundle")
    crops = golden_crops(5, height=100, width=40)
    model, _ = run.model()
    with torch.inference_mode():
        wanted = model.embed(torch.from_numpy(run.config.crop.spec().batch(list(crops)))).numpy()
    assert np.allclose(encoder(list(crops)), wanted, atol=1e-5)
    assert "Person re-identification encoder" in (tmp_path / "bundle" / "CARD.md").read_text()


def test_the_untrained_start_can_be_exported_too(run, tmp_path):
    assert export_run(run, tmp_path / "bundle", step=0).manifest["domains"] == []


def test_a_graph_that_differs_is_refused_and_nothing_is_written(run, tmp_path, monkeypatch):
    import reid.export.export

    other = build_model(ModelConfig(backbone="test_resnet", weights="none", dim=32), CropSpec(64, 32), seed=9).eval()
    wrong = export_graph(other, golden_crops(2, height=64, width=32))
    monkeypatch.setattr(reid.export.export, "export_graph", lambda model, sample: wrong)
    with pytest.raises(ExportError, match=r"differ at batch 1, crop 0: cosine"):
        export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert not list(tmp_path.glob(".bundle*"))


def test_a_collapsed_model_is_refused():
    model = build_model(ModelConfig(backbone="test_resnet", weights="none", dim=32), CropSpec(64, 32)).eval()
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.embedding.bias.fill_(1.0)
    crops = golden_crops(32, height=64, width=32)
    with pytest.raises(ExportError, match="nearly the same embedding"):
        check_parity(model, export_graph(model, crops[:2]), crops)


def test_parity_is_a_cosine():
    """It says in which direction a graph answers; that its answers have unit length is asked for beside it."""
    model = build_model(ModelConfig(backbone="test_resnet", weights="none", dim=32), CropSpec(64, 32)).eval()
    crops = golden_crops(32, height=64, width=32)
    data = export_graph(model, crops[:2])
    assert max(check_parity(model, data, crops).values()) <= 1
    assert max(check_parity(model, scaled(data, 1.00005), crops).values()) <= 1
    with pytest.raises(ExportError, match=r"batch 1, crop 0 .*length 1\.01"):
        check_parity(model, scaled(data, 1.01), crops)
    with pytest.raises(ExportError, match=r"differ at batch 1, crop 0: cosine nan"):
        check_parity(model, scaled(data, np.nan), crops)


def scaled(data, factor):
    """The same graph, its answers this much longer."""
    made = onnx.load_from_string(data)
    last = made.graph.node[-1]
    last.output[0] = "unit"
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
    made.graph.node.append(onnx.helper.make_node("Mul", ["unit", "factor"], ["embeddings"]))
    return made.SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_deployed_onnx_encoder_can_be_taught_and_exported_again(name, real_data, tmp_path, tiny_domain):
    file = real_data.parent / "weights" / f"{name}.onnx"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    settings = {
        "model": {"backbone": f"onnx:{file}", **REAL[name]},
        "train": {"iterations": 2, "identities": 3, "instances": 2},
        "method": "fine_tune",
    }
    run = Run.create(tmp_path / "run", build_config(settings))
    assert Path(run.folder / "backbone.onnx").read_bytes() == file.read_bytes()
    start = export_run(run, tmp_path / "start")
    crops = golden_crops(3, height=256, width=128)
    rule = REAL[name]
    images = crops.astype(np.float32)[..., ::-1] if rule["channels"] == "bgr" else crops.astype(np.float32)
    images = ((images - np.float32(rule["mean"])) / np.float32(rule["std"])).transpose(0, 3, 1, 2)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(images)})[0].reshape(3, -1)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.einsum("nd,nd->n", Encoder.load(tmp_path / "start")(crops), wanted).min() > 0.9999
    assert start.manifest["dim"] == wanted.shape[1]
    run.learn(tiny_domain(tmp_path / "site"))
    taught = export_run(run, tmp_path / "taught")
    assert isinstance(taught, Bundle)
    assert taught.manifest["feature_space"] != start.manifest["feature_space"]
