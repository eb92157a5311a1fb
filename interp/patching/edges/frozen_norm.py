"""A norm as a linear map: what it does to a part of its input, at the scale of the whole.

``norm(x) = w ⊙ c(x) / s(x) + b``, where ``c`` takes the mean away (LayerNorm) or nothing (RMSNorm),
and ``s(x)`` is the root of the mean square of ``c(x)``, with eps. With ``s`` fixed, the norm of a
sum is the sum over its parts of ``w ⊙ c(part) / s(x)``, and ``b`` once: that is how a head's or an
MLP's part behind a norm is defined. Weight, bias and eps are read off the norm's values, so that
norms of any kind can be taken apart.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.precision import widened

LARGE = 1e4
"""Root mean square of an input for which eps does not count."""


class FrozenNorm:
    """A norm at the scale that it has for one input.

    Args:
        norm: a LayerNorm or RMSNorm, None for no norm at all.
        x: its input.
    """

    def __init__(self, norm: nn.Module | None, x: Float[Tensor, "row pos d_model"]) -> None:
        self.norm = norm
        if norm is None:
            return
        ones = torch.ones_like(x[:1, :1])
        self.bias = widened(norm(torch.zeros_like(ones)))
        # A constant has nothing left once its mean is taken away.
        size = (widened(norm(ones)) - self.bias).abs().max()
        ramp = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)[None, None]
        self.centred = bool(size < 1e-3 * (widened(norm(ramp)) - self.bias).abs().max())
        whole, unit = widened(norm(x)) - self.bias, self._weighed(x)
        # Both are w ⊙ c(x), divided by s(x) and by nothing: one ratio for each position.
        self.scale = unit.norm(dim=-1, keepdim=True) / whole.norm(dim=-1, keepdim=True)

    def part(self, value: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """What the norm makes of a part of its input."""
        if self.norm is None:
            return value
        return self._weighed(value) / self.scale

    def _weighed(self, value: Tensor) -> Tensor:
        """``w ⊙ c(value)``."""
        assert self.norm is not None
        centre = value - value.mean(dim=-1, keepdim=True) if self.centred else value
        size = centre.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-30)
        return (widened(self.norm(centre / size * LARGE)) - self.bias) * size
