"""The training data of a detector: labelled questions, their activations, and folds.

Folds hold out subjects and templates at the same time, so a question is scored by probes fitted on
neither. Paraphrases (questions that do not count) are fitted on in every fold that has their
subject, and never scored.
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
from probes.scoring import groups_of
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

        A fold holds out a part of the subjects and every other template of each relation; subjects
        only, where no relation has two templates. Raises UserError for fewer subjects than folds,
        or a fold without both classes to fit on.
        """
        asked = [question.question for question in questions]
        subjects = np.array(groups_of(asked, "subject"))
        if len(set(subjects)) < self.n_subject_folds:
            raise UserError(
                f"{len(set(subjects))} subjects cannot fill {self.n_subject_folds} folds: "
                "give more facts, or fewer folds"
            )
        counted = np.array([question.counts for question in questions])
        half = _template_halves(asked, counted)
        labels = np.array([question.label for question in questions])
        found, halves = [], np.unique(half[counted])
        for _, left_out in GroupKFold(self.n_subject_folds).split(subjects, groups=subjects):
            mask = np.zeros(len(questions), dtype=bool)
            mask[left_out] = True
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
    return np.array([places.get((question.relation, question.template), 2) for question in asked])


@dataclass(frozen=True, eq=False)
class DetectorDataset:
    """Labelled questions and their tokens' activations; rows are tokens, question after question.

    Attributes:
        questions: in order.
        store: activations at every token of these questions, and perhaps of others.
        background: texts without a premise.
        prompts: the store's prompts of the questions and then of the background; by default the
            first ones.

    Raises UserError for questions of one class only, or a store of other prompts.
    """

    questions: tuple[LabelledQuestion, ...]
    store: ActivationStore
    background: tuple[BackgroundText, ...] = ()
    prompts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len({question.label for question in self.questions}) < 2:
            raise UserError("a detector needs questions of both classes: false premises and twins")
        n_tokens = sum(len(text.asked.offsets) for text in self.background)
        if [len(rows) for rows in self._rows] != [sum(self.sizes), n_tokens]:
            raise UserError("the activations belong to other questions: collect them again")

    @cached_property
    def _prompts(self) -> tuple[int, ...]:
        return self.prompts or tuple(range(len(self.questions) + len(self.background)))

    @cached_property
    def _rows(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " background_token"]]:
        """The store's rows of the questions, and of the background."""
        n = len(self.questions)
        questions, background = (
            torch.isin(self.store.prompt, torch.tensor(prompts, dtype=torch.long)).nonzero()[:, 0]
            for prompts in (self._prompts[:n], self._prompts[n:])
        )
        return questions, background

    def read(self, layer: int) -> Float[Tensor, "token d_model"]:
        """One layer's activations of the questions."""
        return self.store.read(layer, rows=self._rows[0])

    def read_background(self, layer: int) -> Float[Tensor, "background_token d_model"]:
        """One layer's activations of the background; empty where there is none."""
        if not self.background:
            return torch.empty(0, self.read(layer).shape[1])
        return self.store.read(layer, rows=self._rows[1])

    def background_of(self, fitted: Bool[np.ndarray, " question"]) -> Bool[Tensor, " token"]:
        """The background's tokens that may be fitted on: not about subjects that are left out."""
        groups = groups_of([question.question for question in self.questions])
        left_out = {group for group, used in zip(groups, fitted, strict=True) if not used}
        left_out -= {group for group, used in zip(groups, fitted, strict=True) if used}
        flags = [text.group not in left_out for text in self.background for _ in text.asked.offsets]
        return torch.tensor(flags, dtype=torch.bool)

    def of_relations(self, names: Sequence[str]) -> "DetectorDataset":
        """The questions of some relations, with the background of these or of no relation."""
        known = (None, *names)
        relations = [question.question.relation for question in self.questions]
        relations += [text.relation for text in self.background]
        return DetectorDataset(
            tuple(question for question in self.questions if question.question.relation in names),
            self.store,
            tuple(text for text in self.background if text.relation in known),
            tuple(
                prompt
                for prompt, name in zip(self._prompts, relations, strict=True)
                if name in known
            ),
        )

    @cached_property
    def sizes(self) -> list[int]:
        """How many tokens each question has."""
        return [len(question.asked.offsets) for question in self.questions]

    @cached_property
    def labels(self) -> Int[np.ndarray, " question"]:
        """1 for a false premise, 0 for a twin."""
        return np.array([question.label for question in self.questions])

    @cached_property
    def counted(self) -> Bool[np.ndarray, " question"]:
        """The questions by which layer, calibration and threshold are chosen."""
        return np.array([question.counts for question in self.questions])

    @cached_property
    def question_of(self) -> Int[Tensor, " token"]:
        """The question that each token is of."""
        return torch.repeat_interleave(torch.tensor(self.sizes))

    @cached_property
    def _position(self) -> Int[Tensor, " token"]:
        """Each token's position in its question."""
        return torch.cat([torch.arange(size) for size in self.sizes])

    @cached_property
    def _after_completion(self) -> Int[Tensor, " token"]:
        """How many tokens each token stands behind the completion; negative before it."""
        ends = torch.tensor([question.completion for question in self.questions])
        return self._position - ends[self.question_of]

    @cached_property
    def before(self) -> Bool[Tensor, " token"]:
        """The tokens up to the completion."""
        return self._after_completion <= 0

    @cached_property
    def completes(self) -> Bool[Tensor, " token"]:
        """The tokens at which a premise is complete."""
        return self._after_completion == 0

    @cached_property
    def mentions(self) -> Bool[Tensor, " token"]:
        """The object's tokens."""
        of_questions = torch.tensor([question.object_tokens for question in self.questions])
        spans = of_questions[self.question_of]
        return (self._position >= spans[:, 0]) & (self._position < spans[:, 1])

    def tokens_of(self, questions: Bool[np.ndarray, " question"]) -> Bool[Tensor, " token"]:
        """The tokens of some questions."""
        return torch.from_numpy(questions)[self.question_of]

    def question_scores(self, tokens: Float[Tensor, " token"]) -> Float[np.ndarray, " question"]:
        """The highest token of each question; NaN where it was not scored."""
        return np.array([float(part.max()) for part in tokens.split(self.sizes)])
