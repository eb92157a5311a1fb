"""The summary of a report: key figures, and sentences about gain, null, cost and side effects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interp.figures.measures import (
    HELD_OUT,
    MISSING,
    Measure,
    count_at,
    format_number,
    format_small,
    measure_at,
)
from interp.figures.tables import setting_name


@dataclass(frozen=True)
class KeyFigure:
    """A measure's name, its values without and with the constraint, and a note on the latter."""

    name: str
    before: str
    after: str
    note: str


def key_figures(evaluation: Mapping[str, Any]) -> tuple[KeyFigure, ...]:
    """Preference and mentions on false premises, P(true object) on twins, if measured."""
    wanted = (
        ("Prefers the true object, false premises", "false_premise", "preference_accuracy"),
        ("Names the true object, false premises", "false_premise", "true_object_mention_rate"),
        ("P(true object), true-premise twins", "true_premise", "p_true_object"),
    )
    figures = []
    for name, kind, measure in wanted:
        before, after = _pair(evaluation, kind, measure)
        if before is None or after is None:
            continue
        # The prompts of the preference; answers may have been asked of fewer.
        answered = measure == "true_object_mention_rate"
        count = None if answered else count_at(evaluation, *HELD_OUT, kind, "constrained", "n")
        note = "" if count is None else f"n = {count}"
        if after.low is not None and after.high is not None:
            interval = f"95 % [{format_number(after.low)}, {format_number(after.high)}]"
            note = f"{interval}, {note}" if note else interval
        figures.append(
            KeyFigure(name, format_number(before.value), format_number(after.value), note)
        )
    return tuple(figures)


def summary_sentences(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """The findings as sentences; those without numbers are left out."""
    sentences = (
        _gain(evaluation),
        _detection(evaluation),
        _null(evaluation),
        _answers(evaluation),
        _cost(evaluation),
        _side_effects(evaluation),
    )
    return tuple(sentence for sentence in sentences if sentence)


def _pair(
    evaluation: Mapping[str, Any], kind: str, name: str
) -> tuple[Measure | None, Measure | None]:
    keys = (*HELD_OUT, kind)
    return (
        measure_at(evaluation, *keys, "baseline", name),
        measure_at(evaluation, *keys, "constrained", name),
    )


def _gain(evaluation: Mapping[str, Any]) -> str | None:
    before, after = _pair(evaluation, "false_premise", "preference_accuracy")
    if before is None or after is None:
        return None
    count = count_at(evaluation, *HELD_OUT, "false_premise", "constrained", "n")
    prompts = f"{'' if count is None else f'{count} '}held-out false-premise prompts"
    return (
        f"Constrained at {setting_name(evaluation)}: {evaluation.get('model', 'the model')} "
        f"prefers the true object on {after.format()} of {prompts}; "
        f"without it, on {before.format()}."
    )


def _detection(evaluation: Mapping[str, Any]) -> str | None:
    """Where the detector let the constraint act, with gate ``probe``."""
    false, twins, covers = (
        measure_at(evaluation, "detection", name)
        for name in ("fired_on_false", "fired_on_twins", "span_covers_object")
    )
    if false is None or twins is None:
        return None
    sentence = (
        f"The detector, which reads the question alone, fired on {false.format()} of the false "
        f"premises and on {twins.format()} of their true twins"
    )
    if covers is not None:
        sentence += f"; the words that it found hold the false object in {covers.format()} of them"
    return sentence + ". Where it does not fire, the answer is that without the constraint."


def _null(evaluation: Mapping[str, Any]) -> str | None:
    keys = ("random_null", "preference_accuracy")
    mean, p95 = measure_at(evaluation, *keys, "mean"), measure_at(evaluation, *keys, "p95")
    if mean is None:
        return None
    sets = count_at(evaluation, "random_null", "n_sets")
    sentence = (
        "Random head sets with as many heads in each layer "
        f"{'' if sets is None else f'({sets} of them) '}prefer it on {format_number(mean.value)} "
        "on average"
    )
    if p95 is not None:
        sentence += f" and {format_number(p95.value)} at their 95th percentile"
    percentile = measure_at(evaluation, "random_null", "percentile_of_selected")
    if percentile is not None:
        sentence += f"; the chosen set lies at percentile {percentile.value:.0f} of them"
    return sentence + "."


def _answers(evaluation: Mapping[str, Any]) -> str | None:
    before, after = _pair(evaluation, "false_premise", "true_object_mention_rate")
    if before is None or after is None:
        return None
    sentence = (
        f"Greedy answers to false premises name the true object in {after.format()} of cases, "
        f"against {before.format()} without the constraint"
    )
    before, after = _pair(evaluation, "false_premise", "false_object_mention_rate")
    if before is not None and after is not None:
        sentence += f"; the false object in {after.format()}, against {before.format()}"
    return sentence + "."


def _cost(evaluation: Mapping[str, Any]) -> str | None:
    before, after = _pair(evaluation, "true_premise", "p_true_object")
    if before is None or after is None:
        return None
    fall = before.value - after.value
    if format_number(fall) == format_number(0.0):
        moved = "stays within 0.01 of its value"
    else:
        moved = f"{'falls' if fall > 0 else 'rises'} by {format_number(abs(fall))}"
    return (
        f"The cost: on the true-premise twins P(true object) {moved}, "
        f"from {before.format()} to {after.format()}."
    )


def _side_effects(evaluation: Mapping[str, Any]) -> str | None:
    divergence = measure_at(evaluation, "side_effects", "neutral_kl")
    ratio = measure_at(evaluation, "side_effects", "neutral_perplexity_ratio")
    if divergence is None and ratio is None:
        return None
    kl = MISSING if divergence is None else f"{format_small(divergence.value)} nats"
    perplexity = MISSING if ratio is None else format_number(ratio.value, 3)
    return f"On neutral text the KL divergence is {kl} and the perplexity ratio {perplexity}."
