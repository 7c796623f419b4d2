"""A network that writes networks' weights: a domain's embedding and the lengths of slots → all weights of its adapter.

Von Oswald et al., "Continual learning with hypernetworks", ICLR 2020: the weights are written chunk by chunk by one
small network that is told the domain and the chunk. It never sees the network that its output goes into. A domain costs
32 numbers, 128 bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING_DIM = 32
CHUNK, HIDDEN = 4096, 64
DECODER_WIDTH = 512


class HyperNetwork(nn.Module):
    """``[e; q_i]`` → hidden → chunk i, for every chunk; at the start it writes zeros for every domain.

    Args:
        length: how many weights it writes in all.
        chunk: how many at a time.
        hidden: width of its hidden layer.
        seed: of its own weights.
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
        """Activations behind the weights of every chunk: ``[E]`` → ``[chunks, hidden]``."""
        asked = torch.cat([embedding.expand(len(self.chunks), -1), self.chunks], 1)
        return torch.relu(self.first(asked))

    def forward(self, embedding: Tensor) -> Tensor:
        """Write the weights of one domain's adapter: ``[E]`` → ``[length]``."""
        written: Tensor = self.last(self.hidden(embedding))
        return written.flatten()[: self.length]


class Guide(nn.Module):
    """L_e: the hidden activations should say where transferability puts the domain: ``1 - cos(Dec(hidden), ê)``. Thrown
    away after the step.

    Args:
        net: the hypernetwork; only the shape of its activations is used.
        target: ê, ``[E]``.
        seed: of the decoder's weights.
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
        """``[chunks, hidden]`` → scalar in 0..2."""
        return 1 - torch.cosine_similarity(self.decoder(hidden.flatten()), self.target, dim=0)


def drift(written: Tensor, before: Tensor) -> Tensor:
    """L_c of some domains: mean over them of ``‖f(e_n; Θ) - f(e_n; Θ*)‖²``, both ``[n, length]``."""
    return (written - before).square().sum(1).mean()
