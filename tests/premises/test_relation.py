"""Facts, templates and relations: spans that follow from the slots, and faults that are named."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.premises import Fact, FilledQuestion, Relation, Template

NAMES = st.one_of(
    st.text(min_size=1).filter(lambda text: text.strip() != ""),
    st.sampled_from(
        ["{subject}", "{object}", "{}", "{0}", "%s", "}{", "Zürich", "東京", "a", "of"]
    ),
)
TEMPLATES = st.builds(
    lambda parts, slots: parts[0] + slots[0] + parts[1] + slots[1] + parts[2],
    st.lists(st.text(st.characters(exclude_characters="{}")), min_size=3, max_size=3),
    st.permutations(["{subject}", "{object}"]),
)


def capital(**changes: Any) -> Relation:
    relation = Relation(
        name="capitals",
        description="",
        subject_kind="city",
        object_kind="country",
        templates=(
            Template("why", "Why is {subject} the capital of {object}?"),
            Template("how", "How did {object} choose {subject}?"),
        ),
        search_templates=("why",),
        cloze="{subject} is the capital of",
        direct="Which country is {subject} the capital of?",
        facts=(Fact("Paris", "France"), Fact("Rome", "Italy")),
    )
    return replace(relation, **changes)


def test_fill_by_hand():
    filled = Template("why", "Why is {subject} the capital of {object}?").fill(
        Fact("Paris", "France"), "Germany"
    )
    assert filled == FilledQuestion("Why is Paris the capital of Germany?", (7, 12), (28, 35))


def test_object_first_and_name_repeated_in_the_text():
    template = Template("t", "Is Rome in {object} {object_note} or is {subject} Rome?")
    fact = Fact("Rome", "Italy", fields=(("object_note", "Rome"),))
    filled = template.fill(fact, "Rome")
    assert filled.text == "Is Rome in Rome Rome or is Rome Rome?"
    assert filled.object == (11, 15)
    assert filled.subject == (27, 31)


def test_object_that_is_a_prefix_of_the_subject():
    filled = Template("t", "{object}{subject}").fill(Fact("Niger", "x"), "Nigeria")
    assert (filled.object, filled.subject) == ((0, 7), (7, 12))


@given(TEMPLATES, NAMES, NAMES)
def test_spans_hold_exactly_what_was_filled_in(text, subject, object_):
    filled = Template("t", text).fill(Fact(subject, "true"), object_)
    assert filled.text[slice(*filled.subject)] == subject
    assert filled.text[slice(*filled.object)] == object_
    literal = len(text) - len("{subject}") - len("{object}")
    assert len(filled.text) == literal + len(subject) + len(object_)
    # The rest of the text is the template's own, untouched by what was filled in.
    later, earlier = sorted((filled.subject, filled.object), reverse=True)
    rest = filled.text[: later[0]] + filled.text[later[1] :]
    rest = rest[: earlier[0]] + rest[earlier[1] :]
    assert rest == text.replace("{subject}", "").replace("{object}", "")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Why is it the capital of {object}?", "{subject} exactly once, found 0"),
        ("Why is {subject} the capital?", "{object} exactly once, found 0"),
        ("{subject} {subject} {object}", "{subject} exactly once, found 2"),
        ("{subject} {object} {", "belongs to no slot"),
        ("{subject} {object} {not a slot}", "belongs to no slot"),
    ],
)
def test_template_without_its_slots(text, fault):
    with pytest.raises(UserError) as raised:
        Template("why", text)
    assert fault in str(raised.value)
    assert "'why'" in str(raised.value)


def test_columns_are_slots():
    template = Template("what", "What did {subject} get the {prize} of {object} for?")
    assert template.columns == ("prize",)
    fact = Fact("Bohr", "1922", fields=(("prize", "Nobel {Prize}"),))
    assert template.fill(fact, "1923").text == "What did Bohr get the Nobel {Prize} of 1923 for?"
    with pytest.raises(UserError, match=r"uses the slot \{prize\}"):
        template.fill(Fact("Bohr", "1922"), "1923")


def test_cloze_direct_and_reverse():
    relation = capital(reverse="Which city is the capital of {object}?")
    assert relation.reverse_for(relation.facts[1]) == "Which city is the capital of Italy?"
    assert relation.cloze_for(Fact("{object}", "x")) == "{object} is the capital of"
    assert relation.direct_for(relation.facts[1]) == "Which country is Rome the capital of?"


def test_no_reverse_question():
    relation = capital()
    with pytest.raises(UserError, match="has no reverse question"):
        relation.reverse_for(relation.facts[0])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"name": "My Capitals"}, "lower-case"),
        ({"name": "../capitals"}, "lower-case"),
        ({"templates": (Template("why", "{subject} {object}"),)}, "at least 2 templates"),
        ({"search_templates": ("who",)}, "'who', which is no template; known: why, how"),
        ({"search_templates": ()}, "at least one"),
        ({"search_templates": ("why", "how")}, "held out"),
        ({"cloze": "It is the capital of"}, "cloze must hold {subject} exactly once"),
        ({"cloze": "{subject} in {object}"}, "cloze must not hold {object}"),
        ({"direct": "Which country?"}, "direct must hold {subject}"),
        ({"direct": "Is {subject} in {continent}?"}, "slot {continent}"),
        ({"reverse": "Which city?"}, "reverse must hold {object}"),
        ({"reverse": "Is {subject} in {object}?"}, "reverse must not hold {subject}"),
        ({"reverse": "Is {object} in {continent}?"}, "slot {continent}"),
        ({"mask": " "}, "mask is empty"),
        ({"false_object": "next_year"}, "'France' is not a year"),
        ({"facts": ()}, "at least one fact"),
        ({"facts": (Fact("Paris", "France"), Fact("paris", "Texas"))}, "'paris' occurs twice"),
        ({"facts": (Fact("Nîmes", "a"), Fact("Ni\u0302mes", "b"))}, "'nîmes' occurs twice"),
        ({"facts": (Fact("New York", "a"), Fact("New\u00a0York", "b"))}, "'new york' occurs twice"),
    ],
)
def test_parts_that_do_not_fit(changes, fault):
    with pytest.raises(UserError) as raised:
        capital(**changes)
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


def test_template_named_twice():
    with pytest.raises(UserError, match="two templates are named 'a'"):
        capital(
            templates=(Template("a", "{subject} {object}"), Template("a", "{object} {subject}")),
            search_templates=("a",),
        )


def test_unknown_template_lists_the_known():
    with pytest.raises(UserError, match="no template 'who'; known: why, how"):
        capital().template("who")


def test_a_fact_needs_both_ends():
    with pytest.raises(UserError, match="needs a subject and an object"):
        Fact("Paris", " ")


def test_true_names():
    assert Fact("Bern", "Switzerland", ("Helvetia",)).true_names == ("Switzerland", "Helvetia")


@pytest.mark.parametrize(("cells", "lacks"), [((), "no such column"), ((("place", " "),), "empty")])
def test_a_slot_without_its_cell_is_told(cells: Any, lacks: str) -> None:
    facts = tuple(
        Fact(f"s{number}", f"o{number}", fields=(("place", "there"),) if number else cells)
        for number in range(3)
    )
    with pytest.raises(UserError, match=rf"slot \{{place\}}.*'s0' has .*{lacks}"):
        Relation(
            name="r",
            description="d",
            subject_kind="s",
            object_kind="o",
            templates=(
                Template("a", "Why is {subject} in {place} of {object}?"),
                Template("b", "When was {subject} of {object}?"),
            ),
            search_templates=("a",),
            cloze="{subject} is of",
            direct="What is {subject} of?",
            facts=facts,
        )


@pytest.mark.parametrize("again", ["{subject} of {object}?", " {subject}  of {object}?\u200b"])
def test_one_text_under_two_names_would_be_searched_on_and_held_out(again: str) -> None:
    with pytest.raises(
        UserError, match="templates 'a' and 'b' have the same text; leave one"
    ) as no:
        capital(
            templates=(Template("a", "{subject} of {object}?"), Template("b", again)),
            search_templates=("a",),
        )
    assert "\n" not in str(no.value)
