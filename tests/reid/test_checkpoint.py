"""Resume state without pickle: round trips, damage, and the same bits after a restore."""

import pytest
import torch
from torch import nn

from domains.errors import ArtefactError
from reid.checkpoint import load_state, optimiser_state, restore_optimiser, save_state


def test_a_tree_comes_back(tmp_path):
    tree = {
        "a": torch.arange(6.0).reshape(2, 3).T, 3: [1, 2.5, None, True, "text", (1, 2)], "half": torch.ones(2).bfloat16(), "none": {},
        "empty": torch.empty(0, 4),
        "image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip
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


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_training_goes_on_with_the_same_bits(tmp_path, kind):
    def fresh():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 2)).to(memory_format=torch.channels_last)
        if kind == "adamw":
            return net, torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
        return net, torch.optim.SGD(net.parameters(), 0.01, 0.9, fused=True)

    def train(net, optimiser, steps):
        for step in steps:
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)).to(memory_format=torch.channels_last)
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
