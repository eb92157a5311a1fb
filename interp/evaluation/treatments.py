"""What can be done about a false premise, as values, and how a model answers under each.

Nothing (``Untreated``), a system prompt (``SystemPrompt``), steering
(``interp.evaluation.steering``), a constraint at the known object (``Constraint``), random heads
under the same constraint (``RandomHeads``), or the constraint where a detector says that the
premise is false (``Gated``, which ``interp.evaluation.baselines`` puts together from the rest).
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.evaluation.preference import Preference, preference
from interp.evaluation.steering import Steering, SteeringPlace, steer
from interp.generation import Within, generate_tokens
from interp.heads.headset import HeadSet
from interp.heads.locate import as_encoded, batch_metrics
from interp.heads.selection import random_head_sets
from interp.interventions.constrain import constrain
from interp.interventions.constraint import Constraint
from interp.interventions.gate import Detector
from interp.models import render_chat
from interp.patching.batch import Span, TokenBatch
from interp.patching.forward import device_of
from interp.patching.metrics import LogitDifference, Metric, Probability
from interp.patching.sweep import Unit, sweep_sets
from interp.premises.encode import (
    EncodedPremises,
    EncodedPrompt,
    answer_tokens,
    encode_question,
    shared_length,
)
from interp.premises.questions import Premises, QuestionKind

CHECK_THE_PREMISE = (
    "Before you answer, check whether what the question takes for granted is true. "
    "If it is false, say so and state the true fact."
)
NULL_SETS = 10


@dataclass(frozen=True)
class Untreated:
    """The model as it is."""


@dataclass(frozen=True)
class SystemPrompt:
    """A system prompt before every question, in place of the chat template's own."""

    text: str = CHECK_THE_PREMISE


@dataclass(frozen=True)
class RandomHeads:
    """The constraint on random heads, as many in each layer; answers are those of the first set."""

    constraint: Constraint
    n_sets: int = NULL_SETS
    seed: int = 0


@dataclass(frozen=True)
class Gated:
    """The constraint where the detector fires, on the span that it finds (None: the model's)."""

    constraint: Constraint
    detector: Detector | None = None


Treatment = Untreated | SystemPrompt | Steering | Constraint | RandomHeads | Gated


def _metrics(encoded: EncodedPremises) -> tuple[Metric, ...]:
    """What a Preference holds, in its order."""
    return (
        LogitDifference(encoded.true_tokens, encoded.false_tokens),
        Probability(encoded.true_tokens),
        Probability(encoded.false_tokens),
    )


def _as_preference(values: Tensor, encoded: EncodedPremises) -> Preference:
    """From values [metric prompt set]."""
    difference, p_true, p_false = values.numpy()
    return Preference(difference, p_true, p_false, encoded.subjects, encoded.templates)


def treated_preference(
    model: Any,
    premises: Premises,
    encoded: EncodedPremises,
    kind: QuestionKind,
    treatment: Treatment,
    progress: bool,
) -> Preference:
    """Preference under any treatment but a gate, with one set, or one for each random draw."""
    if isinstance(treatment, Untreated):
        batch = encoded.batch(kind)
        return _as_preference(batch_metrics(model, batch, _metrics(encoded))[..., None], encoded)
    if isinstance(treatment, SystemPrompt):
        batch, metrics = _with_system(model, premises, kind, treatment.text)
        return _as_preference(batch_metrics(model, batch, metrics)[..., None], encoded)
    if isinstance(treatment, Steering):
        return steered_preference(model, premises, treatment, kind, progress=progress)
    if isinstance(treatment, RandomHeads):
        sets = _random_sets(model, treatment)
        constraint = treatment.constraint
        return preference(model, encoded, kind, constraint, sets, progress=progress)
    assert isinstance(treatment, Constraint)
    return preference(model, encoded, kind, treatment, [treatment.heads], progress=progress)


def _random_sets(model: Any, treatment: RandomHeads) -> tuple[HeadSet, ...]:
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    heads = treatment.constraint.heads
    return random_head_sets(heads, n_layers, n_heads, treatment.n_sets, seed=treatment.seed)


