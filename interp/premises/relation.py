"""A relation: facts, and the sentences that ask about them.

A *fact* is one known triple (subject, relation, object). A *template* is a question with one slot
for the subject and one for the object; filled with an object that is not the fact's own it becomes
a false-premise question (FAITH, arXiv 2402.19103), filled with the true one its true-premise twin.
A *cloze* opens the answer with a sentence that the object completes, so that one next-token
distribution tells knowledge from hallucination. A *direct* question asks for the object itself, a
*reverse* question names the object and asks for the subject. A *frame* is a further question in one
of the syntactic forms of `FRAMES`, to test on.

Filling returns character spans `[start, end)` that follow from the positions of the slots; the text
is not searched for names, because names repeat, contain each other, and may contain braces.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, get_args

from interp.arguments import check_choice, of_kind, texts
from interp.checked import checked
from interp.errors import UserError
from interp.files.cells import name_key
from interp.whole_words import mentions

FalseObjectRule = Literal["another", "previous_year", "next_year"]
"""How a fact's false object is found: another fact's object, or the year before or after."""

Distance = Literal["near", "far", ""]
"""Whether an object is of the same group as a fact's own; empty where no group is known."""

FRAMES = (
    "why",
    "when",
    "which",
    "tell_me",
    "yes_no",
    "statement",
    "clause",
    "two_entities",
)
"""The forms of question that a relation may offer beside its templates.

A question that begins with why, when or which; a request; a yes/no question; a statement before the
question; the premise in a subordinate clause; the premise beside another entity.
"""

FRAME_PREFIX = "frame-"
"""Begins the name of a frame where it stands beside the names of templates."""

Span = tuple[int, int]
"""Characters `[start, end)` of a text."""

_SLOT = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_RELATION_NAME = re.compile(r"[a-z0-9_-]+")
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Fact:
    """One known triple.

    `also_true` lists further right answers and other names of the object: they are never drawn as
    the false object, and count as the truth when an answer names them. `fields` are the remaining
    columns of the fact's row as (column, value) pairs, which templates may use as slots.
    """

    subject: str
    object: str
    also_true: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("subject", "object"):
            of_kind(name, getattr(self, name), str)
        object.__setattr__(self, "also_true", texts("also_true", self.also_true))
        if not self.subject.strip() or not self.object.strip():
            raise UserError(
                f"a fact needs a subject and an object, got {self.subject!r} and {self.object!r}"
            )

    @property
    def true_names(self) -> tuple[str, ...]:
        """The object and everything else that counts as the truth."""
        return (self.object, *self.also_true)


@dataclass(frozen=True)
class FilledQuestion:
    """A question's text, and where its subject and its object stand in it, in characters."""

    text: str
    subject: Span
    object: Span


@dataclass(frozen=True)
class Template:
    """A question with the slots {subject} and {object}, each exactly once.

    Further slots name columns of the facts' table. Raises `UserError` when a slot is missing,
    repeated, or a brace belongs to no slot.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        if not _TEMPLATE_NAME.fullmatch(self.name):
            raise UserError(
                f"template name {self.name!r} may hold only letters, digits, '_' and '-'"
            )
        _check_slots(f"template {self.name!r}", self.text, once=("subject", "object"))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template uses besides subject and object."""
        return _columns(self.text)

    def fill(self, fact: Fact, object: str) -> FilledQuestion:
        """The question about `fact` that presupposes `object`, with both character spans."""
        text, spans = _render(self.text, _values(fact, object=object))
        return FilledQuestion(text, spans["subject"], spans["object"])


