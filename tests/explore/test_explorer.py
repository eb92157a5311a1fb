"""Exploring without a page: on a model of which it is known what every head does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import interp
from interp.errors import UserError
from interp.explore import Explorer, open_model, open_run
from interp.explore.explorer import heads_text, read_heads_text
from interp.heads import HeadSet, load_effects
from interp.interventions import Constraint, Detection
from interp.interventions.head_constraint import Mode
from interp.models import HookedModel
from probes.detector.questions import tokenize_question as read_question

QUESTION = "Why is city3 the capital of land5?"
READER = HeadSet(((1, 2),), "attention")
"""The planted head that copies the false object into the answer."""


class Finder:
    """A detector that takes ``land5`` to be false, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def detect(
        self, model: Any, questions: Sequence[str], *, system: Any = None, progress: bool = True
    ) -> tuple[Detection, ...]:
        self.asked += 1
        return tuple(self._one(model, text) for text in questions)

    def _one(self, model: Any, text: str) -> Detection:
        start = text.find("land5")
        if start < 0:
            return Detection(False, 0.125)
        chars = (start, start + len("land5"))
        return Detection(True, 0.875, chars, read_question(model.tokenizer, text).tokens_at(chars))


@pytest.fixture
def explorer(planted: HookedModel, planted_run: Path) -> Explorer:
    found = open_run(planted_run, model=planted, detector=Finder())
    found.max_new_tokens = 2
    return found


def test_the_constraint_turns_the_answer_round(explorer: Explorer) -> None:
    answers = explorer.ask(QUESTION, Constraint(READER))
    assert answers.false_object == "land5"
    assert answers.true_object == "land3"
    assert answers.baseline.text.split()[0] == "land5"
    assert answers.constrained.text.split()[0] == "land3"
    assert answers.verdict(answers.baseline) == "names the false object"
    assert answers.verdict(answers.constrained) == "names the true object"
    assert answers.note == (
        "“land5”, found by the detector (probability 0.88). Constrained there: attention, zero, "
        "1 head."
    )
    assert [(p.text, p.role) for p in answers.question_pieces()] == [
        ("Why is city3 the capital of ", ""),
        ("land5", "object"),
        ("?", ""),
    ]
    assert {piece.role for piece in answers.answer_pieces(answers.constrained)} >= {"true"}
    assert min(answers.baseline.seconds, answers.constrained.seconds) > 0


@pytest.mark.parametrize("mode", ["zero", "scale", "resample"])
def test_answers_are_those_of_generate(
    explorer: Explorer, planted: HookedModel, mode: Mode
) -> None:
    constraint = Constraint(explorer.top("output", 2), mode, -1.0 if mode == "scale" else 0.0)
    answers = explorer.ask(QUESTION, constraint, words="land5")
    said = interp.generate(
        planted, QUESTION, heads=constraint, false_object="land5", max_new_tokens=2
    )
    assert answers.constrained.text == said
    assert answers.found.found_by == "you"
    assert "named by you" in answers.note


def test_other_heads_leave_the_answer_as_it_is(explorer: Explorer) -> None:
    noise = explorer.choose("attention", [(2, 0), (2, 1)])
    answers = explorer.ask(QUESTION, Constraint(noise))
    assert answers.acted
    assert answers.constrained.text.split()[0] == "land5"


def test_mode_mean_takes_its_mean_over_the_search_part(explorer: Explorer) -> None:
    assert "mean" in explorer.modes("output")
    heads = explorer.choose("output", [(0, 1)])
    answers = explorer.ask(QUESTION, Constraint(heads, "mean"))
    assert answers.constrained.text.split()[0] == "land3"
    explorer.split = None
    assert explorer.modes("output") == ("zero", "resample", "scale")


def test_without_a_detection_nothing_is_asked_again(explorer: Explorer) -> None:
    answers = explorer.ask("Why is city3 the capital of land3?", Constraint(READER))
    assert answers.constrained is answers.baseline
    assert not answers.acted
    assert answers.note.startswith("The detector finds no false premise (probability 0.12)")
    assert answers.false_object == ""


def test_without_heads_the_answer_stays(explorer: Explorer) -> None:
    answers = explorer.ask(QUESTION, Constraint(HeadSet((), "attention")))
    assert answers.constrained is answers.baseline
    assert answers.note.endswith("No head is chosen: the answer stays as it is.")


