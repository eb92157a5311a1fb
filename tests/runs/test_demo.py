"""The demo: a detector finds the words, the heads are constrained there, honest answers stay."""

from pathlib import Path

import pytest

import interp.commands.demo as demo
from interp.commands.locate import load_run
from interp.errors import UserError
from interp.files.documents import read_json
from interp.files.text import read_json_lines
from interp.heads import shipped_for
from interp.models import HookedModel
from interp.report.answers import MarkedPair
from interp.report.heads_page import write_report
from tests.planted_detector import KnowsPlantedFacts
from tests.runs.killing import write_premises


@pytest.fixture(scope="module")
def run(planted: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    settings = demo.DemoSettings(premises=str(write_premises(folder)), heads=1.0, answers=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "run_detector", lambda *given, **options: KnowsPlantedFacts())
        gated, told = demo.demo_run(planted, settings, folder / "run", progress=False)
    assert (gated.intervention.gate, told.intervention.gate) == ("probe", "oracle")
    return folder / "run"


def test_the_gate_keeps_the_gain_and_honest_questions(run: Path) -> None:
    content = read_json(run / "evaluation.json")
    (told,) = content["alternatives"]
    for setting in (content, told):
        right = setting["splits"]["held_out"]["false_premise"]
        assert right["baseline"]["preference_accuracy"][0] == 0
        assert right["constrained"]["preference_accuracy"][0] == 1
    twins = content["splits"]["held_out"]["true_premise"]
    assert twins["constrained"]["p_true_object"] == twins["baseline"]["p_true_object"]
    twins = told["splits"]["held_out"]["true_premise"]
    assert twins["constrained"]["p_true_object"][0] < twins["baseline"]["p_true_object"][0]
    assert content["random_null"]["n_sets"] == 20
    assert content["random_null"]["preference_accuracy"]["mean"] < 0.5


def test_answers_with_the_words_that_were_found(run: Path) -> None:
    rows = [row for _, row in read_json_lines(run / "generations.jsonl")]
    assert [row["kind"] for row in rows] == ["false_premise"] * 4 + ["true_premise"] * 4
    for row in rows:
        if row["kind"] == "true_premise":
            assert row["acted_on"] == []
            assert row["constrained"] == row["baseline"]
        else:
            ((start, end),) = row["acted_on"]
            assert row["question"][start:end] == row["false_object"]
    page = write_report(run).read_text("utf-8")
    assert page.count("<mark>") == 1 + 4  # the key, and the false premises


@pytest.mark.parametrize(("answers", "n_facts"), [(1, 2), (2, 2), (5, 3), (100, 8)])
def test_few_answers_are_of_few_facts(answers: int, n_facts: int, run: Path) -> None:
    """One fact alone has no false object to draw."""
    held_out = load_run(run)[1].held_out
    assert len(held_out.templates) == 2
    few = demo._few(load_run(run)[1], answers)
    assert len(few.facts) == n_facts
    assert len(few.questions()) >= min(answers, len(held_out.questions()))


def test_answers_of_each_kind_are_as_many_as_asked_for(run: Path) -> None:
    rows = [row for _, row in read_json_lines(run / "generations.jsonl")]
    pairs = [MarkedPair.from_row(row) for row in rows]
    kinds = [pair.kind for pair in demo._first_of_each_kind(pairs, 3)]
    assert kinds == ["false_premise"] * 3 + ["true_premise"] * 3


def test_order_of_the_table(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    places = [page.index(f'<th scope="row">{name}') for name in ("no constraint", "attention")]
    places += [page.index("gate: probe</th>"), page.index("20 random head sets")]
    assert places == sorted(places)
    # Of the two settings, one has random sets.
    assert "Compared with attention, zero, 1 head (8.3 %), gate: probe." in page
    assert "Compared with attention, zero, 1 head (8.3 %)." not in page


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="heads is a fraction below 1 or a count"):
        demo.DemoSettings(heads=0.0)
    with pytest.raises(UserError, match="answers is 0"):
        demo.DemoSettings(answers=0)


def test_nothing_ships_for_another_model(planted: HookedModel) -> None:
    assert shipped_for(planted) is None


def test_what_ships_for_the_embedded_model(smollm: HookedModel) -> None:
    import interp
    import probes

    shipped = shipped_for(smollm)
    assert shipped is not None
    assert shipped.left_out == ("capitals",)
    assert (len(shipped.heads), shipped.heads.site) == (8, "attention")
    assert " capitals," not in shipped.heads.chosen_by
    detector = probes.detector_for(smollm)
    assert "capitals" not in detector.training["relations"]
    question, twin = "Why is Paris the capital of {}?", "Why is Paris the capital of France?"
    false = question.format("Germany")
    found = interp.detect(smollm, [false, twin])
    assert [each.fired for each in found] == [True, False]
    assert found[0].char_span == (question.index("{"), question.index("{") + len("Germany"))
    answer = interp.generate(smollm, twin, heads=shipped.heads, gate="probe", max_new_tokens=8)
    assert answer == interp.generate(smollm, twin, max_new_tokens=8)
