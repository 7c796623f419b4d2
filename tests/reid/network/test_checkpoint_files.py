"""Start weights as trainers save them: usual wrappers load, and where not, one line names the keys and what to do."""

import argparse
import functools
import gzip
import io
import lzma
import os
import pickle
import sys
import tarfile
import time
import types
import uuid
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, datetime
from datetime import time as clock
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from backbones import built, one_line
from safetensors.torch import save_file
from torch import nn

from domains.errors import BackboneError

KEY = "layer1.0.conv1.weight"


@pytest.fixture
def source():
    torch.manual_seed(3)
    return timm.create_model("test_resnet")


@pytest.fixture
def state(source):
    return dict(source.state_dict())


def saved(content, path, **options):
    torch.save(content, path, **options)
    return path


def loads(file, source):
    own = {key.removeprefix("net.model."): value for key, value in built(weights=file).state_dict().items()}
    wanted = source.state_dict()
    return own and all(torch.equal(value, wanted[key]) for key, value in own.items())


def under(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


def inside(*names, **beside):
    def wrap(state):
        for name in reversed(names):
            state = {**beside, name: state}
        return state

    return wrap


def optimised(state):
    weight = nn.Parameter(torch.ones(4))
    optimiser = torch.optim.Adam([weight])
    weight.sum().backward()
    optimiser.step()
    return {"epoch": 3, "optimizer": optimiser.state_dict(), "model": state, "scaler": {"scale": 65536.0}}


def parameters(state):
    return OrderedDict(
        (key, nn.Parameter(value) if value.is_floating_point() else value) for key, value in state.items()
    )


def compiled_inside(state):
    return {key.replace("layer1.", "layer1._orig_mod."): value for key, value in state.items()}


def lightning(state):
    return {
        "epoch": 9,
        "global_step": 100,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": {f"model.{key}": value for key, value in state.items()}
        | {"criterion.centres": torch.ones(5, 8), "metric.total": torch.tensor(0)},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.9), "dirpath": "/x"}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": []}],
        "lr_schedulers": [{"last_epoch": 3}],
    }


def self_distilled(state):
    heads = {f"head.mlp.{number}.weight": torch.ones(3, 3) for number in range(2)}
    student = {f"module.backbone.{key}": value for key, value in state.items()} | {
        f"module.{k}": v for k, v in heads.items()
    }
    return {"student": student, "optimizer": {"state": {}}, "epoch": 1}


def beside(value):
    return lambda state: {"state_dict": state, "best": value, "history": [value, {"deep": value}]}


