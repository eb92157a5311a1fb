"""``patch_pairs``: patching on pairs of texts, in one call from texts to effects."""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.forward.partial import device_of, unedited_logits
from interp.models.hooked_model import HookedModel
from interp.patching import (
    KLDivergence,
    LogitDifference,
    LogProbability,
    PatchEffects,
    Probability,
    patch,
)
from interp.patching.alignment import Positions
from interp.tasks.encoding import EncodedPairs, encode_pairs
from interp.tasks.pairs import Pairs

Metric = Literal["logit_difference", "probability", "log_probability", "kl"]
Where = Literal["all", "each", "spans"]


@checked
def patch_pairs(
    model: HookedModel,
    pairs: Pairs | EncodedPairs,
    *,
    component: str = "z",
    method: str = "exact",
    positions: Where = "all",
    metric: Metric = "logit_difference",
    chat: bool = False,
    **options: Any,
) -> PatchEffects:
    """Effect of patching each unit of a component from the clean into the corrupted run.

    Args:
        component, method: as ``interp.patching.patch`` knows them.
        positions: ``all`` positions at once, ``each`` alone, or each of the pairs' named ``spans``.
        metric: ``logit_difference`` (answer − wrong answer), ``probability`` or
            ``log_probability`` of the answer, or ``kl`` (nats, from the clean run's distribution;
            there an effect below zero brings the run closer to the clean one).
        chat: put texts into the model's chat template; for pairs that are not encoded yet.
        options: handed on to ``interp.patching.patch`` (``source``, ``steps``, ``budget``, …).

    Raises:
        UserError: unknown names, or what ``interp.patching.patch`` raises.
    """
    if isinstance(pairs, Pairs):
        pairs = encode_pairs(model.tokenizer, pairs, chat=chat, device=device_of(model))
    where = positions_of(pairs, positions)
    result = patch(
        model,
        pairs.clean,
        pairs.corrupted,
        metric_of(model, pairs, metric),
        component=component,
        method=method,
        positions=where,
        groups=pairs.groups,
        templates=pairs.templates,
        **options,
    )
    if metric == "probability":
        # p(1 − p) ≤ 1/4: a rounding of the logits moves a probability by a quarter of it at most.
        return replace(result, resolution=result.resolution / 4)
    return result


def positions_of(pairs: EncodedPairs, positions: str) -> Positions:
    """``all``, ``each``, or the named spans as ``interp.patching.patch`` takes them."""
    if positions not in get_args(Where):
        raise UserError(f"unknown positions {positions!r}; known: {', '.join(get_args(Where))}")
    if positions == "spans" and not pairs.spans:
        raise UserError(
            "these pairs have no spans: add \"spans\" to every line, or choose positions 'all'"
        )
    if positions != "spans" and not pairs.aligned:
        raise UserError(
            "clean and corrupted prompts differ in length: give the pairs spans to align them by, "
            "and choose positions 'spans'"
        )
    return pairs.spans if positions == "spans" else positions  # type: ignore[return-value]


def metric_of(model: HookedModel, pairs: EncodedPairs, metric: str) -> Any:
    """The metric by its name."""
    if metric == "logit_difference":
        return LogitDifference(pairs.answer, pairs.wrong)
    if metric == "probability":
        return Probability(pairs.answer)
    if metric == "log_probability":
        return LogProbability(pairs.answer)
    if metric == "kl":
        return KLDivergence(_clean_logits(model, pairs))
    raise UserError(f"unknown metric {metric!r}; known: {', '.join(get_args(Metric))}")


@torch.no_grad()
def _clean_logits(model: HookedModel, pairs: EncodedPairs) -> Tensor:
    # As the edited runs that it is compared with.
    return unedited_logits(model, pairs.clean)
