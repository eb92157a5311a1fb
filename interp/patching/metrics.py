"""Metrics: from the last position's logits to one number per prompt.

A metric is any callable Float[prompt d_vocab] → Float[prompt]. The ones here can also be
narrowed to some of the prompts (``take``), which lets a sweep work in chunks. Whatever the
model's number type, a metric gets logits in float32 at least.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.models.precision import widened

Metric = Callable[[Tensor], Tensor]
_Own = TypeVar("_Own", bound="PerPromptMetric")


class PerPromptMetric:
    """A metric whose fields hold one entry per prompt, so that it can be narrowed to some."""

    def take(self: _Own, prompts: Tensor) -> _Own:
        """The metric for some of the prompts, by index."""
        some = {one.name: getattr(self, one.name)[prompts] for one in fields(self)}  # type: ignore[arg-type]
        return replace(self, **some)  # type: ignore[type-var]

    def __call__(self, logits: Tensor) -> Tensor:
        """Last position's logits to one value per prompt; each metric says which."""
        raise TypeError(f"{type(self).__name__} is no metric: it has no __call__")


def _at(values: Float[Tensor, "prompt d_vocab"], token: Int[Tensor, " prompt"]) -> Tensor:
    return widened(values.gather(1, token.to(values.device)[:, None]))[:, 0]


@dataclass(frozen=True)
class LogitDifference(PerPromptMetric):
    """logit(answer) − logit(wrong) at the last position."""

    answer: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """The difference, per prompt."""
        return _at(logits, self.answer) - _at(logits, self.wrong)

    def narrowed(self) -> tuple[Int[Tensor, "prompt 2"], "LogitDifference"]:
        """The tokens whose logits are enough, and the metric of those logits alone."""
        first = torch.zeros_like(self.answer)
        return torch.stack([self.answer, self.wrong], dim=1), LogitDifference(first, first + 1)


@dataclass(frozen=True)
class Probability(PerPromptMetric):
    """Softmax probability of one token per prompt at the last position."""

    token: Int[Tensor, " prompt"]

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """The probability, per prompt."""
        return (_at(logits, self.token) - widened(logits).logsumexp(dim=-1)).exp()


@dataclass(frozen=True)
class LogProbability(PerPromptMetric):
    """Natural logarithm of the probability of one token per prompt at the last position."""

    token: Int[Tensor, " prompt"]

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """The log-probability in nats, per prompt."""
        return _at(logits, self.token) - widened(logits).logsumexp(dim=-1)


@dataclass(frozen=True)
class KLDivergence(PerPromptMetric):
    """KL(reference ‖ run) in nats over the vocabulary, from log-probabilities on both sides."""

    reference: Float[Tensor, "prompt d_vocab"]

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """The divergence in nats, per prompt."""
        p, q = widened(self.reference).log_softmax(-1), widened(logits).log_softmax(-1)
        return (p.exp() * (p - q)).sum(dim=-1)


def apply_metric(metric: Metric, logits: Float[Tensor, "prompt d_vocab"]) -> Tensor:
    """The metric's value per prompt; a wrong shape is the user's to mend."""
    value = metric(widened(logits))
    if not isinstance(value, torch.Tensor) or value.shape != logits.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(
            f"a metric returns one value per prompt, [{len(logits)}]; this one: {shape}"
        )
    return value


def narrow_metrics(
    metrics: Sequence[Metric],
) -> tuple[Int[Tensor, "prompt token"] | None, list[Metric]]:
    """The tokens that one metric needs, if it needs a few only, and the metric of their logits."""
    if len(metrics) == 1 and isinstance(metrics[0], LogitDifference):
        tokens, metric = metrics[0].narrowed()
        return tokens, [metric]
    return None, list(metrics)


def metric_name(metric: Metric) -> str:
    """A metric's name for results: its class, or the function's name."""
    own = getattr(metric, "name", None) or getattr(metric, "__name__", None)
    return str(own or type(metric).__name__)


def can_take(metrics: Sequence[Metric]) -> bool:
    """Whether all metrics can be narrowed to some of the prompts."""
    return all(isinstance(metric, PerPromptMetric) for metric in metrics)


def take_metrics(metrics: Sequence[Metric], prompts: Tensor) -> list[Metric]:
    """Metrics for some of the prompts; a plain callable, which sees all prompts, as it is."""
    return [m.take(prompts) if isinstance(m, PerPromptMetric) else m for m in metrics]
