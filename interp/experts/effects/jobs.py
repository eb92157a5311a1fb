"""The runs behind ``interp.experts.effects.effects``: every expert under one mode, over all
batches.

``ExpertJob`` says which examples and experts; ``estimate_experts`` and ``measure_experts`` are what
a stage has done with it, over all examples at once or over some of them at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.experts.effects.answer_runs import (
    BareRun,
    answer_batch,
    answer_chunks,
    answer_measures,
    attribute_gates,
    run_bare,
)
from interp.forward.generate import generate_tokens
from interp.forward.out_of_memory import halving
from interp.forward.partial import device_of
from interp.interventions.context import constrain
from interp.interventions.expert_constraint import ExpertConstraint, ExpertMode, edit_gates
from interp.interventions.hooks import hooks_of
from interp.jobs import SHARD, OutputSpec, Shard
from interp.models.hooked_model import HookedModel
from interp.moelora.data.encoding import EncodedExample, end_token
from interp.moelora.data.examples import Example
from interp.moelora.projections import Projection
from interp.moelora.training.scoring import is_right
from interp.patching.variants import Variant, measure_runs, run_variants
from interp.precision import result_dtype
from interp.progress import progress_bar

Unit = tuple[int, int]
"""(place, expert): the place is a projection's number, or 0 for all of them together."""


