"""Metrics: from the last position's logits to one number per prompt.

A metric is any callable Float[prompt d_vocab] → Float[prompt]. The ones here can also be
narrowed to some of the prompts (``take``), which lets a sweep work in chunks. Whatever the
model's number type, a metric gets logits in float32 at least.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import plain
from interp.errors import UserError
from interp.forward.transfer import upload
from interp.patching.checks import put_off
from interp.precision import widened

Metric = Callable[[Tensor], Tensor]
_Same = TypeVar("_Same", bound="PerPromptMetric")


class PerPromptMetric:
    """A metric whose fields hold one entry per prompt, so that it can be narrowed to some.

    Such fields are tensors, arrays or lists; any other field (a number, a text) is for all prompts.
    """

    def take(self: _Same, prompts: Tensor) -> _Same:
        """The metric for some of the prompts, by index, on the device of the indices."""
        some = {}
        for field in fields(self):  # type: ignore[arg-type]
            entries = getattr(self, field.name)
            if not _is_by_prompt(entries):
                continue
            if not isinstance(entries, Tensor):
                entries = _as_entries(self, field.name, entries)
            entries = entries[prompts.to(entries.device)]
            some[field.name] = upload(entries, prompts.device)
        if type(self).__module__ != __name__:
            return replace(self, **some)  # type: ignore[type-var]
        taken = copy(self)  # what was checked whole is not read again
        _set(taken, **some)
        return taken

    def __call__(self, logits: Tensor) -> Tensor:
        """Last position's logits to one value per prompt; each metric says which."""
        raise TypeError(f"{type(self).__name__} is no metric: it has no __call__")


def _is_by_prompt(entries: Any) -> bool:
    """Whether a metric's field holds something for each prompt."""
    return getattr(entries, "ndim", 0) > 0 or isinstance(entries, list | tuple)


def _as_entries(metric: Any, name: str, entries: Any) -> Tensor:
    try:
        return torch.as_tensor(plain(entries))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the field {name!r} of the metric {metric_name(metric)} has one number a prompt, as a "
            f"tensor, an array or a list, not {entries!r:.60}"
        ) from error


def _at(
    values: Float[Tensor, "prompt d_vocab"], token: Int[Tensor, " prompt"], highest: int
) -> Tensor:
    """The values of one token per prompt. Raises UserError for a token that is not there."""
    beyond = token[token >= values.shape[1]] if highest >= values.shape[1] else token[:0]
    if len(beyond):
        raise UserError(
            f"the metric asks for token {int(beyond[0])}, but the vocabulary has "
            f"{values.shape[1]} tokens"
        )
    if len(token) != len(values):
        raise UserError(
            f"the metric is for {len(token)} prompts, but there are {len(values)} prompts"
        )
    return widened(values.gather(1, token.to(values.device)[:, None]))[:, 0]


