"""timm's own weights: held ones need no network, and where there is none it is said at once."""

import socket
import threading
import time
import types

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from domains.crops import CropSpec
from domains.errors import BackboneError
from reid.config import ModelConfig
from reid.network import hub
from reid.network.build import build_model

MODEL = ModelConfig(backbone="test_resnet", weights="timm", dim=8)
CROP = CropSpec(64, 32)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def hold(tmp_path, name="model.safetensors", seed=1):
    """Put random weights where the hub's client keeps what it has fetched."""
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet")
    repository = "models--" + timm.get_pretrained_cfg("test_resnet").hf_hub_id.replace("/", "--")
    folder = tmp_path / "cache" / repository
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    file = folder / "snapshots" / "abc" / name
    save_file(model.state_dict(), file) if name.endswith("safetensors") else torch.save(model.state_dict(), file)
    return model.state_dict()


def unresolved(*_, **__):
    raise socket.gaierror(-2, "Name or service not known")


def refused(*_, **__):
    raise ConnectionRefusedError(111, "Connection refused")


def silent(*_, **__):
    time.sleep(20)
    raise TimeoutError


@pytest.mark.parametrize(("fault", "said"), [(unresolved, "not known"), (refused, "refused"), (silent, "none in 1 s")])
def test_without_a_network_it_is_said_at_once(monkeypatch, fault, said):
    asked = []

    def resolve(*words, **more):
        asked.append(words)
        return fault()

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(BackboneError) as caught:
        build_model(MODEL, CROP)
    text = str(caught.value)
    assert said in text
    assert "\n" not in text
    assert "https://huggingface.co/timm/test_resnet" in text
    assert "model.safetensors" in text
    assert text.endswith("set model.weights=PATH, or start from random weights with model.weights=none")
    assert len(asked) == 1, "asked once, not retried"


def test_who_forbids_the_network_is_not_asked_again(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(threading, "Thread", lambda **_: pytest.fail("a probe"))
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set"):
        build_model(MODEL, CROP)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_is_held_needs_no_network(tmp_path, monkeypatch, name):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network"))
    wanted = hold(tmp_path, name)
    model = build_model(MODEL, CROP)
    found = {key.rpartition("model.")[2]: value for key, value in model.backbone.state_dict().items()}
    shared = [key for key in wanted if key in found]
    assert len(shared) > 10
    assert all(torch.equal(wanted[key], found[key]) for key in shared)


@pytest.mark.parametrize("status", [404, 401, 503])
def test_any_answer_is_left_to_timm(monkeypatch, status):
    def answer(request, timeout):
        raise hub.urllib.error.HTTPError(request.full_url, status, "no", {}, None)

    monkeypatch.setattr(hub.urllib.request, "urlopen", answer)
    assert hub.start_weights("test_resnet", timm.get_pretrained_cfg("test_resnet")) is None


def test_a_certificate_of_another_authority_is_left_to_timm(monkeypatch):
    def answer(request, timeout):
        raise hub.urllib.error.URLError(hub.ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(hub.urllib.request, "urlopen", answer)
    assert hub.start_weights("test_resnet", timm.get_pretrained_cfg("test_resnet")) is None


def test_a_model_without_weights_of_its_own(monkeypatch):
    cfg = types.SimpleNamespace(hf_hub_id=None, url="", hf_hub_filename=None, custom_load=False)
    for none in (None, cfg):
        with pytest.raises(BackboneError, match=r"there are none.*model\.weights=none"):
            hub.start_weights("mine", none)


def test_weights_at_an_address_are_found_where_torch_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    cfg = types.SimpleNamespace(hf_hub_id=None, url="https://example.org/a/net.pth", custom_load=False)
    with pytest.raises(BackboneError, match=r"download https://example\.org/a/net\.pth"):
        hub.start_weights("mine", cfg)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "net.pth").touch()
    assert hub.start_weights("mine", cfg) is None
