"""A linear discriminant from weighted means and a shrunk covariance, in closed form.

The direction is Fisher's: the difference of the class means, multiplied by the inverse of the
covariance within the classes. With more dimensions than questions the covariance is uncertain, so
its diagonal is enlarged. No iteration is needed, so a fold takes a fraction of a logistic
regression's time, and a direction that whitens by all tokens depends less on the relations that it
was fitted on than one that only separates these.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SHRINKAGE = 1.0
"""Share of the covariance's diagonal that is added to it."""


def fit_discriminant(
    values: Float[Tensor, "token d_model"],
    positive: Bool[Tensor, " token"],
    weights: Float[Tensor, " token"],
    *,
    shrinkage: float = SHRINKAGE,
) -> tuple[Float[Tensor, " d_model"], float]:
    """Weight and bias of the log-odds of ``positive``, both classes being equally frequent.

    Args:
        weights: of each token within its class, at least 0.

    Returns:
        a direction and a bias in double precision. A feature that never varies gets no weight.
    """
    weights = weights.double()
    weights = torch.where(
        positive, weights / weights[positive].sum(), weights / weights[~positive].sum()
    )
    values = values.double()
    high, low = weights[positive] @ values[positive], weights[~positive] @ values[~positive]
    centred = values - torch.where(positive[:, None], high, low)
    covariance = (centred * weights[:, None]).T @ centred / 2  # each class weighs one
    variance = covariance.diagonal()
    # Where nothing varies the means are equal too: any positive number gives weight zero.
    ridge = torch.where(variance > 0, shrinkage * variance, torch.ones_like(variance))
    direction = torch.linalg.solve(covariance + torch.diag(ridge), high - low)
    return direction, -float(direction @ (high + low) / 2)