def _with_system(
    model: Any, premises: Premises, kind: QuestionKind, system: str
) -> tuple[TokenBatch, tuple[Metric, ...]]:
    """The prompts of ``EncodedPremises`` under a system prompt, and their answers' metrics."""
    prompts, true, false = [], [], []
    for question in premises.questions():
        text = premises.fill(question, kind).text
        rendered = render_chat(model.tokenizer, text, premises.cloze(question), system=system)
        objects = (question.true_object, question.false_object)
        true_ids, false_ids = answer_tokens(model.tokenizer, rendered, objects)
        shared = shared_length(true_ids, false_ids)
        prompts.append(true_ids[:shared])
        true.append(true_ids[shared])
        false.append(false_ids[shared])
    device = device_of(model)
    right, wrong = (torch.tensor(tokens, device=device) for tokens in (true, false))
    metrics = (LogitDifference(right, wrong), Probability(right), Probability(wrong))
    return TokenBatch.from_lists(prompts, device=device), metrics


def steered_preference(
    model: Any,
    premises: Premises,
    steering: Steering,
    kind: QuestionKind,
    *,
    sets: Sequence[Sequence[Unit]] | None = None,
    progress: bool = True,
) -> Preference:
    """Preference under steering, for its own units or for several sets of units at once."""
    encoded = as_encoded(model, premises)
    batch = encoded.batch(kind)
    spans = [item.prompt(kind).object for item in encoded.items]
    lengths = [len(prompt.tokens) for prompt in bare_prompts(model, premises, kind)]
    edit = steering.edit(steered_columns(steering.place, batch, spans, lengths))
    values = sweep_sets(
        model, batch, edit, [steering.units] if sets is None else sets, _metrics(encoded),
        progress=progress, description=f"steering, {kind}",
    )  # fmt: skip
    return _as_preference(values, encoded)


def steered_columns(
    place: SteeringPlace,
    batch: TokenBatch,
    spans: Sequence[Span],
    lengths: Sequence[int],
) -> Bool[Tensor, "prompt pos"]:
    """The columns that are steered; ``lengths`` are those of the bare questions' prompts."""
    if place == "object":
        return batch.columns(spans)
    if place == "all":
        return batch.mask
    ends = [int(real.sum()) for real in batch.mask]
    return batch.columns([(length - 1, end) for length, end in zip(lengths, ends, strict=True)])


def bare_prompts(
    model: Any, premises: Premises, kind: QuestionKind, system: str | None = None
) -> list[EncodedPrompt]:
    """Every question as a user would ask it, without the cloze."""
    return [
        encode_question(model.tokenizer, premises.fill(question, kind), system=system)
        for question in premises.questions()
    ]


def treated_answers(
    model: Any,
    premises: Premises,
    kind: QuestionKind,
    treatment: Treatment,
    max_new_tokens: int,
    progress: bool,
) -> tuple[tuple[str, ...], float]:
    """Greedy answers to the bare questions, and seconds per question."""
    system = treatment.text if isinstance(treatment, SystemPrompt) else None
    prompts = bare_prompts(model, premises, kind, system)
    if isinstance(treatment, RandomHeads):
        treatment = treatment.constraint.with_heads(_random_sets(model, treatment)[0])
    within: Within | None = None
    if isinstance(treatment, Constraint):
        within = constraining(model, premises, treatment, [one.object for one in prompts])
    elif isinstance(treatment, Steering):
        within = _steering(model, treatment, prompts)
    return timed_answers(model, prompts, within, max_new_tokens, progress)


def _steering(model: Any, steering: Steering, prompts: Sequence[EncodedPrompt]) -> Within:
    def within(chunk: list[int], batch: TokenBatch) -> AbstractContextManager[Any]:
        some = [prompts[index] for index in chunk]
        spans, lengths = [one.object for one in some], [len(one.tokens) for one in some]
        return steer(model, steering, steered_columns(steering.place, batch, spans, lengths))

    return within


def constraining(
    model: Any, premises: Premises, constraint: Constraint, spans: Sequence[Span]
) -> Within:
    """What puts a batch of prompts under a constraint; ``spans`` are those of all the prompts."""
    reference = as_encoded(model, premises) if constraint.mode == "mean" else None
    neutral = premises.relation.mask

    def within(chunk: list[int], batch: TokenBatch) -> AbstractContextManager[Any]:
        at = [spans[index] for index in chunk]
        return constrain(model, constraint, at=at, reference=reference, neutral=neutral)

    return within


def timed_answers(
    model: Any,
    prompts: Sequence[EncodedPrompt],
    within: Within | None,
    max_new_tokens: int,
    progress: bool,
) -> tuple[tuple[str, ...], float]:
    """Greedy answers to prompts, each batch in a context, and seconds per prompt."""
    begin = time.perf_counter()
    texts = generate_tokens(
        model, [prompt.tokens for prompt in prompts], max_new_tokens=max_new_tokens,
        within=within, progress=progress,
    )  # fmt: skip
    return tuple(texts), (time.perf_counter() - begin) / max(1, len(prompts))
