"""The runs behind ``interp.experts.effects``: every expert under one mode, over all batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.experts.answer_runs import (
    AnswerBatch,
    BareRun,
    attribute_gates,
    run_bare,
    run_held,
)
from interp.generation import generate_tokens
from interp.interventions.constrain import constrain
from interp.interventions.experts import ExpertConstraint, ExpertMode, edit_gates
from interp.interventions.hooks import hooks_of
from interp.interventions.projections import Projection
from interp.moelora.encoding import IGNORED, end_token
from interp.moelora.examples import Example
from interp.moelora.scoring import is_right

Unit = tuple[int, int]
"""(place, expert): the place is a projection's number, or 0 for all of them together."""


@dataclass(frozen=True)
class EffectRuns:
    """What stays the same for every expert.

    Attributes:
        model: hooked.
        projections: those whose experts are intervened on.
        mode, factor: what is done to an expert.
        together: the expert with the same number in all projections is one unit.
        batches: the examples.
        progress: whether to show bars.
    """

    model: Any
    projections: tuple[Projection, ...]
    mode: ExpertMode
    factor: float
    together: bool
    batches: Sequence[AnswerBatch]
    progress: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Examples, places, and the most experts that a place has."""
        n_examples = sum(len(answers.examples) for answers in self.batches)
        n_places = 1 if self.together else len(self.projections)
        return n_examples, n_places, max(one.n_experts for one in self.projections)

    def constraints(self, units: set[Unit] | None = None) -> list[tuple[Unit, ExpertConstraint]]:
        """Every unit, or those asked for, with its constraint."""
        groups = [self.projections] if self.together else [(one,) for one in self.projections]
        found = []
        for place, group in enumerate(groups):
            for expert in range(max(one.n_experts for one in group)):
                if units is not None and (place, expert) not in units:
                    continue
                pairs = [(one.name, expert) for one in group if expert < one.n_experts]
                constraint = ExpertConstraint(pairs, self.mode, self.factor)
                found.append(((place, expert), constraint))
        return found

    def bare(self) -> Float[Tensor, "measure example"]:
        """Loss and accuracy of every example without interventions."""
        values = torch.empty(2, self.shape[0])
        for answers in self.batches:
            run = run_bare(self.model, answers, (), ())
            values[:, torch.tensor(answers.examples)] = _both(run.loss, run.right)
        return values

    def attribution(self) -> Float[Tensor, "example place expert"]:
        """First-order changes of loss."""
        values = torch.full(self.shape, torch.nan)

        def edit(gates: Tensor, expert: int) -> Tensor:
            return edit_gates(gates, [expert], self.mode, self.factor)

        for answers in tqdm(self.batches, desc="gradients", disable=not self.progress):
            found = attribute_gates(self.model, answers, self.projections, edit)
            rows = torch.tensor(answers.examples)[:, None]
            for number, one in enumerate(self.projections):
                place, experts = 0 if self.together else number, torch.arange(one.n_experts)
                # What is together adds up, to first order.
                before = values[rows, place, experts].nan_to_num()
                values[rows, place, experts] = before + found[one.name].float().cpu()
        return values

    def exact(
        self, units: set[Unit] | None = None
    ) -> tuple[Float[Tensor, "measure example"], Float[Tensor, "measure example place expert"]]:
        """Loss and accuracy without interventions, and their changes; NaN beyond ``units``."""
        base = torch.empty(2, self.shape[0])
        changes = torch.full((2, *self.shape), torch.nan)
        wanted = self.constraints(units)
        layers = sorted({one.layer for one in self.projections if one.layer is not None})
        total = len(wanted) * len(self.batches)
        with tqdm(total=total, desc=f"experts, {self.mode}", disable=not self.progress) as bar:
            for answers in self.batches:
                run = run_bare(self.model, answers, self.projections, layers)
                rows = torch.tensor(answers.examples)
                base[:, rows] = _both(run.loss, run.right)
                for (place, expert), constraint in wanted:
                    changes[:, rows, place, expert] = self._changes(run, constraint)
                    bar.update()
        return base, changes

    def _changes(
        self, bare: BareRun, constraint: ExpertConstraint
    ) -> Float[Tensor, "measure example"]:
        """Zero for examples that use none of the experts, under a mode that then does nothing."""
        pairs = constraint.pairs
        reached = torch.ones_like(bare.loss, dtype=torch.bool)
        if self.mode != "force":
            reached = torch.stack([bare.used[name][:, expert] for name, expert in pairs]).any(dim=0)
        rows = reached.nonzero()[:, 0]
        changes = torch.zeros(2, len(bare.loss))
        if len(rows):
            layer_of = {one.name: one.layer for one in self.projections}
            layers = [layer_of[name] for name, _ in pairs]
            # Outside the layers (an adapted unembedding) the whole model runs.
            known = [layer for layer in layers if layer is not None]
            lowest = min(known) if len(known) == len(layers) else None
            hooks = hooks_of(constraint, self.model, None)
            loss, right = run_held(self.model, bare, rows, hooks, lowest)
            changes[:, rows.cpu()] = _both(loss - bare.loss[rows], right - bare.right[rows])
        return changes

    def greedy(
        self, examples: Sequence[Example], units: set[Unit] | None = None
    ) -> tuple[Float[Tensor, " example"], Float[Tensor, "example place expert"]]:
        """Accuracy of greedy answers without interventions, and its changes."""
        prompts: list[list[int]] = [[] for _ in examples]
        for answers in self.batches:
            for row, index in enumerate(answers.examples):
                tokens = answers.batch.tokens[row][answers.batch.mask[row]].tolist()
                n_answer = int((answers.targets[row] != IGNORED).sum())
                prompts[index] = tokens[: len(tokens) + 1 - n_answer]
        end = end_token(self.model.tokenizer)

        def ask() -> Float[Tensor, " example"]:
            said = generate_tokens(self.model, prompts, end=end, progress=False)
            right = [is_right(one, text) for one, text in zip(examples, said, strict=True)]
            return torch.tensor(right, dtype=torch.float32)

        base, changes = ask(), torch.full(self.shape, torch.nan)
        wanted = self.constraints(units)
        for (place, expert), constraint in tqdm(
            wanted, desc="greedy answers", disable=not self.progress
        ):
            with constrain(self.model, constraint):
                changes[:, place, expert] = ask() - base
        return base, changes


def most_promising(
    estimate: Float[Tensor, "example place expert"], tasks: Sequence[str], budget: int
) -> set[Unit]:
    """The ``budget`` units with the largest absolute mean estimate in any task."""
    means = []
    for task in dict.fromkeys(tasks):
        rows = [row for row, name in enumerate(tasks) if name == task]
        means.append(estimate[rows].mean(dim=0).abs())
    largest = torch.stack(means).amax(dim=0).nan_to_num(nan=-1.0)
    order = largest.flatten().argsort(descending=True, stable=True)
    order = order[largest.flatten()[order] >= 0][:budget].tolist()
    width = largest.shape[1]
    return {(one // width, one % width) for one in order}


def _both(loss: Tensor, right: Tensor) -> Float[Tensor, "measure example"]:
    return torch.stack([loss.float().cpu(), right.float().cpu()])
