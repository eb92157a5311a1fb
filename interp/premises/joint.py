"""Premises of several relations, asked and scored together.

A question keeps its relation's name, and its template is named ``relation/template``, so that
measures by template tell the relations apart.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.files.cells import name_key
from interp.lazy import pd
from interp.premises.questions import Part, Premises, Question, QuestionKind, Split
from interp.premises.relation import Fact, FilledQuestion

logger = logging.getLogger(__name__)

DEFAULT_MASK = "XXXX"
"""The neutral word that stands for an object in a masked run, unless a relation has its own."""


@dataclass(frozen=True, repr=False)
class JointPremises(Displayed):
    """The premises of several relations, each with its own facts, templates and sentences.

    Raises UserError for no relation, the same relation twice, or different parts of splits.
    """

    parts: tuple[Premises, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("no relation is left to ask about")
        if len(self._part_of) < len(self.parts):
            names = ", ".join(self.relations)
            raise UserError(f"a relation is named twice: {names}")
        if len({part.part for part in self.parts}) > 1:
            raise UserError("the relations' premises are different parts of splits")

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations' names."""
        return tuple(part.relation.name for part in self.parts)

    @cached_property
    def _part_of(self) -> dict[str, Premises]:
        return {part.relation.name: part for part in self.parts}

    def of(self, relation: str) -> Premises:
        """The premises of one relation. Raises UserError for one that is not there."""
        if relation not in self._part_of:
            raise UserError(f"no relation {relation!r} here; known: {', '.join(self.relations)}")
        return self._part_of[relation]

    def __len__(self) -> int:
        """How many questions there are."""
        return sum(len(part) for part in self.parts)

    def __repr__(self) -> str:
        return f"<JointPremises: {self._words}>"

    @property
    def _words(self) -> str:
        return f"{len(self)} questions of {len(self.parts)} relations: {', '.join(self.relations)}."

    @property
    def part(self) -> Part:
        """Which part of a split these premises are."""
        return self.parts[0].part

    @property
    def mask(self) -> str:
        """The relations' neutral word; the usual one where theirs differ."""
        masks = {part.mask for part in self.parts}
        return masks.pop() if len(masks) == 1 else DEFAULT_MASK

    @property
    def subjects(self) -> tuple[str, ...]:
        """``relation/subject`` of every fact: one name may be the subject of two relations."""
        return tuple(_joined(part, subject) for part in self.parts for subject in part.subjects)

    @property
    def templates(self) -> tuple[str, ...]:
        """``relation/template`` of every template."""
        return tuple(_joined(part, template) for part in self.parts for template in part.templates)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts, relation by relation."""
        return tuple(fact for part in self.parts for fact in part.facts)

    def questions(self) -> tuple[Question, ...]:
        """All questions, relation by relation."""
        return tuple(
            replace(question, template=_joined(part, question.template))
            for part in self.parts
            for question in part.questions()
        )

    def fill(self, question: Question, kind: QuestionKind) -> FilledQuestion:
        """The text of a question; see `Premises.fill`."""
        template = question.template.removeprefix(f"{question.relation}/")
        return self.of(question.relation).fill(replace(question, template=template), kind)

    def cloze(self, item: Question) -> str:
        """The opening of an answer, which the object completes as its next word."""
        return self.of(item.relation).cloze(item)

    def _shown(self) -> Shown:
        return Shown(self._words)


AnyPremises = Premises | JointPremises
"""Premises of one relation, or of several."""


def parts_of(premises: AnyPremises) -> tuple[Premises, ...]:
    """The premises of each relation."""
    return premises.parts if isinstance(premises, JointPremises) else (premises,)


@dataclass(frozen=True)
class JointSplit(Displayed):
    """The splits of several relations: their search parts together, and their held-out parts.

    Each relation is split by itself, so that a subject of two relations may be searched on in one
    and held out in the other. Such a fact is left out of the held-out part; the search parts stay.

    Attributes:
        splits: of each relation, with what is left of its held-out part.
        left_out: ``relation/subject`` of the held-out facts that were left out.
        shared: the same of those that stay, because their relation would have too few others.
    """

    splits: tuple[Split, ...]
    left_out: tuple[str, ...] = field(init=False, compare=False)
    shared: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        searched = {name_key(name) for split in self.splits for name in split.search.subjects}
        splits: list[Split] = []
        left_out: list[str] = []
        shared: list[str] = []
        for split in self.splits:
            apart = _held_out_apart(split, searched)
            kept = set(apart.held_out.subjects)
            whole = split.held_out
            left_out += [_joined(whole, name) for name in whole.subjects if name not in kept]
            shared += [_joined(whole, name) for name in kept if name_key(name) in searched]
            splits.append(apart)
        for what, value in (("splits", splits), ("left_out", left_out), ("shared", sorted(shared))):
            object.__setattr__(self, what, tuple(value))
        if self.left_out or self.shared:
            logger.info("%s", " ".join(self._overlap))

    @cached_property
    def search(self) -> JointPremises:
        """What a search may see of the relations."""
        return JointPremises(tuple(split.search for split in self.splits))

    @cached_property
    def held_out(self) -> JointPremises:
        """What a search did not see of the relations."""
        return JointPremises(tuple(split.held_out for split in self.splits))

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations' names."""
        return self.search.relations

    def of(self, relation: str) -> Split:
        """One relation's split. Raises UserError for one that is not there."""
        self.search.of(relation)
        return self.splits[self.relations.index(relation)]

    def _shown(self) -> Shown:
        rows = [
            (split.search.relation.name, len(split.search), len(split.held_out))
            for split in self.splits
        ]
        table = pd.DataFrame(rows, columns=["relation", "search", "held out"])
        what = "no template" if self.shared else "no subject and no template"
        words = [f"Questions of two parts, which share {what}.", *self._overlap]
        return Shown(" ".join(words), (table,))

    @property
    def _overlap(self) -> list[str]:
        """What became of held-out facts whose subject another relation searches on."""
        found = []
        if self.left_out:
            found.append(
                f"{len(self.left_out)} held-out facts are left out, because another relation "
                "searches on their subject."
            )
        if self.shared:
            found.append(
                f"{len(self.shared)} held-out facts stay whose subject another relation searches "
                "on: without them their relation would have too few."
            )
        return found


def _held_out_apart(split: Split, searched: Collection[str]) -> Split:
    """The split without held-out facts about these subjects; as it is if too few facts are left."""
    facts = split.held_out.facts
    kept = tuple(fact for fact in facts if name_key(fact.subject) not in searched)
    if len(kept) == len(facts):
        return split
    try:
        held_out = split.held_out.with_facts(kept).askable()
        held_out.questions()  # raises if no false object is left for a fact
    except UserError:
        return split
    return replace(split, held_out=held_out)


AnySplit = Split | JointSplit
"""A split of one relation, or of several."""


def _joined(part: Premises, name: str) -> str:
    return f"{part.relation.name}/{name}"
