"""``patch_pairs``: patching on pairs of texts, in one call from texts to effects."""

from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from interp.arguments import check_choice
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
    trace_noise,
)
from interp.patching.alignment import Positions
from interp.patching.noise import check_traced
from interp.patching.patch_source import PatchSource, check_patch_source
from interp.tasks.encoding import EncodedPairs, encode_pairs
from interp.tasks.pairs import Pairs

Metric = Literal["logit_difference", "probability", "log_probability", "kl"]
Where = Literal["all", "each", "spans"]
Source = Literal[PatchSource, "noise"]
_OF_NOISE = ("draws", "window", "scale", "groups", "templates", "seed", "budget", "progress")
NOISED = "subject"
"""The span whose embeddings are noised; without one of this name, the first."""


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
        component, method: see ``interp.patching.patch``.
        positions: ``all`` positions at once, ``each`` alone, or each of the pairs' named ``spans``.
        metric: ``logit_difference`` (answer − wrong answer), ``probability`` or
            ``log_probability`` of the answer, or ``kl`` (nats, from the clean run's distribution;
            there an effect below zero brings the run closer to the clean one).
        chat: put texts into the model's chat template; for pairs that are not encoded yet.
        options: of ``interp.patching.patch`` (``source``, ``steps``, ``budget``, …). The source
            ``noise`` is `interp.patching.trace_noise`: noise on the span ``subject`` of the clean
            texts, or on their first span, ``draws`` of it, and clean states put back, at
            ``each`` position or by the tokens' roles.

    Raises:
        UserError: unknown names, or any error of ``interp.patching.patch``.
    """
    if isinstance(pairs, Pairs):
        pairs = encode_pairs(model.tokenizer, pairs, chat=chat, device=device_of(model))
    options = {"groups": pairs.groups, "templates": pairs.templates, **options}
    if options.get("source") == "noise":
        options |= {"component": component, "method": method, "metric": metric}
        return _traced(model, pairs, positions=positions, **options)
    options |= {"component": component, "method": method}
    options |= {"positions": positions_of(pairs, positions)}
    result = patch(model, pairs.clean, pairs.corrupted, metric_of(model, pairs, metric), **options)
    return _with_resolution(result, metric)


def _with_resolution(result: PatchEffects, metric: str) -> PatchEffects:
    if metric == "probability":
        # p(1 − p) ≤ 1/4: a rounding of the logits moves a probability by a quarter of it at most.
        return replace(result, resolution=result.resolution / 4)
    return result


def _traced(
    model: HookedModel,
    pairs: EncodedPairs,
    *,
    component: str,
    method: str,
    positions: str,
    metric: str,
    **options: Any,
) -> PatchEffects:
    """Effects of clean states in runs with noise on a span; see ``patch_pairs``."""
    check_source("noise", component, method)
    check_choice("positions", positions, get_args(Where))
    if not pairs.spans:
        raise UserError(
            'noise needs a span to put it on: add "spans" to every line, such as '
            '{"subject": [0, 5]}'
        )
    noised = pairs.spans[NOISED if NOISED in pairs.spans else next(iter(pairs.spans))]
    given = dict(options)
    options = {name: options[name] for name in _OF_NOISE if name in options}
    others = given.keys() - options.keys() - {"source"}
    if others := sorted(name for name in others if given[name] is not None):
        raise UserError(f"source 'noise' takes no {others[0]}")
    result = trace_noise(
        model,
        pairs.clean,
        metric_of(model, pairs, metric),
        noised[0],
        component=component,
        by="position" if positions == "each" else "role",
        **options,
    )
    return _with_resolution(result, metric)


def check_source(source: str, component: str, method: str) -> None:
    """Raise UserError for an unknown source, or one that component or method cannot have."""
    check_choice("source", source, get_args(Source))
    if source != "noise":
        check_patch_source(source, component)
        return
    check_traced(component)
    if method != "exact":
        raise UserError(f"noise is traced by method 'exact', not {method!r}")


def positions_of(pairs: EncodedPairs, positions: str) -> Positions:
    """``all``, ``each``, or the named spans as ``interp.patching.patch`` takes them."""
    check_choice("positions", positions, get_args(Where))
    if positions == "spans" and not pairs.spans:
        raise UserError(
            "these pairs have no spans: add \"spans\" to every line, or choose positions 'all'"
        )
    if positions != "spans" and not pairs.aligned:
        named = ", ".join(pairs.spans or ())
        advice = f"they have spans ({named}): choose positions 'spans', which are aligned"
        if not named:
            advice = "give the pairs spans to align them by, and choose positions 'spans'"
        raise UserError(f"clean and corrupted prompts differ in length: {advice}")
    return pairs.spans if positions == "spans" else positions  # type: ignore[return-value]


def metric_of(model: HookedModel, pairs: EncodedPairs, metric: str) -> Any:
    """The metric by its name."""
    check_choice("metric", metric, get_args(Metric))
    if metric == "logit_difference":
        return LogitDifference(pairs.answer, pairs.wrong)
    if metric == "kl":
        with torch.no_grad():  # from the same modules as the edited runs it is compared with
            return KLDivergence(unedited_logits(model, pairs.clean))
    return (Probability if metric == "probability" else LogProbability)(pairs.answer)
