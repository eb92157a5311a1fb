"""Metrics: from the last position's logits to one number per prompt.

A metric is any callable Float[prompt d_vocab] → Float[prompt]. The ones here can also be
narrowed to some of the prompts (``take``), which lets a sweep work in chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import UserError

Metric = Callable[[Tensor], Tensor]


@runtime_checkable
class TakesPrompts(Protocol):
    """A metric that knows each prompt's answers and can be narrowed to some prompts."""

    def take(self, prompts: Tensor) -> "TakesPrompts": ...

    def __call__(self, logits: Tensor) -> Tensor: ...


def _at(values: Float[Tensor, "prompt d_vocab"], token: Int[Tensor, " prompt"]) -> Tensor:
    return values.gather(1, token.to(values.device)[:, None])[:, 0]


@dataclass(frozen=True)
class LogitDifference:
    """logit(answer) − logit(wrong) at the last position."""

    answer: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]

    def take(self, prompts: Tensor) -> "LogitDifference":
        return LogitDifference(self.answer[prompts], self.wrong[prompts])

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        return _at(logits, self.answer) - _at(logits, self.wrong)


@dataclass(frozen=True)
class Probability:
    """Softmax probability of one token per prompt at the last position."""

    token: Int[Tensor, " prompt"]

    def take(self, prompts: Tensor) -> "Probability":
        return Probability(self.token[prompts])

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        return (_at(logits, self.token).float() - logits.float().logsumexp(dim=-1)).exp()


@dataclass(frozen=True)
class LogProbability:
    """Natural logarithm of the probability of one token per prompt at the last position."""

    token: Int[Tensor, " prompt"]

    def take(self, prompts: Tensor) -> "LogProbability":
        return LogProbability(self.token[prompts])

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        return _at(logits, self.token).float() - logits.float().logsumexp(dim=-1)


@dataclass(frozen=True)
class KLDivergence:
    """KL(reference ‖ run) in nats over the vocabulary, from log-probabilities on both sides."""

    reference: Float[Tensor, "prompt d_vocab"]

    def take(self, prompts: Tensor) -> "KLDivergence":
        return KLDivergence(self.reference[prompts])

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        p, q = self.reference.float().log_softmax(-1), logits.float().log_softmax(-1)
        return (p.exp() * (p - q)).sum(dim=-1)


def apply_metric(metric: Metric, logits: Float[Tensor, "prompt d_vocab"]) -> Tensor:
    """The metric's value per prompt; a wrong shape is the user's to mend."""
    value = metric(logits)
    if not isinstance(value, torch.Tensor) or value.shape != logits.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(f"a metric returns one value per prompt, [{len(logits)}]; this one: {shape}")
    return value


def can_take(metric: Metric) -> bool:
    return isinstance(metric, TakesPrompts)
