"""A user's mistakes on the command line: one clear line, exit code 2, nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest

from interp.cli import main
from interp.files.documents import write_json
from interp.models import HookedModel
from interp.runs.manifest import check_same_model, write_manifest

TEMPLATES = """
name: rivers
description: Cities and their rivers.
subject_kind: city
object_kind: river
templates:
  why: "Why does the {object} flow through {subject}?"
  bridges: "How many bridges cross the {object} in {subject}?"
cloze: "The river of {subject} is the"
direct: "Which river flows through {subject}?"
"""


@pytest.fixture
def relation(tmp_path: Path) -> Path:
    """A user's relation of two facts."""
    (tmp_path / "rivers.yaml").write_text(TEMPLATES)
    path = tmp_path / "rivers.csv"
    path.write_text("subject,object\nVienna,Danube\nCairo,Nile\n")
    return path


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command; return its one line on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in captured.err
    return captured.err


def one_line(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) == 1 and lines[0].startswith("error: ")


LONG = "a" * 5000


@pytest.mark.parametrize(
    "words",
    [
        ["report", LONG],
        ["evaluate", LONG],
        ["locate", "--out", LONG],
        ["locate", "--premises", f"{LONG}.csv"],
        ["probe", "--out", LONG],
        ["patch", "--pairs", f"{LONG}.jsonl"],
        ["moelora", "analyze", LONG],
        ["moelora", "train", "--data", LONG],
        ["locate", "--config", f"{LONG}.yaml"],
    ],
)
def test_a_name_that_no_file_can_have(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, *words)
    assert one_line(error)
    assert len(error) < 2 * len(LONG)


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "loacte")
    assert one_line(error)
    assert "demo, locate, evaluate, report, explore, premises" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--premises", "capitols"], "unknown relation 'capitols'"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--device", "cuda:7"], "device 'cuda:7' is not there"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_locate_names_what_is_wrong(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    error = fails(capsys, "locate", "--out", str(out), *words)
    assert one_line(error)
    assert said in error
    assert not out.exists()


def test_unknown_choice_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "locate", "--method", "guess")
    assert "'path'" in error
    assert "'attribution'" in error


def test_table_without_its_columns(relation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relation.write_text("city,river\nVienna,Danube\n")
    error = fails(capsys, "premises", "show", str(relation))
    assert one_line(error)
    assert "subject" in error


def test_template_without_its_slot(relation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = relation.with_suffix(".yaml")
    sentences.write_text(TEMPLATES.replace("cross the {object} in", "are in"))
    error = fails(capsys, "premises", "show", str(relation))
    assert one_line(error)
    assert "{object}" in error


def test_too_few_known_facts(
    relation: Path, tmp_path: Path, smollm: HookedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, "locate", "--premises", str(relation), "--out", str(tmp_path / "run"))
    assert "knows too few facts" in error
    assert "at least 16" in error
    assert not (tmp_path / "run").exists()


def test_directory_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run" in fails(capsys, "evaluate", str(tmp_path))
    assert "is not a run" in fails(capsys, "report", str(tmp_path))


def test_directory_of_something_else_is_left_alone(
    tmp_path: Path, smollm: HookedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    error = fails(capsys, "locate", "--out", str(tmp_path))
    assert one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_run_of_another_model(
    tmp_path: Path, tiny_llama: HookedModel, tiny_gpt2: HookedModel
) -> None:
    from interp.errors import UserError

    (tmp_path / "premises.jsonl").write_text("")
    write_manifest(tmp_path, tiny_llama)
    check_same_model(tmp_path, tiny_llama)
    with pytest.raises(UserError, match="was made with the model"):
        check_same_model(tmp_path, tiny_gpt2)


def test_config_with_an_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("sede: 1\n")
    error = fails(capsys, "locate", "--config", str(config))
    assert one_line(error)
    assert "unknown option 'sede'" in error
    assert "seed" in error


def test_config_of_the_wrong_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("seed: many\n")
    error = fails(capsys, "locate", "--config", str(config))
    assert one_line(error)
    assert "seed is 'many'" in error


def test_unreadable_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text("{")
    error = fails(capsys, "evaluate", str(tmp_path))
    assert one_line(error)
    assert "manifest.json" in error


def test_manifest_without_settings(
    tmp_path: Path, smollm: HookedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "premises.jsonl").write_text("")
    write_manifest(tmp_path, smollm)
    content = json.loads((tmp_path / "manifest.json").read_text())
    content["model"]["spec"] = "smollm2-135m"
    write_json(tmp_path / "manifest.json", content)
    error = fails(capsys, "evaluate", str(tmp_path))
    assert one_line(error)
    assert "damaged" in error


def test_evaluating_more_heads_than_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "evaluate", "nowhere", "--heads", "2.5")
    assert one_line(error)
    assert "whole number" in error


def test_interrupted_directory_is_cleaned(tmp_path: Path) -> None:
    """An atomic write that fails leaves neither a target nor a temporary file."""
    from interp.errors import UserError
    from interp.files.documents import write_atomically

    folder = tmp_path / "gone"
    folder.mkdir()
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(folder / "file.json", "{}")
    assert not folder.exists()
