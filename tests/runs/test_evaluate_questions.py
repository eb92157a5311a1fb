"""``interp evaluate RUN --questions`` and ``interp detect`` on the planted model's run."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.cli import main
from interp.commands.evaluate import EvaluateSettings
from interp.commands.evaluate_questions import (
    QuestionSettings,
    constraint_of_run,
    evaluate_questions_run,
    must_evaluate_first,
)
from interp.commands.locate import load_run
from interp.errors import UserError
from interp.evaluation import jobs
from interp.models import HookedModel
from interp.premises import load_questions
from interp.report import write_report
from interp.report.questions import questions_section
from probes.detector.detections import Detection
from probes.detector.questions import tokenize_question

HOSTILE = "<script>alert('x')</script>"
SETTINGS = EvaluateSettings(site="attention", mode="zero", heads=1.0)
OPTIONS: dict[str, Any] = {"settings": SETTINGS, "progress": False}


@pytest.fixture
def run(planted_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted_run, tmp_path / "run"))


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Six edited facts, a true one, and a question without any, which holds hostile text."""
    rows = [
        f"Why is city{n} the capital of land{n + 1}?,city{n},land{n},land{n + 1}" for n in range(6)
    ]
    rows += ["Why is city9 the capital of land9?,city9,land9,land8"]
    path = tmp_path / "asked.csv"
    path.write_text("\n".join(["question,subject,object,edited_object", *rows]), "utf-8")
    return path


class Stub:
    """Fires on the words ``land1``."""

    def detect(
        self,
        model: Any,
        questions: Sequence[str],
        *,
        system: str | None = None,
        progress: bool = True,
    ) -> tuple[Detection, ...]:
        return tuple(self._of(model, text) for text in questions)

    def _of(self, model: Any, text: str) -> Detection:
        if "land1" not in text:
            return Detection(False, 0.25)
        span = (text.index("land1"), text.index("land1") + 5)
        tokens = tokenize_question(model.tokenizer, text).tokens_at(span)
        return Detection(True, 0.75, span, tokens)