@dataclass(frozen=True)
class ExpertJob:
    """Examples, and the experts that are intervened on one by one.

    Attributes:
        examples: prompts with their right answers.
        projections: those whose experts are meant.
        mode, factor: what is done to an expert.
        together: the expert with the same number in all projections is one unit.
        units: only these; by default all.
        shard: examples that are done together.
    """

    examples: tuple[EncodedExample, ...]
    projections: tuple[Projection, ...]
    mode: ExpertMode = "off"
    factor: float = 0.0
    together: bool = False
    units: frozenset[Unit] | None = None
    shard: int = 2 * SHARD

    def order(self) -> Sequence[int]:
        """Examples of like lengths beside each other."""
        return sorted(range(len(self.examples)), key=lambda index: len(self.examples[index].tokens))

    def take(self, prompts: Sequence[int]) -> "ExpertJob":
        """The same for some of the examples."""
        return replace(self, examples=tuple(self.examples[index] for index in prompts))

    def identity(self) -> dict[str, Any]:
        """What decides the effects."""
        return {
            "examples": [[one.tokens, one.n_prompt] for one in self.examples],
            "projections": [[one.name, one.n_experts] for one in self.projections],
            "setting": [self.mode, self.factor, self.together],
            "units": None if self.units is None else sorted(self.units),
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        """Examples, places, and the most experts that a place has."""
        n_places = 1 if self.together else len(self.projections)
        return len(self.examples), n_places, max(one.n_experts for one in self.projections)

    def constraints(self) -> list[tuple[Unit, ExpertConstraint]]:
        """Every unit that is meant, with its constraint."""
        groups = [self.projections] if self.together else [(one,) for one in self.projections]
        found = []
        for place, group in enumerate(groups):
            for expert in range(max(one.n_experts for one in group)):
                if self.units is not None and (place, expert) not in self.units:
                    continue
                pairs = [(one.name, expert) for one in group if expert < one.n_experts]
                constraint = ExpertConstraint(pairs, self.mode, self.factor)
                found.append(((place, expert), constraint))
        return found


ESTIMATED = OutputSpec({"loss": 1, "changes": 3})
MEASURED = OutputSpec({"bare": 2, "changes": 4})


def estimate_experts(model: HookedModel, job: ExpertJob, *, progress: bool = False) -> Shard:
    """First-order changes of loss.

    Returns:
        ``loss`` [example] without interventions, ``changes`` [example place expert].
    """
    dtype = result_dtype(model)
    loss = torch.empty(job.shape[0], dtype=dtype)
    changes = torch.full(job.shape, torch.nan, dtype=dtype)

    def edit(gates: Tensor, expert: int) -> Tensor:
        return edit_gates(gates, [expert], job.mode, job.factor)

    device = device_of(model)

    def run_chunk(chunk: list[int]) -> None:
        answers = answer_batch(job.examples, chunk, device)
        here, found = attribute_gates(model, answers, job.projections, edit)
        rows = torch.tensor(answers.examples)
        loss[rows] = here.to(loss)
        for number, one in enumerate(job.projections):
            place, experts = 0 if job.together else number, torch.arange(one.n_experts)
            # What is together adds up, to first order.
            before = changes[rows[:, None], place, experts].nan_to_num()
            changes[rows[:, None], place, experts] = before + found[one.name].to(changes)

    with progress_bar(total=len(job.examples), description="gradients", shown=progress) as bar:
        for chunk, _ in halving(answer_chunks(job.examples), run_chunk, what="one example"):
            bar.update(len(chunk))
    return Shard({"loss": loss, "changes": changes})


def measure_experts(model: HookedModel, job: ExpertJob, *, progress: bool = False) -> Shard:
    """Loss and accuracy without interventions, and their changes; NaN beyond the job's units.

    Returns:
        ``bare`` [example measure], ``changes`` [example measure place expert].
    """
    n_examples, *units = job.shape
    wanted, device = job.constraints(), device_of(model)

    def runs(chunk: list[int]) -> Iterator[Tensor]:
        bare = run_bare(model, answer_batch(job.examples, chunk, device), job.projections)
        yield torch.stack([bare.loss, bare.right])
        for _, constraint in wanted:
            yield _changes(model, job, bare, constraint)

    found = measure_runs(
        runs,
        answer_chunks(job.examples),
        shape=(2, n_examples, 1 + len(wanted)),
        dtype=result_dtype(model),
        what="one example",
        progress=progress,
        description=f"experts, {job.mode}",
    ).transpose(0, 1)
    changes = found.new_full((n_examples, 2, *units), torch.nan)
    for number, ((place, expert), _) in enumerate(wanted, start=1):
        changes[:, :, place, expert] = found[:, :, number]
    return Shard({"bare": found[:, :, 0].contiguous(), "changes": changes})


def _changes(
    model: HookedModel, job: ExpertJob, bare: BareRun, constraint: ExpertConstraint
) -> Float[Tensor, "measure example"]:
    """Zero for examples that use none of the experts, under a mode that then does nothing."""
    pairs = constraint.pairs
    reached = torch.ones_like(bare.loss, dtype=torch.bool)
    if job.mode != "force":
        reached = torch.stack([bare.used[name][:, expert] for name, expert in pairs]).any(dim=0)
    rows = reached.nonzero()[:, 0]
    changes = torch.zeros_like(torch.stack([bare.loss, bare.right]))
    if len(rows):
        layer_of = {one.name: one.layer for one in job.projections}
        # Outside the layers (an adapted unembedding) the whole model runs.
        first_layer = min(layer_of[name] or 0 for name, _ in pairs)
        variant = Variant(first_layer, tuple(hooks_of(constraint, model, None)), rows)
        (logits,) = run_variants(model, bare.run, [variant])
        loss, right = answer_measures(logits, bare.answers.targets[rows])
        changes[:, rows] = torch.stack([loss - bare.loss[rows], right - bare.right[rows]])
    return changes


def greedy_accuracy(
    model: HookedModel, job: ExpertJob, examples: Sequence[Example], *, progress: bool = True
) -> tuple[Float[Tensor, " example"], Float[Tensor, "example place expert"]]:
    """Accuracy of greedy answers without interventions, and its changes.

    Args:
        examples: what the job's are, as questions that an answer is scored against.
    """
    prompts = [one.tokens[: one.n_prompt] for one in job.examples]
    end = end_token(model.tokenizer)

    def ask() -> Float[Tensor, " example"]:
        said = generate_tokens(model, prompts, end=end, progress=False)
        right = [is_right(one, text) for one, text in zip(examples, said, strict=True)]
        return torch.tensor(right, dtype=torch.float32)

    base, changes = ask(), torch.full(job.shape, torch.nan)
    wanted = job.constraints()
    for (place, expert), constraint in progress_bar(
        wanted, description="greedy answers", shown=progress
    ):
        with constrain(model, constraint):
            changes[:, place, expert] = ask() - base
    return base, changes


def most_promising(
    estimate: Float[Tensor, "example place expert"], tasks: Sequence[str], budget: int
) -> frozenset[Unit]:
    """The ``budget`` units with the largest absolute mean estimate in any task."""
    means = []
    for task in dict.fromkeys(tasks):
        rows = [row for row, name in enumerate(tasks) if name == task]
        means.append(estimate[rows].mean(dim=0).abs())
    largest = torch.stack(means).amax(dim=0).nan_to_num(nan=-1.0)
    order = largest.flatten().argsort(descending=True, stable=True)
    order = order[largest.flatten()[order] >= 0][:budget].tolist()
    width = largest.shape[1]
    return frozenset((one // width, one % width) for one in order)