def test_the_unconstrained_answer_is_asked_once(explorer: Explorer) -> None:
    first = explorer.ask(QUESTION, Constraint(READER))
    again = explorer.ask(QUESTION, Constraint(explorer.top("output", 1)))
    assert again.baseline is first.baseline


def test_no_hook_stays_behind(explorer: Explorer, planted: HookedModel) -> None:
    before = interp.generate(planted, QUESTION, max_new_tokens=2)
    explorer.ask(QUESTION, Constraint(READER))
    with pytest.raises(UserError, match="not found in the question"):
        explorer.ask(QUESTION, Constraint(READER), words="land99")
    assert interp.generate(planted, QUESTION, max_new_tokens=2) == before


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_question_is_refused(explorer: Explorer, empty: str) -> None:
    with pytest.raises(UserError, match="the question is empty"):
        explorer.ask(empty, Constraint(READER))


def test_a_detector_is_made_once_when_it_is_needed(planted: HookedModel, planted_run: Path) -> None:
    heads = open_run(planted_run, model=planted).heads
    made: list[Finder] = []

    def make() -> Finder:
        made.append(Finder())
        return made[-1]

    explorer = Explorer(planted, heads, detector=make)
    assert not explorer.detector_is_ready
    assert explorer.find(QUESTION, "land5").found_by == "you"
    assert not made
    for _ in range(2):
        assert explorer.find(QUESTION).probability == 0.875
    assert len(made) == 1
    assert made[0].asked == 2
    assert explorer.detector_is_ready


def test_the_ranking_is_that_of_select(explorer: Explorer, planted_run: Path) -> None:
    effects = load_effects(planted_run / "effects.safetensors")
    for site in explorer.sites:
        for count in (0, 1, 5, 12):
            assert explorer.top(site, count).heads == effects[site].select(count=count).heads
    assert explorer.top("attention", 1) == READER


def test_heads_are_toggled_and_framed(explorer: Explorer) -> None:
    more = explorer.toggle(READER, (2, 3))
    assert more.heads == ((1, 2), (2, 3))
    assert explorer.toggle(more, (1, 2)).heads == ((2, 3),)
    traces = explorer.figure(more).to_plotly_json()["data"]
    frames = [one["x"] for one in traces if one.get("mode") == "lines"]
    assert {x for x in frames[0] if x is not None} == {1.54, 2.46, 2.54, 3.46}
    with pytest.raises(UserError, match=r"no head 9\.0: layers go to 2, heads to 3"):
        explorer.toggle(READER, (9, 0))


def test_heads_as_text() -> None:
    heads = ((17, 8), (9, 1))
    assert read_heads_text(heads_text(heads)) == heads
    assert read_heads_text(" (17, 8), (9,1) 17.8 ") == heads
    assert read_heads_text("") == ()
    for wrong in ("17", "17.8 x", "-1.2", "a.b"):
        with pytest.raises(UserError, match="is no head"):
            read_heads_text(wrong)


def test_examples_are_held_out_questions_with_false_premises(explorer: Explorer) -> None:
    assert explorer.split is not None
    held_out = explorer.split.held_out
    examples = explorer.examples()
    assert len(examples) == len(held_out.facts)
    questions = [held_out.fill(one, "false").text for one in held_out.questions()]
    assert set(examples) <= set(questions)


def test_effects_and_a_model_do_without_a_run(planted: HookedModel, planted_run: Path) -> None:
    effects = load_effects(planted_run / "effects.safetensors")
    explorer = open_model(planted, effects.values(), detector=Finder())
    assert explorer.sites == ("output", "attention")
    assert explorer.start == Constraint(explorer.top("output", 3))
    assert explorer.examples() == ()
    with pytest.raises(UserError, match="effects has a site twice"):
        open_model(planted, [effects["output"], effects["output"]])
    with pytest.raises(UserError, match="effects is empty"):
        open_model(planted, [])


def test_named_words_are_shown_where_they_are_acted_on(explorer: Explorer) -> None:
    question = "Why is city0 the capital of land1 if land10 has which town?"
    chars = explorer.find(question, "land1").chars
    assert chars == (28, 33)