WRAPPERS = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    "parameters": parameters,
    "default dictionary": lambda state: {"model": defaultdict(list, state)},
    "compiled": under("_orig_mod."),
    "data parallel": under("module."),
    "data parallel, compiled": under("_orig_mod.module."),
    "compiled, data parallel": under("module._orig_mod."),
    "compiled stage": compiled_inside,
    "compiled stage, compiled, data parallel": lambda state: under("module._orig_mod.model.")(compiled_inside(state)),
    "fully sharded": under("_fsdp_wrapped_module."),
    "own name": under("reid_net.trunk."),
    **{
        " > ".join(names): inside(*names, epoch=1)
        for names in (
            ("state_dict",),
            ("model",),
            ("model_state_dict",),
            ("network",),
            ("net",),
            ("ema",),
            ("student",),
            ("teacher",),
            ("state_dict_ema",),
            ("checkpoint", "model", "state_dict"),
            ("ema", "module"),
            ("params", "backbone"),
        )
    },
    "compiled in a wrapper": lambda state: {"model_state_dict": under("_orig_mod.")(state)},
    "optimiser beside": optimised,
    "lightning": lightning,
    "self-distilled": self_distilled,
    "list of networks": lambda state: {"models": [state, {"other": torch.ones(2)}]},
    "numpy scalar": beside(np.float64(0.71)),
    "other numpy scalars": beside(
        [np.float32(1), np.int64(2), np.bool_(True), np.uint8(3), np.float16(4), np.str_("x")]
    ),
    "numpy array": beside(np.arange(6.0).reshape(2, 3)),
    "arguments": beside(argparse.Namespace(lr=0.1, out=Path("/tmp"))),
    "time": beside(datetime(2024, 1, 1, tzinfo=UTC).replace(tzinfo=None)),
    "counts": beside(defaultdict(int, a=1)),
    "namespace": beside(types.SimpleNamespace(a=1)),
    "time of day": beside(clock(1, 2)),
    "time with zone": beside(datetime(2024, 1, 1, tzinfo=UTC)),
    "version of torch": beside(torch.__version__),
    "queue": beside(deque([1, {"a": deque(maxlen=3)}], maxlen=9)),
    "sets": beside([{1, 2}, frozenset([3]), {frozenset([4]): 1}, Counter("ab")]),
    "slices and ranges": beside([slice(1, 2), range(3), ...]),
    "exact numbers": beside([Decimal("0.1"), Fraction(1, 3), 1 + 2j, uuid.UUID(int=7)]),
    "partial": beside(functools.partial(int, base=2)),
    "functions of torch": beside([nn.functional.relu, nn.init.xavier_uniform_]),
    "generators": beside(
        [np.random.default_rng(0), np.random.RandomState(0), np.random.Generator(np.random.Philox(1))]
    ),
    "masked array": beside(np.ma.masked_array([1], [0])),
    "several returned": beside(torch.ones(2).max(0)),
    "double": lambda state: {"model": {k: v.double() if v.is_floating_point() else v for k, v in state.items()}},
    "re-id head": lambda state: {
        "model": {f"base.{k}": v for k, v in state.items()}
        | {"bottleneck.weight": torch.ones(8), "classifier.weight": torch.ones(3, 8)}
    },
}


def optimiser():
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)


MODULES = {
    "loss": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    "loss with weights": lambda: nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
    "optimiser": optimiser,
    "partial": lambda: functools.partial(nn.BatchNorm2d, eps=1e-3),
    "classes": lambda: [nn.ReLU, torch.optim.AdamW, torch.optim.lr_scheduler.CosineAnnealingLR],
    "schedule": lambda: torch.optim.lr_scheduler.LambdaLR(optimiser(), functools.partial(max, 1)).state_dict(),
    "layers": lambda: {"head": nn.Sequential(nn.Linear(2, 2), nn.ReLU())},
}


@pytest.mark.parametrize("what", MODULES)
def test_objects_of_torch_beside_the_weights_are_passed_over(what, source, state, tmp_path):
    assert loads(saved({"state_dict": state, "hyper_parameters": MODULES[what]()}, tmp_path / "w.pth"), source)


@pytest.mark.parametrize("how", WRAPPERS)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_usual_checkpoints_load(how, old, source, state, tmp_path):
    file = saved(WRAPPERS[how](state), tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    assert loads(file, source)


@pytest.mark.parametrize(
    "how", [name for name in WRAPPERS if "compiled" in name or "parallel" in name or name == "own name"]
)
def test_the_same_prefixes_in_safetensors(how, source, state, tmp_path):
    wrapped = WRAPPERS[how](state)
    wrapped = wrapped.get("model_state_dict", wrapped)
    save_file({key: value.contiguous() for key, value in wrapped.items()}, tmp_path / "w.safetensors")
    assert loads(tmp_path / "w.safetensors", source)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_loads_as_float32(kind, state, tmp_path):
    halved = {f"_orig_mod.{k}": v.to(kind) if v.is_floating_point() else v for k, v in state.items()}
    backbone = built(weights=saved({"ema": halved}, tmp_path / "w.pt"))
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}


class AttributeDict(dict):
    """Lightning's hyperparameters, under the module's name that Lightning has."""


AttributeDict.__module__, AttributeDict.__qualname__ = "pytorch_lightning.utilities.parsing", "AttributeDict"