@dataclass(frozen=True)
class Relation:
    """Facts of one kind, with the templates, cloze and direct question that fit them.

    `search_templates` are the ones that a search for heads may see; the others are held out. `mask`
    is the neutral text that replaces the false object in a masked run. `frames` are further
    questions in the forms of `FRAMES`; `near` names the column with the group of a fact's object;
    `reverse`, where there is one, is an honest question that names no subject. Raises `UserError`
    when the parts do not fit together.
    """

    name: str
    description: str
    subject_kind: str
    object_kind: str
    templates: tuple[Template, ...]
    search_templates: tuple[str, ...]
    cloze: str
    direct: str
    facts: tuple[Fact, ...]
    false_object: FalseObjectRule = "another"
    mask: str = "XXXX"
    source: str = ""
    licence: str = ""
    url: str = ""
    frames: tuple[Template, ...] = ()
    near: str = ""
    reverse: str = ""

    def __post_init__(self) -> None:
        if not _RELATION_NAME.fullmatch(self.name):
            raise UserError(
                f"relation name {self.name!r} may hold only lower-case letters, digits, '_' and '-'"
            )
        check_rule(self.false_object)
        if not self.mask.strip():
            raise UserError("mask is empty; give a neutral text such as 'XXXX'")
        if self.near and self.false_object != "another":
            raise UserError(f"near needs false_object 'another', got {self.false_object!r}")
        self._check_templates()
        self._check_frames()
        _check_slots("cloze", self.cloze, once=("subject",), never=("object",))
        _check_slots("direct", self.direct, once=("subject",), never=("object",))
        if self.reverse:
            _check_slots("reverse", self.reverse, once=("object",), never=("subject",))
        self._check_facts()

    def _check_templates(self) -> None:
        names = self.template_names
        if len(names) < 2:
            raise UserError(f"a relation needs at least 2 templates, got {len(names)}")
        if repeated := _first_repeated(names):
            raise UserError(f"two templates are named {repeated!r}; give each its own name")
        self._check_texts_differ()
        if unknown := [name for name in self.search_templates if name not in names]:
            raise UserError(
                f"search_templates names {unknown[0]!r}, which is no template; "
                f"known: {', '.join(names)}"
            )
        if not 0 < len(set(self.search_templates)) < len(names):
            raise UserError(
                "search_templates must name at least one template and leave at least one held out"
            )

    def _check_texts_differ(self) -> None:
        """One sentence under two names could be searched on and held out."""
        first: dict[str, str] = {}
        for template in self.templates:
            before = first.setdefault(name_key(template.text), template.name)
            if before != template.name:
                raise UserError(
                    f"the templates {before!r} and {template.name!r} have the same text; "
                    "leave one of them out"
                )

    def _check_frames(self) -> None:
        names = [frame.name for frame in self.frames]
        for name in names:
            check_choice("frame", name, [frame_template(frame) for frame in FRAMES])
        if repeated := _first_repeated([*self.template_names, *names]):
            raise UserError(f"two questions are named {repeated!r}; give each its own name")
        if len(names) == 1:
            raise UserError("a relation needs at least 2 frames, or none, got 1")

    def _check_facts(self) -> None:
        if not self.facts:
            raise UserError("a relation needs at least one fact")
        if repeated := _first_repeated([name_key(fact.subject) for fact in self.facts]):
            raise UserError(f"subject {repeated!r} occurs twice; keep one row for each subject")
        for fact in self.facts:
            present = {column for column, _ in fact.fields}
            filled = {column for column, cell in fact.fields if cell.strip()}
            if missing := [column for column in self.columns if column not in filled]:
                lacks = "an empty cell there" if missing[0] in present else "no such column"
                raise UserError(
                    f"a template uses the slot {{{missing[0]}}}, but the fact about "
                    f"{fact.subject!r} has {lacks}"
                )
            if self.near and self.near not in present:
                raise UserError(
                    f"near names the column {self.near!r}, which the fact about "
                    f"{fact.subject!r} does not have"
                )
            if self.false_object != "another" and not is_year(fact.object):
                raise UserError(not_a_year(fact.object, self.false_object))

    @property
    def template_names(self) -> tuple[str, ...]:
        """The names of all templates, in their order."""
        return tuple(template.name for template in self.templates)

    @property
    def frame_names(self) -> tuple[str, ...]:
        """The names of all frames as `FRAMES` has them, in their order."""
        return tuple(frame.name.removeprefix(FRAME_PREFIX) for frame in self.frames)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns besides subject and object that any of the sentences uses."""
        questions = (*self.templates, *self.frames)
        texts = [question.text for question in questions] + [self.cloze, self.direct, self.reverse]
        return tuple(dict.fromkeys(column for text in texts for column in _columns(text)))

    def group(self, fact: Fact) -> str:
        """The group of the fact's object, from the column `near`; empty where none is given.

        Groups that differ only in case or white space are one, so that this is only to compare.
        """
        return name_key(dict(fact.fields).get(self.near, ""))

    @cached_property
    def _groups(self) -> dict[str, set[str]]:
        """For each object the groups that it has in any fact, such as a currency's continents."""
        groups: dict[str, set[str]] = {}
        for fact in self.facts:
            groups.setdefault(fact.object, set()).add(self.group(fact))
        return groups

    def distance(self, fact: Fact, object: str) -> Distance:
        """Whether another object shares the group of the fact's own in any fact of the relation."""
        own_group, groups = self.group(fact), self._groups.get(object, set())
        if not own_group or not groups - {""}:
            return ""
        return "near" if own_group in groups else "far"

    def template(self, name: str) -> Template:
        """The template of that name. Raises `UserError` for an unknown one, listing the known."""
        for template in self.templates:
            if template.name == name:
                return template
        known = ", ".join(self.template_names)
        raise UserError(f"relation {self.name!r} has no template {name!r}; known: {known}")

    def cloze_for(self, fact: Fact) -> str:
        """The opening of an answer about `fact`, which its object completes."""
        return _render(self.cloze, _values(fact))[0]

    def direct_for(self, fact: Fact) -> str:
        """The question that asks for the object of `fact` outright."""
        return _render(self.direct, _values(fact))[0]

    def reverse_for(self, fact: Fact) -> str:
        """The question that names the object of `fact` and asks for its subject.

        Raises `UserError` where the relation has none.
        """
        if not self.reverse:
            raise UserError(f"relation {self.name!r} has no reverse question")
        return _render(self.reverse, _values(fact, object=fact.object))[0]


