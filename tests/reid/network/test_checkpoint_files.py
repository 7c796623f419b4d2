"""Start weights as trainers save them: usual wrappers load, and where not, one line names the keys and what to do."""

import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict, defaultdict
from datetime import UTC, datetime
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
    "double": lambda state: {"model": {k: v.double() if v.is_floating_point() else v for k, v in state.items()}},
    "re-id head": lambda state: {
        "model": {f"base.{k}": v for k, v in state.items()}
        | {"bottleneck.weight": torch.ones(8), "classifier.weight": torch.ones(3, 8)}
    },
}


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
    said = said if not old or how not in ("a whole network", "an object beside") else r"state_dict\(\)"
    with pytest.raises(BackboneError, match=said) as caught:
        built(weights=file)
    one_line(caught)
    text = str(caught.value)
    assert text.isprintable()
    assert not any(word in text for word in ("weights_only", "WeightsUnpickler", "add_safe_globals", "pytorch.org"))
    assert not (tmp_path / "harm").exists()


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
