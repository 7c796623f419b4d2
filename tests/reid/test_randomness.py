"""Draws are a function of their name, the same in every process."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from reid.randomness import key, numpy_generator, torch_generator, torch_seed

GOLDEN = 6136147815746761932

part = st.one_of(st.integers(0, 2**31), st.text(min_size=1, max_size=8))


@given(st.lists(part, min_size=1, max_size=5))
def test_the_same_name_gives_the_same_draws(parts):
    assert (
        numpy_generator(*parts).integers(0, 2**62, 4).tolist() == numpy_generator(*parts).integers(0, 2**62, 4).tolist()
    )
    assert torch.equal(
        torch.rand(4, generator=torch_generator(*parts)), torch.rand(4, generator=torch_generator(*parts))
    )
    assert 0 <= torch_seed(*parts) < 2**63


def test_each_part_of_the_name_counts():
    names = list(itertools.product(range(3), range(3), range(20), ("plain", "model", "crops")))
    assert len({torch_seed(*name) for name in names}) == len(names)
    assert len({int(numpy_generator(*name).integers(0, 2**62)) for name in names}) == len(names)


def test_words_are_hashed_alike_in_every_process():
    """Known values: a salted hash, or another way of mixing, would break every run that is to be resumed."""
    assert key("crops", 3) == [2084456442, 3]
    assert torch_seed(7, "plain", 1) == GOLDEN


def test_global_generators_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what is looked at
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.rand(3, generator=torch_generator(1, "a"))
    numpy_generator(1, "a").random(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
