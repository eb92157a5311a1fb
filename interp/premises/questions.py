"""False-premise questions, their true-premise twins and their masked versions, from facts.

Each fact gets one false object, the same for all its templates. Under the rule `another` it is
drawn from the objects of the given facts, each as often as it is true of a fact, so that the object
alone does not reveal the false premise. The draw uses hashes of (seed, subject, object): it depends
neither on the order of the facts nor on any other fact, except through the set of objects. Under
`previous_year` and `next_year` it is the true year less one or plus one, as in FAITH (arXiv
2402.19103).

Where a relation groups its objects (its column `near`), the draw can be kept to objects of the same
group as the true one, or to those of other groups.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from interp.arguments import check_choice, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.files.cells import name_key
from interp.lazy import pd
from interp.premises.draw import collides, shuffled
from interp.premises.registry import load_relation
from interp.premises.relation import (
    Distance,
    Fact,
    FilledQuestion,
    Relation,
    Template,
    frame_template,
    names,
    names_any,
)

QuestionKind = Literal["false", "twin", "masked"]
"""Which object a question is filled with: the false one, the true one, or the neutral mask."""

Part = Literal["all", "search", "held_out"]
"""Which part of a split these premises are."""

FalseObjectDistance = Literal["any", "near", "far"]
"""Which objects may be drawn as the false one: all, or those near to or far from the true one."""

_SHOWN_QUESTIONS = 6


@dataclass(frozen=True)
class Question:
    """One fact asked about through one template; `Premises.fill` makes it text."""

    subject: str
    true_object: str
    false_object: str
    template: str
    relation: str
    also_true: tuple[str, ...] = ()

    @property
    def true_names(self) -> tuple[str, ...]:
        """The true object and everything else that counts as the truth."""
        return (self.true_object, *self.also_true)

    def names_true(self, answer: str) -> bool:
        """Whether an answer names the true object, other than in a longer name of the subject."""
        return names_any(answer, self.true_names, apart_from=(self.subject,))

    def names_false(self, answer: str) -> bool:
        """The same for the false object."""
        return names(answer, self.false_object, apart_from=(self.subject,))


@dataclass(frozen=True, repr=False)
class Premises(Displayed):
    """Facts and templates of one relation: every fact through every template.

    `seed` and `distance` decide the false objects. Raises `UserError` when there is no fact or no
    template, a template is unknown, a subject occurs twice, or the relation has no groups of
    objects that a distance could mean.
    """

    relation: Relation
    facts: tuple[Fact, ...]
    templates: tuple[str, ...]
    seed: int = 0
    part: Part = "all"
    distance: FalseObjectDistance = "any"

    def __post_init__(self) -> None:
        if not self.facts:
            raise UserError(f"no facts of relation {self.relation.name!r} are left to ask about")
        if not self.templates:
            raise UserError(f"no templates of relation {self.relation.name!r} are chosen")
        for template in self.templates:
            self.relation.template(template)
        if len(set(self.templates)) < len(self.templates):
            raise UserError(f"a template is named twice: {', '.join(self.templates)}")
        if len(set(map(name_key, self.subjects))) < len(self.facts):
            raise UserError(f"a subject of relation {self.relation.name!r} occurs twice")
        check_choice("part", self.part, get_args(Part))
        check_choice("distance", self.distance, get_args(FalseObjectDistance))
        if self.distance != "any" and not self.relation.near:
            raise UserError(
                f"relation {self.relation.name!r} does not say which objects are near each other: "
                f"distance {self.distance!r} needs the key 'near' in its YAML file"
            )

    def __len__(self) -> int:
        """How many questions there are: facts times templates."""
        return len(self.facts) * len(self.templates)

    def __repr__(self) -> str:
        return f"<Premises: {self._words}>"

    @property
    def _words(self) -> str:
        return (
            f"{len(self.facts)} facts of {self.relation.name!r} × {len(self.templates)} templates "
            f"= {len(self)} questions; part: {self.part}."
        )

    @property
    def mask(self) -> str:
        """The neutral text that replaces the object in a masked run."""
        return self.relation.mask

    @property
    def subjects(self) -> tuple[str, ...]:
        """The facts' subjects, in order."""
        return tuple(fact.subject for fact in self.facts)

    @cached_property
    def _fact_of(self) -> dict[str, Fact]:
        return {fact.subject: fact for fact in self.facts}

    @cached_property
    def _object_counts(self) -> Counter[str]:
        return Counter(fact.object for fact in self.facts)

    def fact(self, subject: str) -> Fact:
        """The fact about `subject`; `UserError` when these premises have none."""
        if subject not in self._fact_of:
            raise UserError(f"these premises hold no fact about {subject!r}")
        return self._fact_of[subject]

    def questions(self) -> tuple[Question, ...]:
        """All questions: facts in order, and for each its templates in order."""
        name = self.relation.name
        return tuple(
            Question(fact.subject, fact.object, false_object, template, name, fact.also_true)
            for fact in self.facts
            for false_object in [self.false_object(fact)]
            for template in self.templates
        )

    def false_object(self, fact: Fact) -> str:
        """The wrong object that questions about `fact` presuppose.

        Raises `UserError` when no object is left to draw.
        """
        rule = self.relation.false_object
        if rule == "another":
            for name in shuffled(self.seed, fact.subject, self._object_counts):
                if self._may_be_drawn(name, fact):
                    return name
            raise UserError(
                f"no false object for {fact.subject!r}: all {len(self.facts)} facts of "
                f"{self.relation.name!r} have objects too like {fact.object!r}"
                f"{'' if self.distance == 'any' else f', or not {self.distance}'}; add facts"
            )
        year = str(int(fact.object) + (1 if rule == "next_year" else -1))
        if year in fact.also_true:
            raise UserError(
                f"no false object for {fact.subject!r}: {year} is also true of it; drop the fact"
            )
        return year

    def _may_be_drawn(self, name: str, fact: Fact) -> bool:
        in_reach = self.distance == "any" or self.relation.distance(fact, name) == self.distance
        return in_reach and not collides(name, fact)

    def distance_of(self, question: Question) -> Distance:
        """Whether the question's false object is near the true one; "" where that is unknown."""
        return self.relation.distance(self.fact(question.subject), question.false_object)

    def fill(self, question: Question, kind: QuestionKind) -> FilledQuestion:
        """The text of `question` with the false object, the true one (`twin`) or the mask."""
        objects = {
            "false": question.false_object,
            "twin": question.true_object,
            "masked": self.relation.mask,
        }
        template = self.relation.template(question.template)
        filling = objects[check_choice("kind of question", kind, objects)]
        return template.fill(self.fact(question.subject), filling)

    def cloze(self, item: Question | Fact) -> str:
        """The opening of an answer, which the object completes as its next word."""
        return self.relation.cloze_for(self.fact(item.subject))

    def direct(self, item: Question | Fact) -> str:
        """The question that asks for the object outright, for the knowledge check."""
        return self.relation.direct_for(self.fact(item.subject))

    def reverse(self, item: Question | Fact) -> str:
        """The question that names the true object and asks for the subject.

        Raises `UserError` where the relation has none.
        """
        return self.relation.reverse_for(self.fact(item.subject))

    def first(self, n: int) -> "Premises":
        """The first `n` facts; tables list the best-known subjects first where that is known."""
        if whole_number("the number of facts", n) < 1:
            raise UserError(f"cannot take the first {n} facts; ask for at least 1")
        return self.with_facts(self.facts[:n])

    def with_facts(self, facts: Iterable[Fact]) -> "Premises":
        """The same questions about other facts; false objects are drawn anew among these."""
        return replace(self, facts=tuple(facts))

    def with_templates(self, templates: Iterable[str]) -> "Premises":
        """The same facts through other templates; the false objects stay."""
        return replace(self, templates=tuple(templates))

    def askable(self) -> "Premises":
        """The facts for which an object at the wanted distance is left; with "any" all facts.

        Raises `UserError` when no fact is left.
        """
        if self.distance == "any":
            return self
        kept = tuple(
            fact
            for fact in self.facts
            if any(self._may_be_drawn(name, fact) for name in self._object_counts)
        )
        # A fact that is left out takes its object along, which others may have needed.
        return self if len(kept) == len(self.facts) else self.with_facts(kept).askable()

    def in_frames(self, names: Iterable[str] | None = None) -> "Premises":
        """The same facts and false objects, asked about through the relation's frames.

        `names` are some of `FRAMES`; by default all that the relation has. Raises `UserError` for a
        relation without frames, and for a frame that it does not have.
        """
        relation = self.relation
        if not relation.frames:
            raise UserError(
                f"relation {relation.name!r} has no frames; its YAML file may give some under the "
                "key 'frames'"
            )
        chosen = relation.frame_names if names is None else tuple(names)
        for name in chosen:
            check_choice(f"frame of relation {relation.name!r}", name, relation.frame_names)
        framed = self.rephrased(relation.frames)
        return framed.with_templates(frame_template(name) for name in chosen)

    def rephrased(self, templates: Iterable[Template]) -> "Premises":
        """The same facts and false objects through sentences in the place of the templates."""
        templates = tuple(templates)
        names = tuple(template.name for template in templates)
        relation = replace(
            self.relation, templates=templates, search_templates=names[: len(names) // 2], frames=()
        )
        return replace(self, relation=relation, templates=names)

    def split(
        self, *, seed: int = 0, fraction: float = 0.5, templates: tuple[str, ...] | None = None
    ) -> "Split":
        """Search and held-out parts that share no subject and no template: `split_premises`."""
        return split_premises(self, seed=seed, fraction=fraction, templates=templates)

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a question, with its text and the distance of its false object."""
        rows = [
            {
                "question": self.fill(question, "false").text,
                "subject": question.subject,
                "true_object": question.true_object,
                "false_object": question.false_object,
                "distance": self.distance_of(question),
                "template": question.template,
                "relation": question.relation,
            }
            for question in self.questions()
        ]
        return pd.DataFrame(rows)

    def _shown(self) -> Shown:
        # One question a fact: the templates take turns.
        asked = self.questions()
        chosen = [
            asked[row * len(self.templates) + row % len(self.templates)]
            for row in range(min(len(self.facts), _SHOWN_QUESTIONS))
        ]
        table = pd.DataFrame(
            {
                "false premise": [self.fill(question, "false").text for question in chosen],
                "true object": [question.true_object for question in chosen],
                "distance": [self.distance_of(question) for question in chosen],
                "template": [question.template for question in chosen],
            }
        )
        return Shown(self._words, (table,))


@checked
def load_premises(
    name_or_path: str | Path,
    *,
    seed: int = 0,
    limit: int | None = None,
    distance: FalseObjectDistance = "any",
) -> Premises:
    """All questions of a shipped relation, or of a user's CSV or YAML file.

    `limit` keeps the first so many facts. With the distance `near` or `far` the false object is of
    the true one's group or of another, and facts that then have none are left out. Raises
    `UserError` for an unknown name, a faulty file, or a distance in a relation without groups.
    """
    relation = load_relation(name_or_path)
    premises = Premises(relation, relation.facts, relation.template_names, seed, distance=distance)
    return (premises if limit is None else premises.first(limit)).askable()


@dataclass(frozen=True)
class Split(Displayed):
    """Two sets of premises; `UserError` when they share a subject or a template."""

    search: Premises
    held_out: Premises

    def __post_init__(self) -> None:
        for what, ours, theirs in (
            ("subject", self.search.subjects, self.held_out.subjects),
            ("template", self.search.templates, self.held_out.templates),
        ):
            known = set(map(name_key, theirs))
            if shared := sorted(name for name in ours if name_key(name) in known):
                raise UserError(f"search and held-out premises share the {what} {shared[0]!r}")

    def _shown(self) -> Shown:
        rows = [
            (name, len(part.facts), ", ".join(part.templates), len(part))
            for name, part in (("search", self.search), ("held out", self.held_out))
        ]
        table = pd.DataFrame(rows, columns=["part", "facts", "templates", "questions"])
        return Shown("Two parts that share no subject and no template.", (table,))


@checked
def split_premises(
    premises: Premises,
    *,
    seed: int = 0,
    fraction: float = 0.5,
    templates: tuple[str, ...] | None = None,
) -> Split:
    """Split by subject and by template.

    The search part is a random `fraction` of the subjects, asked about through `templates`, by
    default the relation's search templates; the held-out part is the other subjects through the
    other templates. Each part draws its false objects among its own facts; with a distance, facts
    are left out that have none in their part. Raises `UserError` when a part would have no
    template, or too few facts for a false object.
    """
    if not 0 < fraction < 1:
        raise UserError(f"fraction must lie between 0 and 1, got {fraction}")
    if premises.part != "all":
        raise UserError(f"these premises are the {premises.part} part of a split already")
    seen = _seen_templates(premises, templates)
    unseen = tuple(name for name in premises.templates if name not in seen)
    if not seen or not unseen:
        raise UserError(
            f"cannot split by template: {len(seen)} of the templates "
            f"{', '.join(premises.templates)} for search, {len(unseen)} held out; need both"
        )
    chosen = _chosen_subjects(premises.subjects, seed, fraction)
    searched = tuple(fact for fact in premises.facts if fact.subject in chosen)
    others = tuple(fact for fact in premises.facts if fact.subject not in chosen)
    search = replace(premises, facts=searched, templates=seen, part="search").askable()
    held_out = replace(premises, facts=others, templates=unseen, part="held_out").askable()
    for part in (search, held_out):
        part.questions()  # raises here, not in the middle of a run, if there are too few objects
    return Split(search, held_out)


def _seen_templates(premises: Premises, templates: tuple[str, ...] | None) -> tuple[str, ...]:
    if templates is None:
        wanted = premises.relation.search_templates
        return tuple(name for name in premises.templates if name in wanted)
    for name in templates:
        check_choice("template", name, premises.templates)
    return templates


def _chosen_subjects(subjects: tuple[str, ...], seed: int, fraction: float) -> frozenset[str]:
    """A random `fraction` of the subjects, whatever their order, at least one on either side."""
    if len(subjects) < 2:
        raise UserError(f"cannot split {len(subjects)} fact by subject; need at least 2")
    size = min(max(round(fraction * len(subjects)), 1), len(subjects) - 1)
    shuffled = sorted(
        subjects, key=lambda subject: hashlib.sha256(f"{seed}\0{subject}".encode()).digest()
    )
    return frozenset(shuffled[:size])
