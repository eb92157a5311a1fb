"""Routers as they are before training, reading what the trained ones read.

Any linear router sorts tokens: different tasks have different hidden states. What training has
added is seen against routers drawn from the same distribution that an adapter starts from
(``U(−1/√d, 1/√d)``, PEFT's and torch's for linear layers). They only look on; the model's hidden
states are those of the trained adapter.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


class UntrainedRouters:
    """The weights of several untrained routers for each projection, the same for the same seed."""

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.count = count
        self.seed = seed
        self._weights: dict[int, Tensor] = {}

    def logits(
        self, projection: int, x: Float[Tensor, "token d_in"], experts: int
    ) -> Float[Tensor, "token router expert"]:
        """The logits of every router."""
        if projection not in self._weights:
            self._weights[projection] = self._draw(projection, x.shape[-1], experts).to(x.device)
        weight = self._weights[projection]
        return (x.float() @ weight.T).unflatten(-1, (self.count, experts))

    def _draw(
        self, projection: int, d_in: int, experts: int
    ) -> Float[Tensor, "router_expert d_in"]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + projection)
        bound = 1 / math.sqrt(d_in)
        drawn = torch.rand(self.count * experts, d_in, generator=generator)
        return (2 * drawn - 1) * bound