def test_settings_of_trainers_need_not_be_installed(source, state, tmp_path, monkeypatch):
    home = types.ModuleType("pytorch_lightning.utilities.parsing")
    home.AttributeDict = AttributeDict
    names = ["pytorch_lightning", "pytorch_lightning.utilities"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, home.__name__, home)
    settings = AttributeDict(lr=np.float64(0.1), where=Path("/x"))
    settings.note = "x"
    torch.save({"state_dict": state, "hyper_parameters": settings}, tmp_path / "w.ckpt")
    for name in (*names, home.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert loads(tmp_path / "w.ckpt", source)


@pytest.mark.parametrize("order", [("ema", "model"), ("model", "ema")])
def test_of_equal_ones_the_plain_is_taken_and_not_its_average(order, source, state, tmp_path):
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    content = {name: state if name == "model" else other for name in order}
    assert loads(saved(content, tmp_path / "w.pth"), source)
    flat = {f"{name}.{key}": value for name in order for key, value in content[name].items()}
    assert loads(saved(flat, tmp_path / "w.pth"), source)


@pytest.mark.parametrize(
    "copy", ["momentum_encoder", "module.encoder_k", "target_net", "swa_model", "grads", "EMA.module", "exp_avg"]
)
def test_what_is_a_copy_by_its_name_comes_last(copy, source, state, tmp_path):
    other = {f"{copy}.{key}": torch.zeros_like(value) for key, value in state.items()}
    assert loads(
        saved({**other, **{f"encoder.{key}": value for key, value in state.items()}}, tmp_path / "w.pth"), source
    )
    assert loads(saved({copy: other, "net": state}, tmp_path / "w.pth"), source)


@pytest.mark.parametrize(
    "extra",
    [
        ["pixel_mean", "pixel_std"],
        ["arcface.weight"],
        ["bnneck.weight", "bnneck.bias", "classifier_proj.weight", "gap.p", "feat_bn.weight", "fc2.bias"],
        ["total_ops", "total_params", "layer1.total_ops", "layer1.0.conv1.total_params"],
        ["loss.centers", "criterion.margin", "logit_scale", "queue", "memory_bank"],
    ],
    ids=lambda extra: extra[0],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_is_plainly_not_the_backbones_is_left_out_and_named(extra, prefix, source, state, tmp_path, caplog):
    content = {prefix + key: value for key, value in (state | dict.fromkeys(extra, torch.ones(3))).items()}
    assert loads(saved(content, tmp_path / "w.pth"), source)
    (record,) = caplog.records
    assert f"w.pth: left out what is no part of the backbone: {sorted(extra)[0]}" in record.getMessage()


@pytest.mark.parametrize(
    "extra",
    ["layer1.7.conv1.weight", "layer5.weight", "conv_head.weight", "cls_token", "fc_norm.weight", "stem.weight"],
)
def test_what_may_be_the_backbones_own_is_refused(extra, state, tmp_path):
    file = saved({"model": state | {extra: torch.ones(3)}}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=rf"unexpected {extra}; .*model\.backbone, or remove them") as caught:
        built(weights=file)
    one_line(caught)


def cast(change):
    return lambda state: {key: change(value) if value.is_floating_point() else value for key, value in state.items()}


def spoiled(key, value):
    return lambda state: state | {key: torch.full_like(state[key], value)}


NO_WEIGHTS = {
    "not a number": (cast(lambda value: value * torch.nan), r"not finite numbers, first in \w+\."),
    "overflown": (cast(lambda value: (value.abs() * 1e9 + 1e9).half()), "not finite numbers"),
    "too large": (cast(lambda value: value.double() + 1e300), "not finite numbers"),
    "one number": (spoiled(KEY, -torch.inf), f"not finite numbers, first in {KEY}"),
    "statistics": (spoiled("bn1.running_var", torch.nan), r"not finite numbers, first in bn1\.running_var"),
    "8 bits": (cast(lambda value: value.to(torch.int8)), r"weight is int8|bias is int8|running_\w+ is int8"),
    "one in 8 bits": (lambda state: state | {KEY: state[KEY].to(torch.uint8)}, f"{KEY} is uint8"),
    "true or false": (cast(lambda value: value > 0), "is bool"),
    "complex": (cast(lambda value: value.to(torch.complex64)), "is complex64"),
    "quantised": (cast(lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)), "is qint8"),
    "sparse": (cast(lambda value: value.to_sparse()), "is sparse"),
    "without values": (cast(lambda value: value.to("meta")), "has no values"),
    "all without values": (lambda state: {key: value.to("meta") for key, value in state.items()}, "has no values"),
}


@pytest.mark.parametrize("how", NO_WEIGHTS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_values_that_no_network_can_have_are_refused(how, suffix, state, tmp_path, recwarn):
    change, said = NO_WEIGHTS[how]
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        saved({"model": change(state)}, file)
    elif how in ("quantised", "sparse", "without values", "all without values"):
        pytest.skip("safetensors does not write these")
    else:
        save_file({key: value.contiguous() for key, value in change(state).items()}, file)
    with pytest.raises(BackboneError, match=rf"w\..*{said}") as caught:
        built(weights=file)
    one_line(caught)
    assert str(caught.value).isprintable()
    assert not [warning for warning in recwarn if "complex" in str(warning.message).lower()]


@pytest.mark.parametrize("kind", ["not a number", "complex", "8 bits", "without values"])
def test_position_embeddings_that_are_resampled_are_looked_at_too(kind, tmp_path):
    model = timm.create_model("test_vit")
    change, _ = NO_WEIGHTS[kind]
    weights = dict(model.state_dict())
    weights["pos_embed"] = change({"pos_embed": weights["pos_embed"]})["pos_embed"]
    with pytest.raises(BackboneError, match="pos_embed") as caught:
        built("test_vit", weights=saved(weights, tmp_path / "w.pth"))
    one_line(caught)


def test_a_nested_tensor_is_no_weight(source, state, tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert loads(saved({"model": state, "extra": {"conv1.weight": nested}}, tmp_path / "w.pth"), source)


def many(make, count=30_000):
    return dict.fromkeys(range(count), make)


def chain(depth, make=lambda inner: {"a": inner}):
    inner = make(1)
    for _ in range(depth):
        inner = make(inner)
    return inner


def circle():
    content = {}
    content["a"] = {"back": content, "list": [content, content]}
    return content


BOMBS = {
    "dictionaries of one dictionary": lambda: many(many(many({}))),
    "dictionaries of one list of one dictionary": lambda: many([many([{}] * 30_000)] * 30_000),
    "dictionaries of one tuple": lambda: many((many(({},) * 30_000),) * 30_000),
    "lists in lists": lambda: many([[[[]] * 30_000] * 30_000] * 30_000),
    "deep": lambda: chain(3000),
    "deep list": lambda: {"a": chain(3000, lambda inner: [inner])},
    "a circle": circle,
    "many dots": lambda: {"." * 2_000_000: torch.ones(1), "a" * 2_000_000: torch.ones(1)},
    "long names in lists": lambda: {
        "a": [{"k" * 1_000_000: {}}] * 30_000,
        "b": [{"k" * 10_000: {}} for _ in range(999)],
    },
    "large numbers as names": lambda: {10**400: torch.ones(1), -(10**400): {10**400: {}}, (1, 2): {}, None: {}},
    "many dictionaries": lambda: {"a": [{"x": torch.ones(1)} for _ in range(10_500)]},
}


@pytest.mark.parametrize("how", BOMBS)
def test_a_small_file_takes_little_time_whatever_it_refers_to(how, tmp_path):
    limit, file = sys.getrecursionlimit(), tmp_path / "w.pth"
    sys.setrecursionlimit(20_000)
    try:
        saved(BOMBS[how](), file)
    finally:
        sys.setrecursionlimit(limit)
    before = time.process_time()
    with pytest.raises(BackboneError, match=r"w\.pth") as caught:
        built(weights=file)
    assert time.process_time() - before < 20
    one_line(caught)
    assert str(caught.value).isprintable()


def test_the_weights_are_found_behind_many_references(source, state, tmp_path):
    shared = {number: {} for number in range(3)}
    content = {"log": many(shared), "ema": state, "again": [state] * 1000, "state_dict": state}
    assert loads(saved(content, tmp_path / "w.pth"), source)


def test_what_a_key_lacks_or_has_too_many_is_still_named(state, tmp_path):
    for change, said in (
        ({}, rf"lacks {KEY}"),
        ({"_orig_mod.neckline.weight": torch.ones(2)}, "unexpected neckline.weight"),
    ):
        wrapped = {f"_orig_mod.{key}": value for key, value in state.items() if change or key != KEY}
        with pytest.raises(BackboneError, match=said) as caught:
            built(weights=saved({"model": wrapped | change}, tmp_path / "w.pth"))
        one_line(caught)


class Foreign:
    """An object of a trainer's own."""


class Malice:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def hostile(path):
    return {"\x1b[31mred\u202e": torch.ones(1), "\n" * 5: torch.ones(2), "x" * 5000: torch.ones(3)}


REFUSED = {
    "another network": (
        lambda s, p: {"a.weight": torch.ones(1), "b.weight": torch.ones(1)},
        r"its keys: a\.weight, b\.weight",
    ),
    "no tensors": (lambda s, p: {"epoch": 3, "arch": "osnet"}, r"holds no weights.*its keys: epoch, arch"),
    "weights as arrays": (lambda s, p: {k: v.numpy() for k, v in s.items()}, r"holds no weights.*its keys: conv1"),
    "empty": (lambda s, p: {}, "holds no weights"),
    "a tensor": (lambda s, p: torch.ones(3), "not a dictionary of tensors but a Tensor"),
    "a number": (lambda s, p: np.float64(3), "not a dictionary of tensors"),
    "number keys": (lambda s, p: {1: torch.ones(1)}, "holds no weights"),
    "a whole network": (
        lambda s, p: timm.create_model("test_resnet"),
        "a whole pickled timm.models.resnet.ResNet, .*state_dict",
    ),
    "a whole network of torch's": (lambda s, p: nn.Sequential(nn.Linear(2, 2)), r"state_dict\(\)"),
    "a whole network inside": (lambda s, p: {"net": nn.Sequential(nn.Linear(2, 2))}, r"state_dict"),
    "an object beside": (
        lambda s, p: {"model": s, "trainer": Foreign()},
        r"Foreign.*state_dict\(\)\. Its keys are model, trainer",
    ),
    "code": (lambda s, p: {"model": s, "x": Malice(p / "harm")}, r"asks for .*state_dict\(\)"),
    "hostile keys": (lambda s, p: hostile(p), "its keys"),
    "sparse": (lambda s, p: {k: v.to_sparse() if v.ndim == 4 else v for k, v in s.items()}, "can't be start weights"),
    "nested too deep": (lambda s, p: inside(*"abcdefghijklmnop")(s), "holds no weights"),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_what_does_not_load_is_one_line_of_ours(how, old, state, tmp_path, recwarn):
    make, said = REFUSED[how]
    file = saved(make(state, tmp_path), tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    said = said if not old or how != "a whole network" else r"state_dict\(\)"
    with pytest.raises(BackboneError, match=said) as caught:
        built(weights=file)
    one_line(caught)
    text = str(caught.value)
    assert text.isprintable()
    assert not any(word in text for word in ("weights_only", "WeightsUnpickler", "add_safe_globals", "pytorch.org"))
    assert not (tmp_path / "harm").exists()


def packed(write):
    data = io.BytesIO()
    write(data)
    return data.getvalue()


def archive(name):
    def write(data):
        with zipfile.ZipFile(data, "w") as file:
            file.writestr(name, b"x")

    return packed(write)


def taped(data):
    with tarfile.open(fileobj=data, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))


OTHERS = {
    "empty": (b"", "is no checkpoint but empty; fetch it again"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n",
        r"Git LFS pointer.*git lfs pull",
    ),
    "page": (b"\xef\xbb\xbf\n<!DOCTYPE html><html>Sign in", "a web page"),
    "page without type": (b"<HTML><body>", "a web page"),
    "gzip": (gzip.compress(b"x" * 99), "a gzip archive; unpack it"),
    "xz": (lzma.compress(b"x" * 99), "an xz archive; unpack it"),
    "tar": (packed(taped), "a tar archive"),
    "zip": (archive("weights.pth"), "an archive that torch.save did not write; unpack it"),
    "arrays": (packed(lambda data: np.savez(data, a=np.ones(3))), "NumPy arrays"),
    "array": (packed(lambda data: np.save(data, np.ones(3))), "a NumPy array"),
    "graph": (b"\x08\x08\x12\x07pytorch", r"an ONNX graph; name it as model\.backbone=onnx:PATH"),
    "one byte": (b"\x08", "is no checkpoint but"),
    "plain pickle": (pickle.dumps({"a": 1}), r"a plain pickle; .*torch\.save"),
    "text": (b"{'a': 1}\n", "a text"),
    "noise": (bytes(range(128, 256)) * 4, r"not written by torch\.save"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "an HDF5 file"),
    "safetensors cut off": (b"\x40\0\0\0\0\0\0\0{", "no safetensors file"),
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("suffix", [".pth", ".SafeTensors", ""])
def test_what_is_no_checkpoint_says_what_it_is(what, suffix, tmp_path):
    data, said = OTHERS[what]
    (tmp_path / f"w{suffix}").write_bytes(data)
    said = said if what != "noise" or suffix != ".SafeTensors" else "not written by safetensors"
    with pytest.raises(BackboneError, match=said) as caught:
        built(weights=tmp_path / f"w{suffix}")
    one_line(caught)
    assert "pickle asks" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.SAFETENSORS", "w.SafeTensors", "w.bin", "w"])
@pytest.mark.parametrize("old", [None, False, True], ids=["safetensors", "zip", "legacy"])
def test_the_content_tells_what_it_is_and_not_the_name(name, old, source, state, tmp_path):
    if old is None:
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
    else:
        saved(state, tmp_path / name, _use_new_zipfile_serialization=not old)
    assert loads(tmp_path / name, source)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"PK\x03\x04" + b"\0" * 40,
        b"\x80\x02}q\x00.",
        pickle.dumps(Path("/x")),
        b"\xff" * 99,
        b"\x1b[31m\n" * 9,
    ],
    ids=["empty", "text", "zip", "pickle", "path", "ones", "colours"],
)
def test_what_is_no_checkpoint_is_one_line_of_ours(data, suffix, tmp_path):
    (tmp_path / f"w{suffix}").write_bytes(data)
    with pytest.raises(BackboneError, match=r"w\.(pth|safetensors|ckpt)") as caught:
        built(weights=tmp_path / f"w{suffix}")
    one_line(caught)
    assert str(caught.value).isprintable()


def test_torchscript_says_what_to_do(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), (torch.ones(1, 2),)).save(str(tmp_path / "w.pt"))
    with pytest.raises(BackboneError, match=r"TorchScript.*torch\.jit\.load") as caught:
        built(weights=tmp_path / "w.pt")
    one_line(caught)


def test_nothing_stays_allowed_afterwards(state, tmp_path):
    before = set(torch.serialization.get_safe_globals())
    built(weights=saved({"model": state, "best": np.float64(1)}, tmp_path / "w.pth"))
    assert set(torch.serialization.get_safe_globals()) == before
