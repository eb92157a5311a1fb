"""The training data of a detector: labelled questions, their activations, and folds.

With several relations, folds hold out relations, so a question is scored by probes fitted on other
relations. With few, they hold out subjects and templates at the same time. Paraphrases (questions
that do not count) are fitted on in every fold that has their subject, and never scored; so are
questions of further relations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import Span
from interp.lazy import model_selection
from probes.detector.questions import BackgroundText, LabelledQuestion
from probes.scoring import groups_of
from probes.store import ActivationStore

FOLDS = 5
FEWEST_RELATIONS = 4
"""With at least this many relations, folds leave out relations."""
MOST_RELATION_FOLDS = 8
"""Folds by relation; with more relations, a fold leaves out several."""


@dataclass(frozen=True)
class Folds:
    """How questions are cross-validated.

    Attributes:
        n_folds: parts into which the subjects, or the relations, are dealt.
        by_relation: leave whole relations out, so that what is chosen holds for another relation.
    """

    n_folds: int = FOLDS
    by_relation: bool = False

    @classmethod
    def suited_to(cls, questions: Sequence[LabelledQuestion], n_folds: int = FOLDS) -> "Folds":
        """Folds by relation where enough relations count, else by subject and template."""
        counted = {question.question.relation for question in questions if question.counts}
        if len(counted) < FEWEST_RELATIONS:
            return cls(n_folds)
        return cls(min(len(counted), MOST_RELATION_FOLDS), by_relation=True)

    def pairs(
        self, questions: Sequence[LabelledQuestion]
    ) -> list[tuple[Bool[np.ndarray, " question"], Bool[np.ndarray, " question"]]]:
        """(fitted, scored) masks of questions; every question that counts is scored once.

        A fold holds out a part of the relations, or else a part of the subjects and every other
        template of each relation; subjects only, where no relation has two templates. Questions
        about a subject of which no question counts are fitted on in every fold. Raises UserError
        for fewer subjects or relations than folds, or a fold without both classes to fit on.
        """
        asked = [question.question for question in questions]
        what = "relation" if self.by_relation else "subject"
        groups = np.array(groups_of(asked, what))
        counted = np.array([question.counts for question in questions])
        dealt = np.isin(groups, groups[counted])
        if len(set(groups[dealt])) < self.n_folds:
            raise UserError(
                f"{len(set(groups[dealt]))} {what}s cannot fill {self.n_folds} folds: "
                "give more facts, or fewer folds"
            )
        half = _template_halves(asked, counted)
        if self.by_relation:
            half = np.zeros_like(half)
        labels = np.array([question.label for question in questions])
        found, halves = [], np.unique(half[counted])
        places = np.flatnonzero(dealt)
        for _, left_out in model_selection.GroupKFold(self.n_folds).split(
            places, groups=groups[places]
        ):
            mask = np.zeros(len(questions), dtype=bool)
            mask[places[left_out]] = True
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

    def read_predictions(self) -> Float[np.ndarray, "token 3"] | None:
        """What the model expected at each token of the questions; None if it was not read."""
        if not self.store.predictions:
            return None
        return self.store.read_predictions(rows=self._rows[0]).numpy()

    def read_background_predictions(self) -> Float[np.ndarray, "background_token 3"] | None:
        """What the model expected at each token of the background; None if it was not read."""
        if not self.store.predictions or not self.background:
            return None
        return self.store.read_predictions(rows=self._rows[1]).numpy()

    @cached_property
    def relations(self) -> Int[np.ndarray, " question"]:
        """A number for the relation of each question."""
        names = [question.question.relation for question in self.questions]
        return np.unique(names, return_inverse=True)[1]

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
        return self._inside([question.object_tokens for question in self.questions])

    @cached_property
    def entities(self) -> Bool[Tensor, " token"]:
        """The subject's and the object's tokens."""
        return self.mentions | self._inside([part.subject_tokens for part in self.questions])

    def _inside(self, spans: Sequence[Span]) -> Bool[Tensor, " token"]:
        """The tokens in a span of each question."""
        of_tokens = torch.tensor(spans)[self.question_of]
        return (self._position >= of_tokens[:, 0]) & (self._position < of_tokens[:, 1])

    def tokens_of(self, questions: Bool[np.ndarray, " question"]) -> Bool[Tensor, " token"]:
        """The tokens of some questions."""
        return torch.from_numpy(questions)[self.question_of]

    def question_scores(self, tokens: Float[Tensor, " token"]) -> Float[np.ndarray, " question"]:
        """The highest token of each question; NaN where it was not scored."""
        return np.array([float(part.max()) for part in tokens.split(self.sizes)])