def token_per_prompt(name: str, given: Any) -> Int[Tensor, " prompt"]:
    """Token ids, one per prompt, from a tensor, an array or a list. Raises UserError for others."""
    try:
        token = torch.as_tensor(plain(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} is one token id per prompt, not {given!r:.60}") from error
    if token.ndim != 1 or token.is_floating_point() or token.is_complex() or not len(token):
        raise UserError(
            f"{name} is one token id per prompt, [prompt] whole numbers, not "
            f"{str(token.dtype).removeprefix('torch.')} {list(token.shape)}"
        )
    if token.dtype == torch.bool or bool((token < 0).any()):
        raise UserError(f"{name} holds {token.min().item()}: token ids are whole numbers from 0 on")
    return token.long()


def _set(metric: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(metric, name, value)


@dataclass(frozen=True)
class LogitDifference(PerPromptMetric):
    """logit(answer) − logit(wrong) at the last position."""

    answer: Int[Tensor, " prompt"]
    wrong: Int[Tensor, " prompt"]
    highest: ClassVar[int] = 0
    """Token, on the host: nothing has to be read from a device for the check that it is there."""

    def __post_init__(self) -> None:
        answer = token_per_prompt("answer", self.answer)
        wrong = token_per_prompt("wrong", self.wrong)
        if len(answer) != len(wrong):
            raise UserError(f"{len(answer)} answers but {len(wrong)} wrong ones: give pairs")
        highest = max(int(answer.max()), int(wrong.max()))
        _set(self, answer=answer, wrong=wrong.to(answer.device), highest=highest)

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """The difference, per prompt."""
        return _at(logits, self.answer, self.highest) - _at(logits, self.wrong, self.highest)

    def narrowed(self) -> tuple[Int[Tensor, "prompt 2"], "LogitDifference"]:
        """The tokens whose logits are enough, and the metric of those logits alone."""
        first = torch.zeros_like(self.answer)
        metric = copy(self)
        _set(metric, answer=first, wrong=first + 1, highest=1)
        return torch.stack([self.answer, self.wrong], dim=1), metric


@dataclass(frozen=True)
class LogProbability(PerPromptMetric):
    """Natural logarithm of the probability of one token per prompt at the last position."""

    token: Int[Tensor, " prompt"]
    highest: ClassVar[int] = 0

    def __post_init__(self) -> None:
        token = token_per_prompt("token", self.token)
        _set(self, token=token, highest=int(token.max()))

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """The log-probability in nats, per prompt."""
        return _at(logits, self.token, self.highest) - widened(logits).logsumexp(dim=-1)


class Probability(LogProbability):
    """Softmax probability of one token per prompt at the last position."""

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """The probability, per prompt."""
        return super().__call__(logits).exp()


@dataclass(frozen=True)
class KLDivergence(PerPromptMetric):
    """KL(reference ‖ run) in nats over the vocabulary, from log-probabilities on both sides."""

    reference: Float[Tensor, "prompt d_vocab"]

    def __post_init__(self) -> None:
        reference = self.reference
        if not isinstance(reference, Tensor) or reference.ndim != 2:
            raise UserError("reference is the logits of another run, [prompt d_vocab]")
        if not reference.is_floating_point() or not bool(torch.isfinite(reference).all()):
            raise UserError("reference must hold finite numbers: the logits of a run")

    def __call__(self, logits: Float[Tensor, "prompt d_vocab"]) -> Float[Tensor, " prompt"]:
        """The divergence in nats, per prompt."""
        if self.reference.shape != logits.shape:
            raise UserError(
                f"the metric's reference has logits {list(self.reference.shape)}, this run "
                f"{list(logits.shape)}"
            )
        p = widened(self.reference.to(logits.device)).log_softmax(-1)
        q = widened(logits).log_softmax(-1)
        return (p.exp() * (p - q)).sum(dim=-1)


def apply_metric(
    metric: Metric, logits: Float[Tensor, "prompt d_vocab"], *, when: str = ""
) -> Float[Tensor, " prompt"]:
    """The metric's value per prompt, from logits in float32 at least.

    Args:
        when: which run the logits are of, to begin a message with, such as "with … edited ".

    Raises:
        UserError: the metric cannot be applied to the logits, changes them, or gives anything else
            than one finite number per prompt; or the logits are not finite.
    """
    logits = widened(logits)
    name, size, version = metric_name(metric), list(logits.shape), _version(logits)
    try:
        value = metric(logits)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"the metric {name} raised {type(error).__name__}: it is given the last position's "
            f"logits [prompt d_vocab], here {size}, and returns one value per prompt"
        ) from error
    if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(
            f"a metric returns one value per prompt, [{len(logits)}]; this one: {shape} ({name})"
        )
    if _version(logits) != version:
        raise UserError(f"the metric {name} changes the logits in place: let it change a copy")
    if value.is_meta:
        raise UserError(f"the metric {name} gives a tensor without data, on the meta device")
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.is_complex():
        raise UserError(f"the metric {name} gives complex numbers: return real ones")
    if not put_off(lambda: value):
        bad = (~torch.isfinite(value.detach())).nonzero()[:, 0]
        if len(bad):
            raise UserError(f"{when}{_not_finite(name, logits.detach(), bad)}")
    return value if value.is_floating_point() else value.float()


def _version(logits: Tensor) -> int:
    """How often a tensor was written to; tensors of inference mode are not counted."""
    return 0 if logits.is_inference() else logits._version


def _not_finite(
    name: str, logits: Float[Tensor, "prompt d_vocab"], bad: Int[Tensor, " bad"]
) -> str:
    """The message about prompts without a finite value: because of the model, or the metric."""
    prompts = f"{len(bad)} of {len(logits)} prompts"
    if not bool(torch.isfinite(logits[bad.to(logits.device)]).all()):
        return (
            f"the model gives NaN or infinity in {prompts}; check its dtype (float16 overflows "
            "where bfloat16 does not)"
        )
    return (
        f"the metric {name} is NaN or infinite for {prompts}, though their logits are finite: use "
        "a metric that has a value for every prompt and every patch, or leave such prompts out"
    )


def differentiable_sum(
    metric: Metric, logits: Float[Tensor, "prompt d_vocab"]
) -> Float[Tensor, ""]:
    """The metric summed over prompts, for its gradient.

    Raises:
        UserError: as `apply_metric`, and for a metric without a finite gradient in the logits.
    """
    total, name = apply_metric(metric, logits).sum(), metric_name(metric)
    found = (None,)
    if total.requires_grad:
        # NotImplementedError: an operation, on sparse tensors say, that has no backward pass.
        with suppress(NotImplementedError):
            found = torch.autograd.grad(total, logits, retain_graph=True, allow_unused=True)
    if found[0] is None:
        raise UserError(
            f"the metric {name} has no gradient: a method that uses gradients needs one that is "
            "differentiable in the logits (no argmax, rounding, detach or no_grad); use method "
            "'exact'"
        )
    gradient = found[0]
    # One number to look at later: zero, or NaN.
    if not put_off(lambda: (gradient * 0).sum()) and not bool(torch.isfinite(gradient).all()):
        raise UserError(f"the gradient of the metric {name} is not finite: use method 'exact'")
    return total


def check_metrics(metrics: Sequence[Metric], n_prompts: int) -> None:
    """Raise unless metrics are callables, and those with one entry per prompt have as many."""
    if not metrics:
        raise UserError("there are no metrics: give at least one")
    for metric in metrics:
        if not callable(metric):
            raise UserError(
                f"a metric is a callable, last position's logits [prompt d_vocab] to one value per "
                f"prompt; {metric!r:.60} is none"
            )
        if not isinstance(metric, PerPromptMetric):
            continue
        for field in fields(metric):  # type: ignore[arg-type]
            entries = getattr(metric, field.name)
            if _is_by_prompt(entries) and (found := len(entries)) != n_prompts:
                raise UserError(
                    f"the metric {metric_name(metric)} is for {found} prompts (its {field.name}), "
                    f"but there are {n_prompts} prompts"
                )


def narrow_metrics(
    metrics: Sequence[Metric],
) -> tuple[Int[Tensor, "prompt token"] | None, list[Metric]]:
    """The tokens whose logits are enough, or None for all, and the metrics of those logits."""
    if len(metrics) == 1 and isinstance(metrics[0], LogitDifference):
        tokens, metric = metrics[0].narrowed()
        return tokens, [metric]
    return None, list(metrics)


def metric_name(metric: Metric) -> str:
    """A metric's name for results: its class, or the function's name."""
    name = getattr(metric, "name", None) or getattr(metric, "__name__", None)
    return str(name or type(metric).__name__)


def can_take(metrics: Sequence[Metric]) -> bool:
    """Whether all metrics can be narrowed to some of the prompts."""
    return all(isinstance(metric, PerPromptMetric) for metric in metrics)


def take_metrics(metrics: Sequence[Metric], prompts: Tensor) -> list[Metric]:
    """Metrics for some of the prompts; a plain callable, which sees all prompts, as it is."""
    return [m.take(prompts) if isinstance(m, PerPromptMetric) else m for m in metrics]
