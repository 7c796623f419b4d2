"""What the hypernetwork writes, how it is held, and where its guide pulls."""

import pytest
import torch

from reid.network.hypernetwork import EMBEDDING_DIM, Guide, HyperNetwork, drift


@pytest.fixture
def net():
    made = HyperNetwork(100, chunk=16, hidden=8, seed=1)
    torch.nn.init.normal_(made.last.weight, generator=torch.Generator().manual_seed(2))
    return made


def test_a_new_hypernetwork_writes_zeros_for_every_domain():
    assert not HyperNetwork(100, chunk=16)(torch.randn(EMBEDDING_DIM)).any()


def test_chunks_are_written_one_by_one_and_the_last_is_cut(net):
    embedding = torch.randn(EMBEDDING_DIM)
    parts = [net.last(torch.relu(net.first(torch.cat([embedding, chunk])))) for chunk in net.chunks]
    assert len(parts) == 7
    torch.testing.assert_close(net(embedding), torch.cat(parts)[:100])


def test_equal_seeds_make_equal_hypernetworks_and_leave_the_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, other = HyperNetwork(50, seed=3), HyperNetwork(50, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


@pytest.mark.parametrize("sizes", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_an_empty_hypernetwork_is_refused(sizes):
    with pytest.raises(ValueError, match="1 or more"):
        HyperNetwork(sizes[0], chunk=sizes[1], hidden=sizes[2])


def test_drift_is_the_mean_squared_length_of_what_changed():
    before, after = torch.randn(3, 7), torch.randn(3, 7)
    naive = sum(float(((after[n] - before[n]) ** 2).sum()) for n in range(3)) / 3
    assert float(drift(after, before)) == pytest.approx(naive, rel=1e-6)


def test_following_the_guide_turns_the_hidden_activations_towards_its_target(net):
    embedding = torch.randn(EMBEDDING_DIM, requires_grad=True)
    guide = Guide(net, torch.randn(EMBEDDING_DIM), seed=4)
    optimiser = torch.optim.Adam([embedding, *net.parameters(), *guide.parameters()], lr=1e-2)
    first = guide(net.hidden(embedding)).item()
    for _ in range(50):
        loss = guide(net.hidden(embedding))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1 < first
    assert embedding.grad is not None
