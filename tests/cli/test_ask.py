"""``interp ask`` and ``interp detect``: what is printed, to whom, and what happens to mistakes."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from interp.cli import main
from interp.cli.answers import print_answer, print_answers
from interp.commands.ask import lines_to_ask
from interp.commands.in_order import Unasked, in_order
from interp.errors import UserError
from interp.evaluation.answer_pair import AnswerPair
from interp.heads import HeadSet
from interp.interventions import Intervention
from interp.interventions.head_constraint import Constraint
from interp.models import HookedModel
from interp.premises.question_list import RawQuestion
from interp.report.answers import Piece
from tests.fixtures import make_planted_hf_model
from tests.planted_detector import KnowsPlantedFacts

FALSE, TRUE = "Why is city3 the capital of land5?", "Why is city3 the capital of land3?"
LONG = "Why " * 5000 + "is city3 the capital of land5?"


class Detector(KnowsPlantedFacts):
    """Refuses questions of more than 1,000 words, as a model with few positions does."""

    def detect(self, model: Any, questions: Any, **more: Any) -> Any:
        if any(len(question.split()) > 1000 for question in questions):
            raise UserError("a prompt of 5,000 tokens is beyond the model's positions")
        return super().detect(model, questions, **more)


@pytest.fixture(scope="module")
def plain(word_tokenizer: Any) -> Any:
    return make_planted_hf_model(word_tokenizer)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A saved intervention."""
    heads = HeadSet(((1, 2),), "attention")
    return str(Intervention.of(Constraint(heads), gate="probe").save(tmp_path / "mine.yaml"))


@pytest.fixture
def ask(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    word_tokenizer: Any,
    plain: Any,
    planted: HookedModel,
) -> Callable[..., Any]:
    """``ask(*words, stdin=b"")``: exit code, standard output and error of ``interp``."""
    detector = Detector()
    monkeypatch.setattr(
        "interp.cli.asking.load_plain", lambda spec, **more: (plain, word_tokenizer)
    )
    attaching = sys.modules["interp.attached.attach"]  # the package has a function of this name
    monkeypatch.setattr(attaching, "kept_detector", lambda model: detector)
    monkeypatch.setattr("interp.cli.asking.load", lambda options, console: planted)
    monkeypatch.setattr("probes.detector.detect.detector_for", lambda model: detector)

    def go(*words: str, stdin: bytes = b"") -> Any:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        code = 0
        try:
            main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return go


