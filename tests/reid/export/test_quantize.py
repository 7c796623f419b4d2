"""Less than float32: it answers nearly the same, or it is refused and the layers to blame are named."""

import functools

import numpy as np
import onnx
import pytest

from deploy import Encoder
from domains.crops import CropSpec
from domains.errors import ExportError, UsageError
from domains.synthetic import golden_crops
from reid.config import ModelConfig, build_config
from reid.export import Provenance, export_run
from reid.export.equalise import constants, equalise
from reid.export.export import export_graph
from reid.export.half import to_half
from reid.export.lowering import HALF_COSINE, Lowered, Lowering, Trial, eight_bit
from reid.export.quantize import GROWTH, Quantiser, quantise
from reid.export.ranges import activation_ranges, answers, least_error, start_session
from reid.network.build import build_model
from reid.run import Run

CROPS = golden_crops(24, height=64, width=32)


@functools.cache
def graph(backbone="test_resnet"):
    return export_graph(
        build_model(ModelConfig(backbone=backbone, weights="none", dim=32), CropSpec(64, 32)).eval(), CROPS[:2]
    )


@functools.cache
def quantiser():
    return Quantiser(graph(), CROPS)


def cosines(one, other, crops=CROPS):
    return np.einsum("nd,nd->n", answers(start_session(one), crops), answers(start_session(other), crops))


def kinds(data):
    return {node.op_type for node in onnx.load_from_string(data).graph.node}


