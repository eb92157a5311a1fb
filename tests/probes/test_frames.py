"""The same premises in other words: what they say, where their parts stand, what they count for."""

from collections import Counter

import numpy as np
import pytest

from interp.premises import list_relations, load_premises
from interp.premises.questions import QuestionKind
from probes.detector.balance import balanced_questions
from probes.detector.dataset import Folds
from probes.detector.paraphrases import FRAMES, framed
from probes.detector.train import DEALS, FEW_FACTS, labelled_questions


def test_a_statement_by_hand() -> None:
    premises = framed(load_premises("capitals", limit=12))
    fact = premises.facts[0]
    texts = [
        premises.relation.template(name).fill(fact, "Peru").text for name in premises.templates
    ]
    assert texts[0] == f"{fact.subject} is the capital of Peru."
    assert texts[1] == f"Explain why {fact.subject} is the capital of Peru."
    assert len(texts) == len(FRAMES)


def test_a_statement_begins_with_a_capital() -> None:
    premises = framed(load_premises("currencies", limit=12))
    text = premises.relation.template("frame-1").fill(premises.facts[0], "yen").text
    assert text.startswith("Prices in the shops of")
    assert text.endswith("the yen.")


@pytest.mark.parametrize("name", list_relations())
def test_spans_hold_subject_and_object(name: str) -> None:
    premises = framed(load_premises(name, limit=8))
    for question in premises.questions():
        pairs: tuple[tuple[QuestionKind, str], ...] = (
            ("false", question.false_object),
            ("twin", question.true_object),
        )
        for kind, wanted in pairs:
            filled = premises.fill(question, kind)
            assert filled.text[slice(*filled.subject)] == question.subject
            assert filled.text[slice(*filled.object)] == wanted


def test_the_false_objects_are_the_questions_own() -> None:
    premises = load_premises("capitals", limit=12)
    own = {one.subject: one.false_object for one in balanced_questions(premises, seed=3)}
    assert all(
        one.false_object == own[one.subject] for one in balanced_questions(framed(premises), seed=3)
    )


def test_frames_are_fitted_on_in_every_fold_and_scored_in_none(tiny_llama) -> None:
    questions = labelled_questions(tiny_llama, [load_premises("capitals", limit=12)])
    counts = np.array([one.counts for one in questions])
    assert 0 < counts.sum() < len(counts)
    templates = np.array([one.question.template for one in questions])
    frames = np.isin(templates, [f"frame-{number}" for number in range(1, len(FRAMES) + 1)])
    assert len(set(templates[frames])) == len(FRAMES)
    assert not (frames & counts).any()
    subjects = np.array([one.question.subject for one in questions])
    scored_at_all = np.zeros(len(questions), dtype=int)
    for fitted, scored in Folds(4).pairs(questions):
        assert not (scored & ~counts).any()
        assert not set(subjects[fitted]) & set(subjects[scored])
        others = ~np.isin(subjects, subjects[scored])
        assert fitted[others & frames].all()
        assert not set(templates[fitted]) & set(templates[scored])
        scored_at_all += scored
    assert (scored_at_all == counts).all()


def test_further_false_objects_are_as_balanced_and_not_counted(tiny_llama) -> None:
    premises = load_premises("capitals", limit=12)
    questions = labelled_questions(tiny_llama, [premises])
    of_one = [one for one in questions if one.question.template == "why"]
    twins = [one for one in of_one if not one.label]
    assert len(twins) == len(premises.facts)
    false = [one.question.false_object for one in of_one if one.label]
    assert Counter(false) == dict.fromkeys((one.object for one in premises.facts), DEALS)
    assert sum(one.counts for one in of_one) == 2 * len(twins)


def test_many_facts_are_asked_about_in_templates_and_frames(tiny_llama, monkeypatch) -> None:
    monkeypatch.setattr("probes.detector.train.FEW_FACTS", 11)
    premises = load_premises("capitals", limit=12)
    assert len(premises.facts) <= FEW_FACTS
    questions = labelled_questions(tiny_llama, [premises])
    frames = premises.in_frames()
    assert len(questions) == 2 * (len(premises) + len(frames))
    templates = Counter(one.question.template for one in questions)
    assert templates == dict.fromkeys((*premises.templates, *frames.templates), 24)
    # Nothing is chosen by questions that name another entity beside the premise.
    apart = {one.question.template for one in questions if not one.counts}
    assert apart == {"frame-two_entities"}
    few = labelled_questions(tiny_llama, [premises], n_questions=96)
    assert len(few) == 96 + 24