def test_a_question_and_both_answers(ask: Callable[..., Any], run: str) -> None:
    code, out, err = ask("ask", run, FALSE, TRUE, "--max-new-tokens", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "Why is city3 the capital of »land5«?"
    assert lines[1] == (
        "  gate open, probability of a false premise 0.90: constrained at “land5”, another answer"
    )
    assert lines[2].startswith("  without  [-land5")
    assert lines[3].startswith("  with     {+land3")
    assert lines[4] == TRUE
    assert lines[5].startswith("  gate closed, probability of a false premise 0.10: the answer")
    assert len(lines) == 7
    assert "2 questions: 1 constrained, 1 answered otherwise." in err


def test_json_has_an_object_a_question(ask: Callable[..., Any], run: str) -> None:
    code, out, _ = ask("ask", run, FALSE, TRUE, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [list(row) for row in rows] == [
        [
            *("line", "question", "baseline", "constrained", "fired"),
            *("probability", "changed", "words", "start", "end"),
        ]
    ] * 2
    assert rows[0]["question"][rows[0]["start"] : rows[0]["end"]] == rows[0]["words"] == "land5"
    assert [row["changed"] for row in rows] == [True, False]
    assert rows[1]["baseline"] == rows[1]["constrained"]
    assert (rows[1]["words"], rows[1]["start"]) == ("", None)


def test_lines_of_standard_input_one_by_one(ask: Callable[..., Any], run: str) -> None:
    stdin = f"{FALSE}\n\n{TRUE}\r\n".encode() + b"\xff\xfe\nWhy \x01?\n" + FALSE.encode()
    code, out, err = ask("ask", run, "-", "--json", stdin=stdin)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert [row["line"] for row in rows] == [1, 3, 4, 5, 6]
    assert [row.get("changed") for row in rows] == [True, False, None, None, True]
    assert "not UTF-8" in rows[2]["error"]
    assert "control character" in rows[3]["error"]
    assert "3 questions: 2 constrained, 2 answered otherwise. 2 could not be asked." in err


def test_an_answer_is_there_before_the_next_line_is_read() -> None:
    read: list[int] = []

    def stream() -> Any:
        for number in (1, 2):
            read.append(number)
            yield f"Why {number}?\n".encode()

    results = in_order(lambda some: [len(read)] * len(some), lines_to_ask(stream()), at_once=1)
    assert [outcome[1] for outcome in results] == [1, 2]  # type: ignore[index]


def test_one_at_fault_keeps_no_other_from_its_answer(ask: Callable[..., Any], run: str) -> None:
    asked = [RawQuestion(f"Why {number}?", line=number) for number in range(1, 12)]
    sizes: list[int] = []

    def run_some(some: Any) -> list[int]:
        sizes.append(len(some))
        if any(question.line == 7 for question in some):
            raise UserError("no")
        return [question.line for question in some]

    found = list(in_order(run_some, asked, at_once=8))
    assert [
        outcome.line if isinstance(outcome, Unasked) else outcome[1] for outcome in found
    ] == list(range(1, 12))
    assert [isinstance(outcome, Unasked) for outcome in found].index(True) == 6
    assert sizes == [8, 4, 4, 2, 2, 1, 1, 3]
    code, out, err = ask("ask", run, FALSE, LONG, TRUE)
    assert code == 2
    assert out.count("without") == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "beyond the model's positions" in errors[0]
    assert len(errors[0]) < 200


def test_a_file_and_the_words_that_it_names(
    ask: Callable[..., Any], run: str, tmp_path: Path
) -> None:
    path = tmp_path / "asked.csv"
    path.write_text(f"q,wrong\n{FALSE},land5\n{TRUE},\n")
    columns = ("--columns", "question=q,false_object=wrong")
    code, out, err = ask("ask", run, "--file", str(path), *columns, "--gate", "oracle", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["fired"], row["probability"], row["line"]) for row in rows] == [
        (True, None, 2),
        (False, None, 3),
    ]
    assert "questions: 100%" in err  # progress, not in the answers
    code, out, _ = ask("ask", run, FALSE, "--false-object", "land5")
    assert code == 0
    assert "as told: constrained at “land5”" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN"], "ask something"),
        (["nowhere", "Why?"], "there is no run nowhere"),
        (["RUN", "-", "Why?"], "asked alone"),
        (["RUN", " "], "the question is empty"),
        (["RUN", "--file", "none.csv"], "none.csv: cannot be read"),
        (["RUN", "Why?", "--columns", "question=q"], "name it with --file"),
        (["RUN", "Why?", "--gate", "oracle"], "name the words"),
        (["RUN", "Why?", "--gate", "probe", "--false-object", "a"], "leave --false-object out"),
        (["RUN", "Why?", "--false-object", "a", "--detector", "d"], "leave --detector out"),
        (["RUN", "Why?", "--detector", "none"], "none"),
        (["RUN", "Why?", "--max-new-tokens", "-1"], "max_new_tokens"),
        ([".", "Why?"], "is not a run: it has no manifest.json"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, ask: Callable[..., Any], run: str
) -> None:
    code, out, err = ask("ask", *(run if word == "RUN" else word for word in words))
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_detect_keeps_what_could_be_read(ask: Callable[..., Any], tmp_path: Path) -> None:
    path, out_file = tmp_path / "asked.txt", tmp_path / "found.csv"
    path.write_text(f"{FALSE}\n{LONG}\n{TRUE}\n")
    code, out, err = ask("detect", str(path), "--json", "--out", str(out_file))
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert [row.get("fired") for row in rows] == [True, None, False]
    assert "positions" in rows[1]["error"]
    assert (rows[0]["words"], rows[0]["start"], rows[0]["line"]) == ("land5", 28, 1)
    assert "without a label: fired on 0.50" in err
    assert len(out_file.read_text().splitlines()) == 3
    code, out, err = ask("detect", str(path))
    assert code == 2
    assert "»land5«" in out
    assert "error: line 2: a prompt of 5,000 tokens" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threshold", "2"], "threshold is a probability"),
        (["--run", "a", "--detector", "b"], "leave --run or --detector out"),
    ],
)
def test_detect_refuses(words: list[str], said: str, ask: Callable[..., Any]) -> None:
    code, out, err = ask("detect", "--question", "Why?", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_the_demo_shows_the_same_marks(capsys: pytest.CaptureFixture[str]) -> None:
    row: dict[str, Any] = {
        **{"kind": "false_premise", "template": "why", "subject": "city3"},
        **{"true_object": "land3", "false_object": "land5"},
        **{"question": FALSE, "object_span": (28, 33)},
        **{"baseline": "It is land5.", "constrained": "It is land3."},
        **dict.fromkeys(("baseline_names_true", "constrained_names_false"), False),
        **dict.fromkeys(("baseline_names_false", "constrained_names_true"), True),
    }
    closed = {**row, "constrained": row["baseline"], "acted_on": ()}
    print_answers([AnswerPair(**row), AnswerPair(**closed)], Console(), count=2)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "false premises",
        "Why is city3 the capital of »land5«?",
        "  before  It is [-land5.-]",
        "  after   It is {+land3.+}",
        FALSE,
        "  before  It is land5.",
        "  after   (the same)",
    ]


def test_colours_on_a_terminal_and_no_markup() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, color_system="standard", width=40)
    pieces = (Piece("Is [red]it[/red] "), Piece("so", "object"), Piece("?"))
    print_answer(console, question=pieces, answers={"with": (Piece("[b]no[/b]", "added"),)})
    printed = shown.getvalue()
    assert "Is [red]it[/red] " in printed
    assert "\x1b[1;7mso\x1b[0m" in printed
    assert "\x1b[1;32m[b]no[/b]\x1b[0m" in printed


def test_an_empty_question_among_others_is_one_line(ask: Callable[..., Any], run: str) -> None:
    code, out, err = ask("ask", run, FALSE, "  ", TRUE, "--max-new-tokens", "2")
    assert code == 2
    assert out.count("gate ") == 2
    assert err.count("the question is empty") == 1


def test_a_directory_that_is_no_run_is_told_as_such(
    ask: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    code, _, err = ask("ask", str(tmp_path), FALSE)
    assert code == 2
    assert "is not a run: it has no manifest.json" in err


def test_an_empty_answer_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(Console(), question=(Piece("Why?"),), answers={"with": (), "without": ()})
    assert capsys.readouterr().out.count("(empty: the model ended at once)") == 2