def frame_template(frame: str) -> str:
    """The name of the template that asks in that frame."""
    return FRAME_PREFIX + frame


def check_rule(rule: str) -> None:
    """Raise `UserError` unless `rule` is a `FalseObjectRule`."""
    check_choice("false_object", rule, get_args(FalseObjectRule))


@checked
def names(text: str, name: str, *, apart_from: Iterable[str] = ()) -> bool:
    """Whether a text contains a name as whole words (`interp.whole_words`), in whatever case.

    Accents make no difference: "Sao Paulo" names São Paulo. A part of a name in ``apart_from`` is
    no name: an answer about Mexico City does not name Mexico by that.
    """
    return bool(mentions(text, name, apart_from=apart_from))


@checked
def names_any(text: str, all_names: Iterable[str], *, apart_from: Iterable[str] = ()) -> bool:
    """Whether ``text`` contains any of the names as whole words; see `names`."""
    return any(names(text, name, apart_from=apart_from) for name in all_names)


def is_year(text: str) -> bool:
    """Whether `text` is a plain whole number that a neighbouring year can be made from."""
    return text.isascii() and text.isdigit() and len(text) <= 4 and int(text) > 0


def not_a_year(text: str, rule: str) -> str:
    """The message for an object that `false_object: previous_year` or `next_year` cannot use."""
    return f"object {text!r} is not a year, which false_object {rule!r} needs"


@lru_cache(maxsize=1024)
def _pieces(text: str) -> tuple[str, ...]:
    """Literal text and slot names in turn, beginning and ending with literal text."""
    return tuple(_SLOT.split(text))


def _columns(text: str) -> tuple[str, ...]:
    return tuple(slot for slot in _pieces(text)[1::2] if slot not in ("subject", "object"))


def _values(fact: Fact, **slots: str) -> dict[str, str]:
    return {**dict(fact.fields), "subject": fact.subject, **slots}


def _render(text: str, values: Mapping[str, str]) -> tuple[str, dict[str, Span]]:
    """The filled text, and each slot's span in it.

    Slots are filled piece by piece rather than with str.format, so that a brace in a name stays a
    brace.
    """
    filled, spans = "", {}
    for index, piece in enumerate(_pieces(text)):
        if index % 2 == 0:
            filled += piece
            continue
        if piece not in values:
            raise UserError(f"{text!r} uses the slot {{{piece}}}, which the fact does not have")
        spans[piece] = (len(filled), len(filled) + len(values[piece]))
        filled += values[piece]
    return filled, spans


def _check_slots(
    what: str, text: str, *, once: tuple[str, ...], never: tuple[str, ...] = ()
) -> None:
    pieces = _pieces(text)
    if any(brace in literal for literal in pieces[0::2] for brace in "{}"):
        raise UserError(f"{what} has a brace that belongs to no slot: {text!r}")
    counts = Counter(pieces[1::2])
    for slot in once:
        if counts[slot] != 1:
            raise UserError(
                f"{what} must hold {{{slot}}} exactly once, found {counts[slot]}: {text!r}"
            )
    for slot in never:
        if counts[slot]:
            raise UserError(f"{what} must not hold {{{slot}}}: {text!r}")


def _first_repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
