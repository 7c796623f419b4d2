"""Resume state without pickle: round trips, damage, and the same bits after a restore."""

import pytest
import torch
from torch import nn

from domains.errors import ArtefactError
from reid.network.checkpoint import (
    load_state,
    optimiser_state,
    read_tensors,
    restore_optimiser,
    save_state,
    save_weights,
)


def test_a_tree_comes_back(tmp_path):
    tree = {
        "a": torch.arange(6.0).reshape(2, 3).T,
        3: [1, 2.5, None, True, "text", (1, 2)],
        "half": torch.ones(2).bfloat16(),
        "none": {},
        "empty": torch.empty(0, 4),
        "image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    save_state(tmp_path / "s.safetensors", tree)
    back = load_state(tmp_path / "s.safetensors")
    assert list(back) == list(tree)
    assert back[3] == [1, 2.5, None, True, "text", [1, 2]]
    for name in ("a", "half", "empty", "image"):
        assert back[name].dtype == tree[name].dtype
        assert torch.equal(back[name], tree[name])


def test_what_would_need_pickle_is_refused(tmp_path):
    with pytest.raises(TypeError, match="without pickle"):
        save_state(tmp_path / "s.safetensors", {"x": object()})


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damage_is_one_line(tmp_path, damage):
    file = tmp_path / "s.safetensors"
    save_state(file, {"x": torch.ones(100)})
    file.write_bytes({"cut": file.read_bytes()[:-40], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(ArtefactError, match=r"s\.safetensors"):
        load_state(file)


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    tree = {
        "x": torch.arange(20.0),
        "half": torch.ones(3).bfloat16(),
        "done": 12,
        3: [torch.tensor(7), None],
        "flag": torch.tensor([True, False]),
    }
    file = tmp_path / "s.safetensors"
    save_state(file, tree)
    whole = file.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        try:
            back = load_state(file)
        except ArtefactError:
            continue
        assert back["done"] == 12
        assert torch.equal(back["x"], tree["x"]), f"byte {at}"
        assert torch.equal(back["half"], tree["half"]), f"byte {at}"
        assert torch.equal(back["flag"], tree["flag"]), f"byte {at}"


def test_other_tensors_are_no_state(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"x": torch.ones(2)})
    with pytest.raises(ArtefactError, match=r"w\.safetensors is not a saved state"):
        load_state(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "structure", ["", "[]", '"text"', "{}", '{"tensor": "t9"}', '{"dict": [[[1], {"value": 1}]]}', '{"list": 3}']
)
def test_a_structure_that_means_nothing_is_one_line(tmp_path, structure):
    from safetensors.torch import save_file

    save_file({"t0": torch.ones(2)}, tmp_path / "s.safetensors", metadata={"structure": structure})
    with pytest.raises(ArtefactError, match="is not a saved state"):
        load_state(tmp_path / "s.safetensors")


def test_weights_are_plain_safetensors_in_any_layout(tmp_path):
    weights = {
        "a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "b": torch.arange(6).reshape(2, 3).T,
        "c": torch.tensor(3),
    }
    weights["tied"] = weights["c"]
    save_weights(tmp_path / "w.safetensors", weights)
    back, metadata = read_tensors(tmp_path / "w.safetensors")
    assert metadata == {}
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in weights.items())


def test_moments_take_the_layout_of_their_parameters(tmp_path):
    net = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    net(torch.ones(1, 3, 4, 4)).sum().backward()
    optimiser.step()
    save_state(tmp_path / "s", optimiser_state(optimiser))
    again = torch.optim.AdamW(net.parameters(), fused=True)
    restore_optimiser(again, load_state(tmp_path / "s"))
    for name in ("exp_avg", "exp_avg_sq"):
        assert again.state[net.weight][name].stride() == net.weight.stride()
        assert torch.equal(again.state[net.weight][name], optimiser.state[net.weight][name])


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_training_goes_on_with_the_same_bits(tmp_path, kind):
    def fresh():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 2)).to(
            memory_format=torch.channels_last
        )
        if kind == "adamw":
            return net, torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
        return net, torch.optim.SGD(net.parameters(), 0.01, 0.9, fused=True)

    def train(net, optimiser, steps):
        for step in steps:
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)).to(
                memory_format=torch.channels_last
            )
            optimiser.zero_grad()
            net(images).square().sum().backward()
            optimiser.step()

    whole, optimiser = fresh()
    train(whole, optimiser, range(8))
    first, optimiser = fresh()
    train(first, optimiser, range(3))
    save_state(tmp_path / "s.safetensors", {"model": dict(first.state_dict()), "optimiser": optimiser_state(optimiser)})
    state = load_state(tmp_path / "s.safetensors")
    second, optimiser = fresh()
    second.load_state_dict(state["model"])
    restore_optimiser(optimiser, state["optimiser"])
    train(second, optimiser, range(3, 8))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
