"""What a detector is fitted to: labelled questions with their activations, and their folds.

Folds are by subject and, at the same time, by template, so that a question is scored by probes that
saw neither. Questions that do not count (other words for the same premises) are fitted on in every
fold that has their subject, and scored in none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.model_selection import GroupKFold
from torch import Tensor

from interp.errors import UserError
from probes.detector.questions import BackgroundText, LabelledQuestion
from probes.grouping import groups_of
from probes.store import ActivationStore

FOLDS = 5


@dataclass(frozen=True)
class Folds:
    """How questions are cross-validated.

    Attributes:
        n_subject_folds: parts into which the subjects are dealt.
        seed: of the tokens that are fitted on.
    """

    n_subject_folds: int = FOLDS
    seed: int = 0

    def pairs(
        self, questions: Sequence[LabelledQuestion]
    ) -> list[tuple[Bool[np.ndarray, " question"], Bool[np.ndarray, " question"]]]:
        """(fitted, scored) masks of questions; every question that counts is scored once.

        A fold leaves out a part of the subjects, and of each relation every other template; where
        no relation has two templates, of subjects only. Raises UserError for fewer subjects than
        folds, or a fold without both classes to fit on.
        """
        asked = [one.question for one in questions]
        subjects = np.array(groups_of(asked, "subject"))
        if len(set(subjects)) < self.n_subject_folds:
            raise UserError(
                f"{len(set(subjects))} subjects cannot fill {self.n_subject_folds} folds: "
                "give more facts, or fewer folds"
            )
        counted = np.array([one.counts for one in questions])
        half = _template_halves(asked, counted)
        labels = np.array([one.label for one in questions])
        found = []
        splits = GroupKFold(self.n_subject_folds).split(subjects, groups=subjects)
        for _, left_out in splits:
            mask = np.zeros(len(questions), dtype=bool)
            mask[left_out] = True
            halves = np.unique(half[counted])
            for which in halves:
                fitted = ~mask & (half != which) if len(halves) > 1 else ~mask
                if len(set(labels[fitted])) < 2:
                    raise UserError(
                        "a fold leaves questions of one class only to fit on: give more facts"
                    )
                found.append((fitted, mask & counted & (half == which)))
        return found


def _template_halves(
    asked: Sequence[Any], counted: Bool[np.ndarray, " question"]
) -> Int[np.ndarray, " question"]:
    """0 or 1: every other template of each relation, in order of appearance.

    2 where no question counts that has the template: it is in neither half.
    """
    seen: dict[str, list[str]] = {}
    for question, counts in zip(asked, counted, strict=True):
        of_relation = seen.setdefault(question.relation, [])
        if counts and question.template not in of_relation:
            of_relation.append(question.template)
    places = {
        (relation, template): index % 2
        for relation, templates in seen.items()
        for index, template in enumerate(templates)
    }
    return np.array([places.get((one.relation, one.template), 2) for one in asked])


@dataclass(frozen=True, eq=False)
class DetectorDataset:
    """Labelled questions and their tokens' activations; rows are tokens, question after question.

    Attributes:
        questions: in order.
        store: activations at every token of these questions, and perhaps of others.
        prompts: which of the store's prompts these questions are; by default the first.
        background: texts without a premise.
        background_prompts: which of the store's prompts these are; by default the next.

    Raises UserError for questions of one class only, or a store of other prompts.
    """

    questions: tuple[LabelledQuestion, ...]
    store: ActivationStore
    prompts: tuple[int, ...] | None = None
    background: tuple[BackgroundText, ...] = ()
    background_prompts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len({one.label for one in self.questions}) < 2:
            raise UserError("a detector needs questions of both classes: false premises and twins")
        n_tokens = sum(len(one.asked.offsets) for one in self.background)
        if len(self._rows) != sum(self.sizes) or len(self._background_rows) != n_tokens:
            raise UserError("the activations belong to other questions: collect them again")

    @cached_property
    def _rows(self) -> Int[Tensor, " token"]:
        """The store's rows of these questions."""
        first = range(len(self.questions)) if self.prompts is None else self.prompts
        return self._rows_of(first)

    @cached_property
    def _background_rows(self) -> Int[Tensor, " token"]:
        if self.background_prompts is not None:
            return self._rows_of(self.background_prompts)
        begin = len(self.questions)
        return self._rows_of(range(begin, begin + len(self.background)))

    def _rows_of(self, prompts: Sequence[int]) -> Int[Tensor, " token"]:
        wanted = torch.tensor(list(prompts), dtype=torch.long)
        return torch.isin(self.store.prompt, wanted).nonzero()[:, 0]

    def read(self, layer: int) -> Float[Tensor, "token d_model"]:
        """One layer's activations of the questions."""
        return self.store.read(layer, rows=self._rows)

    def read_background(self, layer: int) -> Float[Tensor, "background_token d_model"]:
        """One layer's activations of the background; empty where there is none."""
        if not self.background:
            return torch.empty(0, self.read(layer).shape[1])
        return self.store.read(layer, rows=self._background_rows)

    def background_of(self, fitted: Bool[np.ndarray, " question"]) -> Bool[Tensor, " token"]:
        """The background's tokens that may be fitted on: not about subjects that are left out."""
        groups = groups_of([one.question for one in self.questions])
        left_out = {group for group, used in zip(groups, fitted, strict=True) if not used}
        left_out -= {group for group, used in zip(groups, fitted, strict=True) if used}
        flags = [one.group not in left_out for one in self.background for _ in one.asked.offsets]
        return torch.tensor(flags, dtype=torch.bool)

    def of_relations(self, names: Sequence[str]) -> "DetectorDataset":
        """The questions of some relations only, from the same store."""
        chosen = [
            index for index, one in enumerate(self.questions) if one.question.relation in names
        ]
        prompts = range(len(self.questions)) if self.prompts is None else self.prompts
        kept = [
            index
            for index, one in enumerate(self.background)
            if one.relation is None or one.relation in names
        ]
        begin = len(self.questions)
        others = self.background_prompts or range(begin, begin + len(self.background))
        return DetectorDataset(
            tuple(self.questions[index] for index in chosen),
            self.store,
            tuple(prompts[index] for index in chosen),
            tuple(self.background[index] for index in kept),
            tuple(others[index] for index in kept),
        )

    @cached_property
    def sizes(self) -> list[int]:
        """How many tokens each question has."""
        return [len(one.asked.offsets) for one in self.questions]

    @cached_property
    def labels(self) -> Int[np.ndarray, " question"]:
        """1 for a false premise, 0 for a twin."""
        return np.array([one.label for one in self.questions])

    @cached_property
    def counted(self) -> Bool[np.ndarray, " question"]:
        """The questions by which layer, calibration and threshold are chosen."""
        return np.array([one.counts for one in self.questions])

    @cached_property
    def question_of(self) -> Int[Tensor, " token"]:
        """The question that each token is of."""
        return torch.repeat_interleave(torch.tensor(self.sizes))

    @cached_property
    def _place(self) -> Int[Tensor, " token"]:
        """Each token's place in its question."""
        return torch.cat([torch.arange(size) for size in self.sizes])

    @cached_property
    def before(self) -> Bool[Tensor, " token"]:
        """The tokens up to the completion."""
        ends = torch.tensor([one.completion for one in self.questions])
        return self._place <= ends[self.question_of]

    @cached_property
    def completes(self) -> Bool[Tensor, " token"]:
        """The tokens at which a premise is complete."""
        ends = torch.tensor([one.completion for one in self.questions])
        return self._place == ends[self.question_of]

    @cached_property
    def mentions(self) -> Bool[Tensor, " token"]:
        """The object's tokens."""
        spans = torch.tensor([one.object_tokens for one in self.questions])[self.question_of]
        return (self._place >= spans[:, 0]) & (self._place < spans[:, 1])

    def tokens_of(self, questions: Bool[np.ndarray, " question"]) -> Bool[Tensor, " token"]:
        """The tokens of some questions."""
        return torch.from_numpy(questions)[self.question_of]

    def question_scores(self, tokens: Float[Tensor, " token"]) -> Float[np.ndarray, " question"]:
        """The highest token of each question; NaN where it was not scored."""
        return np.array([float(part.max()) for part in tokens.split(self.sizes)])
