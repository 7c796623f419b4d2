"""A network that writes another network's weights: a domain's embedding → all weights of its adapter.

Von Oswald et al., "Continual learning with hypernetworks", ICLR 2020: one small network, conditioned on domain and
chunk, writes the weights chunk by chunk. It never sees the network that they go into. A domain costs 32 numbers, 128
bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING_DIM = 32
CHUNK, HIDDEN = 4096, 64
DECODER_WIDTH = 512


class HyperNetwork(nn.Module):
    """``[e; q_i]`` → hidden → chunk i, for every chunk; initially it writes zeros for every domain.

    Args:
        length: total number of weights that it writes.
        chunk: number of weights written at a time.
        hidden: width of its hidden layer.
        seed: for its own weights.
    """

    def __init__(self, length: int, *, chunk: int = CHUNK, hidden: int = HIDDEN, seed: int = 0) -> None:
        super().__init__()
        if min(length, chunk, hidden) < 1:
            raise ValueError(
                f"a hypernetwork needs a length, a chunk and a width of 1 or more, got {length}, {chunk} and {hidden}"
            )
        self.length = length
        chunks = -(-length // chunk)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.chunks = nn.Parameter(torch.randn(chunks, EMBEDDING_DIM))
            self.first = nn.Linear(2 * EMBEDDING_DIM, hidden)
            self.last = nn.Linear(hidden, chunk)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def hidden(self, embedding: Tensor) -> Tensor:
        """Return the hidden activations of every chunk: ``[E]`` → ``[chunks, hidden]``."""
        inputs = torch.cat([embedding.expand(len(self.chunks), -1), self.chunks], 1)
        return torch.relu(self.first(inputs))

    def forward(self, embedding: Tensor) -> Tensor:
        """Write the weights of one domain's adapter: ``[E]`` → ``[length]``."""
        written: Tensor = self.last(self.hidden(embedding))
        return written.flatten()[: self.length]


class Guide(nn.Module):
    """L_e = ``1 - cos(Dec(hidden), ê)``: hidden activations should encode where transferability places the domain.
    Discarded after the step.

    Args:
        net: the hypernetwork; only the shape of its activations is used.
        target: ê, ``[E]``.
        seed: for the decoder's weights.
    """

    target: Tensor

    def __init__(self, net: HyperNetwork, target: Tensor, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = nn.Sequential(
                nn.Linear(net.chunks.shape[0] * net.first.out_features, DECODER_WIDTH),
                nn.ReLU(),
                nn.Linear(DECODER_WIDTH, len(target)),
            )
        self.register_buffer("target", target.detach().clone().float())

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the loss of activations ``[chunks, hidden]``, a scalar in 0..2."""
        return 1 - torch.cosine_similarity(self.decoder(hidden.flatten()), self.target, dim=0)


def drift(written: Tensor, before: Tensor) -> Tensor:
    """Return L_c: mean over domains of ``‖f(e_n; Θ) - f(e_n; Θ*)‖²``, both ``[n, length]``."""
    return (written - before).square().sum(1).mean()
