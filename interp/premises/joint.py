"""Premises of several relations, asked and scored together.

A question keeps its relation's name, and its template is named ``relation/template``, so that
measures by template tell the relations apart.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.lazy import pd
from interp.premises.questions import Part, Premises, Question, QuestionKind, Split
from interp.premises.relation import Fact, FilledQuestion

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
    """The splits of several relations: their search parts together, and their held-out parts."""

    splits: tuple[Split, ...]

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
        return Shown("Questions of two parts, which share no subject and no template.", (table,))


AnySplit = Split | JointSplit
"""A split of one relation, or of several."""


def _joined(part: Premises, name: str) -> str:
    return f"{part.relation.name}/{name}"
