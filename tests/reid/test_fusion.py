"""Weight fusion: the ends of its scale, what it leaves alone, and what it refuses."""

import pytest
import torch

from domains.errors import ConfigError
from reid.fusion import average, check_fusions, fuse


def states():
    new = {"w": torch.tensor([1.0, 2.0]), "neck.num_batches_tracked": torch.tensor(40), "classifier.weight": torch.tensor([[1.0], [2.0], [9.0]])}
    old = {"w": torch.tensor([3.0, 6.0]), "neck.num_batches_tracked": torch.tensor(10), "classifier.weight": torch.tensor([[5.0], [4.0]])}
    return new, old


def test_half_is_the_mean_and_new_rows_are_left_alone():
    fused = average(*states())
    assert fused["w"].tolist() == [2.0, 4.0]
    assert fused["neck.num_batches_tracked"].item() == 40
    assert fused["classifier.weight"].flatten().tolist() == [3.0, 3.0, 9.0]


def test_the_ends_of_the_scale():
    new, old = states()
    assert torch.equal(average(new, old, weight=1.0)["w"], new["w"])
    assert torch.equal(average(new, old, weight=0.0)["w"], old["w"])
    assert average(new, old, weight=0.0)["classifier.weight"][2].item() == 9.0


def test_the_models_it_is_given_are_not_changed():
    new, old = states()
    average(new, old)
    assert all(torch.equal(value, states()[0][name]) for name, value in new.items())
    assert all(torch.equal(value, states()[1][name]) for name, value in old.items())


def test_no_fusion_returns_the_new_model():
    new, old = states()
    assert fuse((), new, old) == new


WRONG = [({"avrage": {}}, "did you mean 'average'"), ({"average": {"weight": 2}}, "0..1"), ({"average": {"w": 1}}, "fusion average")]


@pytest.mark.parametrize(("entry", "said"), WRONG)
def test_a_wrong_fusion_is_refused_before_training(entry, said):
    with pytest.raises(ConfigError, match=said):
        check_fusions((entry,))
