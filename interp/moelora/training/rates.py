"""The learning rate of each method, chosen on validation questions of short runs.

A comparison at one learning rate favours the method that it suits. Each method is therefore tried
at every rate of a grid, and takes the one with the lowest loss on training questions that were set
apart (`interp.moelora.data.sources.load_validation_split`). The held-out questions play no part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import UserError


@dataclass(frozen=True)
class TriedRate:
    """One short run.

    Attributes:
        method: the adapter.
        rate: its learning rate.
        losses: mean loss of the right responses' tokens (nats) on validation questions, by task;
            empty for a run that diverged.
    """

    method: str
    rate: float
    losses: Mapping[str, float]

    @property
    def loss(self) -> float:
        """The mean over tasks; infinite for a run that diverged."""
        values = list(self.losses.values())
        mean = sum(values) / len(values) if values else math.inf
        return mean if math.isfinite(mean) else math.inf


@dataclass(frozen=True)
class ChosenRate:
    """The rate of a method, beside all that were tried.

    Attributes:
        rate: the chosen one.
        losses: the validation loss at each rate, ascending; infinite where training diverged.
    """

    rate: float
    losses: Mapping[float, float]

    @property
    def at_edge(self) -> bool:
        """Whether the rate is the smallest or largest of several: a better one may lie beyond."""
        return len(self.losses) > 1 and self.rate in (min(self.losses), max(self.losses))

    def to_json(self) -> dict[str, Any]:
        """The grid and the choice; None is the loss of a run that diverged."""
        tried = [
            {"rate": rate, "loss": loss if math.isfinite(loss) else None}
            for rate, loss in self.losses.items()
        ]
        return {"chosen": self.rate, "at_edge": self.at_edge, "tried": tried}


def choose_rates(tried: Sequence[TriedRate]) -> dict[str, ChosenRate]:
    """By method, the rate with the lowest validation loss; of equal ones the smallest.

    Raises `UserError` if a method was tried twice at one rate, or diverged at every one.
    """
    by_method: dict[str, dict[float, float]] = {}
    for run in sorted(tried, key=lambda run: run.rate):
        losses = by_method.setdefault(run.method, {})
        if run.rate in losses:
            raise UserError(f"{run.method} was tried twice at the learning rate {run.rate:g}")
        losses[run.rate] = run.loss
    chosen = {}
    for method, losses in by_method.items():
        best = min(losses, key=lambda rate: (losses[rate], rate))
        if not math.isfinite(losses[best]):
            raise UserError(f"{method} diverged at every learning rate: try smaller ones")
        chosen[method] = ChosenRate(best, losses)
    return chosen
