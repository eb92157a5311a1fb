"""Jobs of an evaluation: sweeps over head sets, whole runs, and greedy answers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.forward.batch import RUN_TOKENS, Span, TokenBatch
from interp.forward.generate import BATCH_PROMPTS, MAX_NEW_TOKENS, greedy_answers
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import last_logits
from interp.forward.pass_tokens import pass_tokens
from interp.forward.prompts import device_of
from interp.heads.headset import HeadSet
from interp.interventions.context import constrain
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.jobs import SHARD, Shard
from interp.models.hooked_model import HookedModel
from interp.patching.checks import checked_together
from interp.patching.metrics import LogitDifference, Probability, apply_metric
from interp.patching.sweep import sweep_position_sets
from interp.precision import result_dtype
from interp.premises.encode import EncodedPremises
from interp.premises.questions import QuestionKind
from interp.progress import progress_bar


@dataclass(frozen=True)
class PreferenceJob:
    """A sweep: prompts that run under each of several head sets, in one site and mode.

    Attributes:
        encoded, kind: the prompts.
        constraint: site, mode and factor; its heads are not used.
        sets: an empty one is the unconstrained model.
        mean: what mode ``mean`` puts in; by default the mean over all of the prompts, which must
            not be cut apart then.
        budget: bytes that one forward pass may take.
        prompts_per_shard: prompts that are computed, and kept, together.
    """

    encoded: EncodedPremises
    kind: QuestionKind
    constraint: Constraint
    sets: tuple[HeadSet, ...]
    mean: Float[Tensor, "layer head d_head"] | None = None
    budget: int | None = None
    prompts_per_shard: int = SHARD

    def order(self) -> Sequence[int]:
        """Prompts of like lengths beside each other."""
        return self.encoded.by_length(self.kind)

    def take(self, prompts: Sequence[int]) -> "PreferenceJob":
        """The same for some of the prompts."""
        if self.constraint.mode == "mean" and self.mean is None:
            raise ValueError("the mean is over all prompts: take it before they are cut apart")
        return replace(self, encoded=self.encoded.take(prompts))

    def identity(self) -> dict[str, Any]:
        """What decides the values."""
        return {
            **_identity_of_prompts(self.encoded, self.kind),
            "setting": [self.constraint.site, self.constraint.mode, self.constraint.factor],
            "sets": [heads.heads for heads in self.sets],
            "mean": _listed(self.mean),
            "budget": self.budget,
        }


@torch.no_grad()
def preference_values(model: HookedModel, job: PreferenceJob, *, progress: bool = False) -> Shard:
    """``values`` [prompt metric set]: the metrics of every prompt under every head set."""
    encoded = job.encoded.to(device_of(model))
    edit = job.constraint.edit(model, encoded, job.kind, mean=job.mean)
    values = sweep_position_sets(
        model,
        encoded.batch(job.kind),
        edit,
        position_sets=edit.changed[None],
        sets=[heads.heads for heads in job.sets],
        metrics=preference_metrics(encoded),
        budget=job.budget,
        progress=progress,
        description=f"{job.kind} premises",
    )
    return Shard({"values": values[..., 0].transpose(0, 1)})


@dataclass(frozen=True)
class WholeRunsJob:
    """Whole runs: prompts that run under each of several interventions at their objects.

    Attributes:
        encoded, kind: the prompts.
        interventions: an empty one is the unconstrained model.
        mean: what mode ``mean`` puts in; UserError in a run that needs it and has none.
        strengths: how much of the interventions acts in each prompt; None for all of it.
        prompts_per_shard: prompts that are computed, and kept, together.
    """

    encoded: EncodedPremises
    kind: QuestionKind
    interventions: tuple[Intervention, ...]
    mean: Float[Tensor, "layer head d_head"] | None = None
    strengths: tuple[float, ...] | None = None
    prompts_per_shard: int = SHARD

    def order(self) -> Sequence[int]:
        """Prompts of like lengths beside each other."""
        return self.encoded.by_length(self.kind)

    def take(self, prompts: Sequence[int]) -> "WholeRunsJob":
        """The same for some of the prompts."""
        strengths = _taken(self.strengths, prompts)
        return replace(self, encoded=self.encoded.take(prompts), strengths=strengths)

    def identity(self) -> dict[str, Any]:
        """What decides the values."""
        return {
            **_identity_of_prompts(self.encoded, self.kind),
            "under": [_identity_of(intervention) for intervention in self.interventions],
            "mean": _listed(self.mean),
            "neutral": self.encoded.mask,
            **_identity_of_strengths(self.strengths),
        }


@torch.no_grad()
def whole_run_values(model: HookedModel, job: WholeRunsJob, *, progress: bool = False) -> Shard:
    """``values`` [prompt metric intervention]: as ``preference_values``."""
    encoded = job.encoded.to(device_of(model))
    batch, dtype = encoded.batch(job.kind), result_dtype(model)
    spans = [item.prompt(job.kind).object for item in encoded.items]
    metrics = preference_metrics(encoded)
    tokens = pass_tokens(model, batch.width, least=RUN_TOKENS)

    def measured(intervention: Intervention) -> Float[Tensor, "prompt metric"]:
        def run(part: TokenBatch, rows: range) -> Tensor:
            strengths = job.strengths if len(intervention) else None
            with constrain(
                model,
                intervention,
                at=spans[rows.start : rows.stop],
                mean=job.mean,
                neutral=encoded.mask,
                strengths=None if strengths is None else strengths[rows.start : rows.stop],
            ):
                return last_logits(model, part)[:, -1]

        logits = torch.cat(list(over_parts(batch, run, batch_tokens=tokens)))
        found = checked_together(lambda: [apply_metric(metric, logits) for metric in metrics])
        return torch.stack([values.to(logits.device, dtype) for values in found], dim=1)

    shown = progress_bar(
        job.interventions, description=f"{job.kind} premises, whole runs", shown=progress
    )
    return Shard({"values": torch.stack([measured(each) for each in shown], dim=2).cpu()})


@dataclass(frozen=True)
class AnswersJob:
    """Greedy answers to prompts, under an intervention or under none.

    Attributes:
        prompts: their tokens.
        under: the intervention, which acts ``at`` a span of each prompt.
        mean: what mode ``mean`` puts in.
        neutral: the word that mode ``resample`` puts in the object's place.
        strengths: how much of the intervention acts in each prompt; None for all of it.
    """

    prompts: tuple[tuple[int, ...], ...]
    under: Intervention | None = None
    at: tuple[Span, ...] = ()
    mean: Float[Tensor, "layer head d_head"] | None = None
    neutral: str | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    strengths: tuple[float, ...] | None = None
    # As many as are answered together anyway: an answer can hang on the last bit.
    prompts_per_shard: int = BATCH_PROMPTS

    def order(self) -> Sequence[int]:
        """Prompts of like lengths beside each other."""
        return sorted(range(len(self.prompts)), key=lambda index: len(self.prompts[index]))

    def take(self, prompts: Sequence[int]) -> "AnswersJob":
        """The same for some of the prompts."""
        at = () if self.under is None else tuple(self.at[index] for index in prompts)
        taken = tuple(self.prompts[index] for index in prompts)
        return replace(self, prompts=taken, at=at, strengths=_taken(self.strengths, prompts))

    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        return {
            "prompts": self.prompts,
            "under": None if self.under is None else _identity_of(self.under),
            "at": self.at,
            "mean": _listed(self.mean),
            "neutral": self.neutral,
            "max_new_tokens": self.max_new_tokens,
            **_identity_of_strengths(self.strengths),
        }


def greedy_texts(model: HookedModel, job: AnswersJob, *, progress: bool = False) -> Shard:
    """``texts``: the greedy answer to each prompt."""
    under = job.under

    def within(chunk: list[int], batch: TokenBatch) -> AbstractContextManager[Any]:
        assert under is not None
        at, strengths = [job.at[index] for index in chunk], _taken(job.strengths, chunk)
        return constrain(
            model, under, at=at, mean=job.mean, neutral=job.neutral, strengths=strengths
        )

    return Shard(
        texts=greedy_answers(
            model.original_model,
            model.tokenizer,
            job.prompts,
            max_new_tokens=job.max_new_tokens,
            within=None if under is None else within,
            progress=progress,
            description="answers" if under is None else "constrained answers",
        )
    )


def preference_metrics(
    encoded: EncodedPremises,
) -> tuple[LogitDifference, Probability, Probability]:
    """Logit difference (true − false), P(true), P(false)."""
    return (
        LogitDifference(encoded.true_tokens, encoded.false_tokens),
        Probability(encoded.true_tokens),
        Probability(encoded.false_tokens),
    )


def _identity_of_prompts(encoded: EncodedPremises, kind: QuestionKind) -> dict[str, Any]:
    return {
        "prompts": [
            [item.prompt(which).tokens for item in encoded.items] for which in (kind, "masked")
        ],
        "answers": [encoded.true_tokens.tolist(), encoded.false_tokens.tolist()],
        "objects": [item.prompt(kind).object for item in encoded.items],
    }


def _identity_of(under: Intervention) -> dict[str, Any]:
    """What an intervention does; without what versions did not know that kept results before."""
    content = asdict(under)
    for part in content["heads"]:
        if part["decoding_steps"] is None:
            del part["decoding_steps"]
    return content


def _identity_of_strengths(strengths: Sequence[float] | None) -> dict[str, Any]:
    return {} if strengths is None else {"strengths": list(strengths)}


def _taken(values: Sequence[float] | None, prompts: Sequence[int]) -> tuple[float, ...] | None:
    return None if values is None else tuple(values[index] for index in prompts)


def _listed(tensor: Tensor | None) -> list[Any] | None:
    return None if tensor is None else tensor.tolist()