def test_files_are_written_and_a_second_call_writes_the_same(
    planted: HookedModel, run: Path, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, split, effects = load_run(run)
    questions = load_questions(asked)
    calls: list[int] = []
    greedy = jobs.greedy_answers

    def stopping(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return greedy(*args, **options)

    monkeypatch.setattr(jobs, "greedy_answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate_questions_run(planted, split, effects, questions=questions, run=run, **OPTIONS)
    assert not (run / "questions.json").exists()
    evaluate_questions_run(planted, split, effects, questions=questions, run=run, **OPTIONS)
    assert len(calls) == 3  # the answers without the constraint were kept
    files = [run / name for name in ("questions.json", "questions.jsonl")]
    before = [path.read_bytes() for path in files]
    assert not (run / "shards" / "questions").exists()
    evaluate_questions_run(planted, split, effects, questions=questions, run=run, **OPTIONS)
    assert [path.read_bytes() for path in files] == before
    rows = [json.loads(line) for line in before[1].decode().splitlines()]
    assert [row["found_by"] for row in rows] == ["file"] * 7
    assert all(row["constrained_verdict"]["names_answer"] for row in rows[:6])
    assert all(row["baseline_verdict"]["names_false_object"] for row in rows[:6])
    group = json.loads(before[0])["groups"]["false_premise"]
    assert group["n"] == 6
    assert group["constrained"]["names_answer"] == [1.0, 1.0, 1.0]


def test_the_command_and_its_page(
    planted: HookedModel,
    run: Path,
    asked: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("interp.cli.commands.load", lambda options, console: planted)
    monkeypatch.setattr("interp.commands.evaluate_questions.run_detector", lambda *_, **__: Stub())
    asked.write_text(
        f'prompt,gold,fp\n"Why is city0 the capital of land1 {HOSTILE}?",land0,yes\n'
        "Why is city2 the capital of land2?,land2,no\n"
    )
    words = ["--site", "attention", "--mode", "zero", "--heads", "1", "--gate", "probe"]
    columns = "question=prompt,answer=gold,label=fp"
    main(["evaluate", str(run), "--questions", str(asked), "--columns", columns, *words])
    out = " ".join(capsys.readouterr().out.split())
    assert "false premises (n = 1" in out.replace("False", "false")
    assert "unchanged 1.00" in out
    assert not (run / "evaluation.json").exists()  # nothing was left to choose
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")
    page = write_report(run).read_text("utf-8")
    section = page[page.index('<section id="questions">') :].split("</section>")[0]
    assert "<mark>land1</mark>" in section
    assert HOSTILE not in section
    assert "&lt;script&gt;" in section
    assert "not acted on" in section
    assert str(asked.parent) not in section


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("questions.json", '"n": 6', '"n": "six"'),
        ("questions.json", '"groups"', '"group"'),
        ("questions.jsonl", '"fired": true', '"fired": 1'),
        ("questions.jsonl", '"words": [', '"words": [1000, '),
        ("questions.jsonl", '"baseline": "', '"base": "'),
    ],
)
def test_damaged_files_are_refused_by_the_page(
    name: str, old: str, new: str, planted: HookedModel, run: Path, asked: Path
) -> None:
    _, split, effects = load_run(run)
    questions = load_questions(asked)
    evaluate_questions_run(planted, split, effects, questions=questions, run=run, **OPTIONS)
    assert questions_section(run) is not None
    text = (run / name).read_text("utf-8")
    assert old in text
    (run / name).write_text(text.replace(old, new), "utf-8")
    with pytest.raises(UserError, match=rf"{name}.*again"):
        questions_section(run)


def evaluation(site: str, mode: str, n_heads: int, factor: float = 0.0) -> dict[str, Any]:
    held_out = {"false_premise": {"baseline": {"n": 1}, "constrained": {"n": 1}}}
    return {
        **{"site": site, "mode": mode, "n_heads": n_heads, "factor": factor},
        "heads": [[2, head] for head in range(n_heads)],  # not those of the largest effects
        "splits": {"held_out": held_out},
    }


def test_the_constraint_is_that_of_the_evaluation(run: Path) -> None:
    effects = load_run(run)[2]
    best = EvaluateSettings()
    assert must_evaluate_first(run, best)
    assert not must_evaluate_first(run, SETTINGS)
    found = evaluation("output", "scale", 2, -1.0)
    found["alternatives"] = [evaluation("attention", "zero", 3)]
    (run / "evaluation.json").write_text(json.dumps(found))
    assert not must_evaluate_first(run, best)

    def chosen(**settings: Any) -> tuple[Any, ...]:
        constraint = constraint_of_run(run, effects, EvaluateSettings(**settings))
        return constraint.site, constraint.mode, constraint.factor, len(constraint.heads)

    assert chosen() == ("output", "scale", -1.0, 2)
    assert constraint_of_run(run, effects, best).heads.heads == ((2, 0), (2, 1))
    largest = effects["output"].select(count=4)
    named = EvaluateSettings(heads=4.0)
    assert constraint_of_run(run, effects, named).heads.heads == largest.heads
    assert chosen(site="attention") == ("attention", "zero", 0.0, 3)
    assert chosen(mode="zero") == ("output", "zero", 0.0, 2)
    assert chosen(heads=4.0) == ("output", "scale", -1.0, 4)
    assert chosen(site="output", mode="mean", heads=1.0) == ("output", "mean", 0.0, 1)
    steps = EvaluateSettings(site="attention", decoding_steps=2)
    assert constraint_of_run(run, effects, steps).decoding_steps == 2
    with pytest.raises(UserError, match="searched at site output, not 'attention'"):
        constraint_of_run(run, {"output": effects["output"]}, EvaluateSettings(site="attention"))
    (run / "evaluation.json").write_text(json.dumps(evaluation("output", "zero", 2)))
    with pytest.raises(UserError, match="was not evaluated at site 'attention'"):
        chosen(site="attention")


def test_settings_without_a_file_are_refused() -> None:
    for wrong in ({"columns": "question=a"}, {"answer_null": 3}):
        with pytest.raises(UserError, match="for --questions FILE"):
            QuestionSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is a number of head sets"):
        QuestionSettings(questions=Path("a.csv"), answer_null=-1)


def test_detect_prints_and_writes(
    planted: HookedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("interp.cli.asking.load", lambda options, console: planted)
    monkeypatch.setattr("probes.detector.detect.detector_for", lambda model: Stub())
    path, out = tmp_path / "asked.csv", tmp_path / "found.csv"
    path.write_text("question,label\nWhy is city0 in land1?,1\nWhy is city2 in land2?,0\n")
    main(["detect", str(path), "--question", "=1+land1?", "--out", str(out)])
    printed = capsys.readouterr()
    assert "»land1«" in printed.out
    assert "false premises: fired on 1.00" in " ".join(printed.err.split())
    table = pd.read_csv(out)
    assert list(table["fired"]) == [True, False, True]
    assert list(table["words"].fillna("")) == ["land1", "", "land1"]
    assert table["question"][2] == "'=1+land1?"  # no formula in a spreadsheet


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["detect"], "name a file of questions"),
        (["detect", "none.csv"], "none.csv: cannot be read"),
        (["detect", "--question", "Why?", "--columns", "question=a"], "columns are for a file"),
        (["detect", "--question", "Why?", "--out", "no/such/a.csv"], "is not a directory"),
        (["evaluate", "none", "--questions", "none.csv"], "none.csv: cannot be read"),
        (["evaluate", "none", "--columns", "question=a"], "are for --questions FILE"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
