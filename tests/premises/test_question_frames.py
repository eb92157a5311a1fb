"""Questions in further syntactic forms: what they say, where their parts stand, what is refused."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from interp.premises import FRAMES, Premises, Template, list_relations, load_premises, load_relation
from interp.premises.relation import names
from tests.premises.test_registry import YAML, write
from tests.premises.test_relation import capital

OWN_FRAMES = (
    Template("frame-why", "Why is {subject} the capital of {object}?"),
    Template("frame-statement", "{object} has the capital {subject}. Since when?"),
)


def premises_of(**changes) -> Premises:
    relation = capital(frames=OWN_FRAMES, **changes)
    return Premises(relation, relation.facts, relation.template_names)


def test_the_same_facts_in_frames_by_hand():
    premises = premises_of()
    framed = premises.in_frames()
    assert framed.templates == ("frame-why", "frame-statement")
    assert [framed.fill(question, "false").text for question in framed.questions()] == [
        "Why is Paris the capital of Italy?",
        "Italy has the capital Paris. Since when?",
        "Why is Rome the capital of France?",
        "France has the capital Rome. Since when?",
    ]
    false = {q.subject: q.false_object for q in premises.questions()}
    assert {q.subject: q.false_object for q in framed.questions()} == false
    assert premises.in_frames(["statement"]).templates == ("frame-statement",)


def test_frames_can_be_split_as_templates_are():
    split = load_premises("capitals", limit=30).in_frames().split(seed=1)
    assert not set(split.search.templates) & set(split.held_out.templates)
    assert not set(split.search.subjects) & set(split.held_out.subjects)


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        (OWN_FRAMES[:1], "at least 2 frames, or none"),
        ((*OWN_FRAMES, OWN_FRAMES[0]), "two questions are named 'frame-why'"),
        ((*OWN_FRAMES, Template("why", "{subject} {object}")), "unknown frame 'why'"),
        ((OWN_FRAMES[0], Template("frame-which", "{subject} {object} {size}")), "slot {size}"),
    ],
)
def test_frames_that_do_not_fit(frames, fault):
    with pytest.raises(UserError) as raised:
        capital(frames=frames)
    assert fault in str(raised.value)


def test_a_template_may_not_bear_the_name_of_a_frame():
    with pytest.raises(UserError, match="two questions are named 'frame-why'"):
        premises_of(
            templates=(OWN_FRAMES[0], Template("other", "{subject} {object}?")),
            search_templates=("other",),
        )


def test_frames_that_a_relation_does_not_have():
    with pytest.raises(UserError, match="'capitals' has no frames"):
        replace(premises_of(), relation=capital()).in_frames()
    with pytest.raises(UserError, match="'when'; known: why, statement"):
        premises_of().in_frames(["when"])
    with pytest.raises(UserError, match="no templates"):
        premises_of().in_frames([])


WITH_FRAMES = (
    YAML + 'frames:\n  why: "Why {object}, {subject}?"\n  which: "Which {subject} {object}?"\n'
)


def test_frames_of_ones_own_relation(tmp_path: Path):
    relation = load_relation(write(tmp_path, "subject,object\nAnn,balls\nBob,cars\n", WITH_FRAMES))
    assert relation.frame_names == ("why", "which")
    assert relation.frames[0].fill(relation.facts[0], "cars").object == (4, 8)


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("  which:", "  whither:", "unknown frame 'whither'; known: why, when, which"),
        ("{subject} {object}?", "{subject}?", "template 'frame-which' must hold {object} exactly"),
        ('  which: "', '  which: "{size}', "no such column"),
        ('"Why {object}, {subject}?"', "1", "frames must map each frame's name to its text"),
    ],
)
def test_faulty_frames(tmp_path: Path, before: str, after: str, fault: str):
    assert before in WITH_FRAMES
    yaml = WITH_FRAMES.replace(before, after)
    with pytest.raises(UserError) as raised:
        load_relation(write(tmp_path, "subject,object\nAnn,balls\nBob,cars\n", yaml))
    assert fault in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", list_relations())
def test_shipped_frames_differ_in_form(name):
    relation = load_relation(name)
    assert relation.frame_names == FRAMES
    texts = {frame.name.removeprefix("frame-"): frame.text for frame in relation.frames}
    assert not {template.text for template in relation.templates} & set(texts.values())
    for frame, opening in (("why", "Why "), ("when", "When "), ("which", "Which ")):
        assert texts[frame].startswith(opening)
    assert texts["tell_me"].startswith("Tell me ")
    assert texts["tell_me"].endswith(".")
    assert texts["statement"].count(". ") == 1
    assert not any(text.startswith("{subject}") for text in texts.values())
    first = [text for text in texts.values() if text.index("{object}") < text.index("{subject}")]
    assert 2 <= len(first) <= 4


@pytest.mark.parametrize("name", list_relations())
def test_shipped_frames_name_nothing_that_they_ask_about(name):
    relation = load_relation(name)
    asked = {fact.subject for fact in relation.facts} | {fact.object for fact in relation.facts}
    words = " / ".join(frame.text for frame in relation.frames)
    for slot in ("subject", "object", *relation.columns):
        words = words.replace(f"{{{slot}}}", "")
    assert not [text for text in asked if text in words and names(words, text)]


@cache
def shipped(name: str) -> Premises:
    return load_premises(name).in_frames()


@settings(max_examples=60)
@given(st.data())
def test_spans_of_shipped_frames(data):
    premises = shipped(data.draw(st.sampled_from(list_relations())))
    fact = data.draw(st.sampled_from(premises.facts))
    for frame in premises.relation.templates:
        filled = frame.fill(fact, "the {object} of a fact")
        assert filled.text[slice(*filled.subject)] == fact.subject
        assert filled.text[slice(*filled.object)] == "the {object} of a fact"
