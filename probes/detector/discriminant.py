"""A linear discriminant from weighted moments, in closed form.

The direction is Fisher's: the difference of the class means, multiplied by the inverse of the
covariance within the classes. With more dimensions than questions the covariance is uncertain, so
its diagonal is enlarged. Moments add up: those of each part of the data are computed once, and the
discriminant of any union of parts, such as all but one fold, takes no further look at the tokens. A
direction that whitens by all tokens also depends less on the relations that it was fitted on than
one that only separates these.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SHRINKAGE = 1.0
"""Share of the covariance's diagonal that is added to it."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Total weight, weighted sum, and weighted sum of outer products of some vectors."""

    weight: float
    first: Float[Tensor, " d_model"]
    second: Float[Tensor, "d_model d_model"]

    @classmethod
    def of(
        cls, values: Float[Tensor, "token d_model"], weights: Float[Tensor, " token"]
    ) -> "Moments":
        """Of some vectors, which are best centred; in double precision."""
        weighted = values * weights[:, None].to(values.dtype)
        second = (weighted.T @ values).double()
        return cls(float(weights.sum()), weighted.double().sum(dim=0), second)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.weight + other.weight, self.first + other.first, self.second + other.second
        )

    def scaled(self, factor: float) -> "Moments":
        """With all weights multiplied by a factor."""
        return Moments(self.weight * factor, self.first * factor, self.second * factor)


def pooled(parts: Iterable[Moments]) -> Moments:
    """The moments of some parts, each with the same weight; parts without weight are left out."""
    scaled = [part.scaled(1 / part.weight) for part in parts if part.weight > 0]
    total = scaled[0]
    for part in scaled[1:]:
        total = total + part
    return total.scaled(1 / total.weight)


def fit_discriminant(
    positive: Moments, negative: Moments, *, shrinkage: float = SHRINKAGE
) -> tuple[Float[Tensor, " d_model"], float]:
    """Weight and bias of the log-odds of ``positive``, both classes being equally frequent.

    A feature that never varies gets no weight.
    """
    high, low = (part.first / part.weight for part in (positive, negative))
    covariance = (
        sum(
            (
                part.second / part.weight - torch.outer(mean, mean)
                for part, mean in ((positive, high), (negative, low))
            ),
            torch.zeros_like(positive.second),
        )
        / 2
    )
    variance = covariance.diagonal().clamp(min=0)
    # Where nothing varies the means are equal too: any positive number gives weight zero.
    ridge = torch.where(variance > 0, shrinkage * variance, torch.ones_like(variance))
    direction = torch.linalg.solve(covariance + torch.diag(ridge), high - low)
    return direction, -float(direction @ (high + low) / 2)