def test_least_error_is_the_best_of_all_ranges_that_are_tried():
    """Naive oracle: quantise the values themselves, range by range."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=4000), [9.0, -4.0]])
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, 2048, (low, high))

    def error(first, last):
        step = (last - first) / 255
        return float(np.square(np.clip(np.round((values - first) / step), 0, 255) * step + first - values).sum())

    tried = {
        (low * a, high * b): error(low * a, high * b) for a in np.linspace(0.3, 1, 15) for b in np.linspace(0.3, 1, 15)
    }
    found = least_error(counts, low, high)
    assert error(*found) <= min(tried.values()) * 1.02
    many = counts.copy()
    many[1:-1] *= 1000
    assert least_error(many, low, high)[1] < high, "one outlier is not worth coarser steps for a million"
    assert least_error(np.zeros(8, np.int64), 0.0, 0.0) == (0.0, 0.0)


def test_ranges_lie_within_the_extremes_and_hold_nought():
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph()))
    names = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    ranges = activation_ranges(model, names, CROPS)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    for name, values in zip(
        names, start_session(watched.SerializeToString()).run(names, {"crops": CROPS}), strict=True
    ):
        low, high = ranges[name]
        assert min(values.min(), 0) - 1e-5 <= low <= 0 <= high <= max(values.max(), 0) + 1e-5


@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv2_050"])
def test_equalisation_changes_channels_and_no_answer(backbone):
    from reid.export.quantize import _prepared

    model = _prepared(graph(backbone))
    balanced, pairs = equalise(model, CROPS)
    assert pairs
    assert cosines(graph(backbone), balanced.SerializeToString()).min() > 0.9999
    before, after = constants(model.graph), constants(balanced.graph)
    assert any(before[name].SerializeToString() != after[name].SerializeToString() for name in before)


def test_int8_answers_nearly_the_same_and_is_the_same_each_time():
    made = quantise(graph(), CROPS, lambda data: 50.0)
    assert (made.left_out, made.blamed) == ((), ())
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds(made.data)
    assert cosines(graph(), made.data).min() > 0.99
    assert quantise(graph(), CROPS, lambda data: 50.0).data == made.data
    weights = [
        item
        for item in onnx.load_from_string(made.data).graph.initializer
        if item.name.endswith("_quantized") and len(item.dims) == 4
    ]
    assert weights
    assert all(item.data_type == onnx.TensorProto.INT8 for item in weights)
    scales = {item.name: item.dims for item in onnx.load_from_string(made.data).graph.initializer}
    assert all(list(scales[item.name.removesuffix("_quantized") + "_scale"]) == [item.dims[0]] for item in weights), (
        "one scale per channel"
    )


def test_seven_bits_where_sums_would_overflow():
    full, reduced = (Quantiser(graph(), CROPS[:8], reduce_range=reduce).quantised() for reduce in (False, True))
    peaks = [
        max(
            int(np.abs(onnx.numpy_helper.to_array(item).astype(int)).max())
            for item in onnx.load_from_string(data).graph.initializer
            if item.name.endswith("_quantized") and len(item.dims) == 4
        )
        for data in (full, reduced)
    ]
    assert peaks[0] > 100
    assert peaks[1] <= 64


def test_a_layer_that_is_left_out_is_really_left_out():
    """ONNX Runtime quantises a float convolution between quantised ones by itself, per tensor; the graph must not let
    it.
    """
    left = [name for name in quantiser().layers if "Add" not in name][1]
    model = onnx.load_from_string(quantiser().quantised([left]))
    names = [item.name for item in model.graph.output]
    as_written = answers(start_session(model.SerializeToString(), optimise=False), CROPS)
    as_run = answers(start_session(model.SerializeToString()), CROPS)
    assert names == ["embeddings"]
    assert np.einsum("nd,nd->n", as_written, as_run).min() > 0.9999
    assert any(node.op_type == "LeakyRelu" and node.name.endswith("_guard") for node in model.graph.node)
    everything = quantiser().quantised(list(quantiser().layers))
    assert "QuantizeLinear" not in kinds(everything)


def test_a_left_out_layer_with_lopsided_channels_needs_its_guard(monkeypatch):
    """One channel far above the others is what a single scale for all of them destroys, unless the guard hides the
    layer.
    """
    import reid.export.quantize

    lopsided = onnx.load_from_string(graph())
    convolution = [node for node in lopsided.graph.node if node.op_type == "Conv"][1]
    weight = next(item for item in lopsided.graph.initializer if item.name == convolution.input[1])
    value = onnx.numpy_helper.to_array(weight).copy()
    value[0] *= 30
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    ready = Quantiser(lopsided.SerializeToString(), CROPS)
    left = list(ready.layers)[1]

    def agreement():
        data = ready.quantised([left])
        return float(
            np.einsum(
                "nd,nd->n", answers(start_session(data, optimise=False), CROPS), answers(start_session(data), CROPS)
            ).mean()
        )

    guarded = agreement()
    monkeypatch.setattr(reid.export.quantize, "_guard", lambda *_: None)
    assert guarded > 0.9999 > agreement()


def test_the_judge_may_refuse_and_the_worst_layers_are_named():
    few = CROPS[:6]
    with pytest.raises(
        ExportError, match=r"int8 loses 20\.00 mAP .* Layers to blame, by cosine lost alone: \S+ \(\d\.\d{4}\), "
    ) as caught:
        quantise(graph(), few, Judge([60.0, 40.0]), strict=True)
    worst = Quantiser(graph(), few).blame(few)
    assert [item.loss for item in worst] == sorted((item.loss for item in worst), reverse=True)
    assert worst[0].layer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_worst_layers_are_left_in_float32_until_the_judge_is_content(monkeypatch):
    few = CROPS[:6]
    made = quantise(graph(), few, Judge([60.0, 40.0, 50.0, 59.8]))
    assert made.left_out == tuple(item.layer for item in made.blamed[:2])
    assert (made.before, made.after) == (60.0, 59.8)
    whole = quantise(graph(), few, Judge([60.0, 60.0]))
    assert cosines(graph(), made.data).mean() > cosines(graph(), whole.data).mean()
    monkeypatch.setattr(Quantiser, "blame", lambda self, crops, left_out: made.blamed)
    said = []
    layers = len(quantiser().layers)
    with pytest.raises(ExportError, match=rf"leaving up to {layers // 2} of {layers} layers in float32 did not help"):
        quantise(graph(), few, Judge([60.0, 40.0]), say=said.append)
    tried = [int(line.split()[0]) for line in said if "left in float32" in line]
    assert tried == [*(count for count in GROWTH if count < layers // 2), layers // 2], (
        "the half that the error names is tried too"
    )


class Judge:
    """Gives these scores in turn, and the last from then on."""

    def __init__(self, scores):
        self.scores = list(scores)

    def __call__(self, data):
        return self.scores.pop(0) if len(self.scores) > 1 else self.scores[0]


def test_layers_can_be_excluded_by_name():
    name = list(quantiser().layers)[2]
    assert quantiser().named([name, name]) == [name]
    assert quantise(graph(), CROPS[:8], Judge([1.0]), exclude=[name]).left_out == (name,)
    with pytest.raises(UsageError, match=r"no layer is called 'nothing'; there are "):
        quantise(graph(), CROPS[:8], Judge([1.0]), exclude=["nothing"])
    with pytest.raises(UsageError, match="train crops"):
        quantise(graph(), CROPS[:0], Judge([1.0]))


def test_what_can_be_neither_quantised_nor_halved_is_refused():
    from tiny import DIM, HEIGHT, WIDTH
    from tiny import graph as tiny

    data = tiny(np.random.default_rng(0).normal(size=(HEIGHT * WIDTH // 16 * 3, DIM)))
    with pytest.raises(ExportError, match="no backbone"):
        to_half(data)
    plain = onnx.load_from_string(data)
    del plain.graph.node[5]
    plain.graph.node[5].input[0] = "flattened"
    with pytest.raises(ExportError, match="no convolution or linear layer"):
        Quantiser(plain.SerializeToString(), np.zeros((2, HEIGHT, WIDTH, 3), np.uint8))


@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv2_050", "test_vit"])
def test_half_precision_keeps_inputs_and_outputs(backbone):
    model = build_model(
        ModelConfig(backbone=backbone, weights="none", dim=32),
        CropSpec(160, 160) if backbone == "test_vit" else CropSpec(64, 32),
    ).eval()
    crops = golden_crops(7, height=160, width=160) if backbone == "test_vit" else CROPS[:7]
    data = export_graph(model, crops[:2])
    halved = to_half(data)
    assert len(halved) < 0.75 * len(data)
    session = start_session(halved)
    assert [(item.name, item.type) for item in (*session.get_inputs(), *session.get_outputs())] == [
        ("crops", "tensor(uint8)"),
        ("embeddings", "tensor(float)"),
    ]
    assert cosines(data, halved, crops).min() > HALF_COSINE
    assert np.allclose(np.linalg.norm(answers(session, crops), axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from domains.synthetic import STYLES, make_domain

    folder = tmp_path_factory.mktemp("lower")
    settings = {
        "model": {"backbone": "test_resnet", "weights": "none", "dim": 32},
        "crop": {"height": 64, "width": 32},
        "train": {"iterations": 3, "identities": 4, "instances": 2},
    }
    run = Run.create(folder / "run", build_config(settings))
    run.learn(make_domain(folder / "site", next(iter(STYLES)), identities=12, size=(48, 24)), method="fine_tune")
    run.fill_scores()
    return run


def test_half_bundle(run, tmp_path):
    full, half = export_run(run, tmp_path / "full"), export_run(run, tmp_path / "half", lowering=Lowering(half=True))
    assert (half.manifest["precision"], half.feature_space) == ("fp16", full.feature_space)
    assert min(half.manifest["parity"].values()) >= HALF_COSINE
    crops = list(golden_crops(5, height=100, width=40))
    assert np.einsum("nd,nd->n", Encoder.load(full.folder)(crops), Encoder.load(half.folder)(crops)).min() > 0.998


def test_int8_bundle(run, tmp_path, monkeypatch):
    import reid.export.lowering

    monkeypatch.setattr(reid.export.lowering, "quantise", functools.partial(quantise, loss=100.0))
    domain = next(iter(run.known_domains().values()))
    made = export_run(
        run, tmp_path / "bundle", lowering=Lowering(int8=domain), provenance=Provenance("CC0", "drawn | by us")
    )
    found = made.manifest["quantisation"]
    assert (made.manifest["precision"], found["domain"], found["left_out"]) == ("int8", "site", [])
    assert found["own_space"] == (made.feature_space != run.steps[-1].feature_space)
    encoder = Encoder.load(made.folder)
    full = Encoder.load(export_run(run, tmp_path / "full").folder)
    crops = list(golden_crops(5, height=100, width=40))
    assert np.einsum("nd,nd->n", encoder(crops), full(crops)).min() > 0.95
    card = (made.folder / "CARD.md").read_text()
    for words in (
        "## Quantisation",
        "| site | yes |",
        "weights: CC0",
        "| 1 | site | 6 |",
        "Out of scope",
        made.feature_space,
    ):
        assert words in card
    with pytest.raises(UsageError, match="no layer is called"):
        export_run(run, tmp_path / "other", lowering=Lowering(int8=domain, exclude=["nothing"]))
    assert not (tmp_path / "other").exists()


def test_a_graph_too_far_from_float32_gets_a_space_of_its_own():
    """A stub in place of the domain decides: by cosine the spaces are one, by the mixed score they are not."""
    start = Lowered(graph(), {1: 1.0}, {"precision": "fp32", "feature_space": "ab" * 32}, None)

    def lowered(mixed):
        scores = Judge([50.0, 50.0, mixed])
        trial = Trial("drawn", "f", CROPS, CROPS, lambda ask, hold: scores(b""))
        return eight_bit(start, trial, lambda data, least: {1: 0.99}, Lowering())

    same, own = lowered(49.6), lowered(49.4)
    assert (same.body["feature_space"], same.transport) == ("ab" * 32, None)
    assert own.body["quantisation"]["own_space"]
    assert own.body["feature_space"] != "ab" * 32
    assert (own.transport.source, own.transport.target) == ("ab" * 32, own.body["feature_space"])
    carried, wanted = own.transport(answers(start_session(graph()), CROPS)), answers(start_session(own.data), CROPS)
    assert np.einsum("nd,nd->n", carried, wanted).min() > 0.99


def test_the_command_line_exports_signs_and_refuses(run, reid, tmp_path, monkeypatch):
    import json

    pytest.importorskip("cryptography", reason="signatures need the package cryptography")

    assert reid("key", "make", tmp_path / "key")[0] == 0
    stated = ("--weights-licence", "MIT", "--data-licence", "drawn")
    code, out, _ = reid(
        "export", run.folder, tmp_path / "bundle", "--fp16", *stated, "--key", tmp_path / "key", "--json"
    )
    assert (code, json.loads(out)["licences"], json.loads(out)["precision"]) == (
        0,
        {"weights": "MIT", "data": "drawn"},
        "fp16",
    )
    monkeypatch.setenv("LIFELONG_REID_TRUSTED_KEYS", str(tmp_path / "key.pub"))
    assert len(Encoder.load(tmp_path / "bundle").bundle.signers) == 1
    monkeypatch.delenv("LIFELONG_REID_TRUSTED_KEYS")
    for wrong, words in (
        (["--fp16", "--int8", tmp_path / "x"], "x"),
        (["--strict"], "--int8 too"),
        (["--key", tmp_path / "nothing"], "can't read the key"),
    ):
        code, out, err = reid("export", run.folder, tmp_path / "other", *wrong)
        assert (code != 0, out, err.count("\n")) == (True, "", 1)
        assert words in err
        assert not (tmp_path / "other").exists()


def test_contradictions_are_wrong_use():
    with pytest.raises(UsageError, match="not both"):
        Lowering(half=True, int8=object())
    for wrong in ({"exclude": ["x"]}, {"strict": True}, {"reduce_range": True}):
        with pytest.raises(UsageError, match="with --int8 too"):
            Lowering(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "resnet50"])
def test_int8_on_real_crops(backbone, real_data):
    """The networks that are deployed most: all of ResNet-50, and MobileNetV2 with its balanced channels, stay near
    float32.
    """
    import domains
    from reid.batches.loader import CropStore

    weights = real_data.parent / "weights" / f"{backbone}.imagenet.fp16.safetensors"
    spec = CropSpec(128, 64)
    model = build_model(
        ModelConfig(backbone=backbone, weights=str(weights) if weights.is_file() else "none"), spec
    ).eval()
    domain = domains.open(real_data / "ilids")
    train, test = (
        CropStore.decode(domain, split.take(np.arange(48)), spec).crops for split in (domain.train, domain.query)
    )
    data = export_graph(model, train[:2])
    near = cosines(data, quantise(data, train, Judge([1.0])).data, test)
    assert near.mean() > (0.95 if backbone == "mobilenetv2_100" else 0.999)
