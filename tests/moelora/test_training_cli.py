"""``interp moelora``: options, config files, what is printed, mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from interp.cli.moelora import OPTIONS, CompareOptions, TrainOptions, moelora, parse
from interp.errors import UserError
from interp.files.documents import read_json


@pytest.fixture(scope="module")
def words(
    hf_factory: Callable[..., Any], chat_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """The options of a very short run on a tiny model."""
    folder = tmp_path_factory.mktemp("cli")
    hf_factory("llama", chat_tokenizer, num_hidden_layers=1).save_pretrained(folder / "model")
    chat_tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(30)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        "--model",
        str(folder / "model"),
        "--data",
        str(folder / "sums.jsonl"),
        "--steps",
        "2",
        "--batch",
        "4",
        "--test-limit",
        "4",
        "--log-every",
        "1",
        "--device",
        "cpu",
    ]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    moelora(words, Console(width=200))
    return capsys.readouterr().out


def test_train_writes_a_run_and_says_what_came_out(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(["train", *words, "--out", str(tmp_path / "run")], capsys)
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert f"{metrics['trainable_parameters']:,} trainable parameters" in out
    assert "sums: 0." in out
    assert "dead experts in the last steps: " in out
    # Its own configuration repeats it.
    config = tmp_path / "run" / "config.yaml"
    again = ["--config", str(config), "--device", "cpu", "--out", str(tmp_path / "again")]
    run(["train", *again], capsys)
    assert (tmp_path / "again" / "losses.csv").read_text() == (
        tmp_path / "run" / "losses.csv"
    ).read_text()


def test_compare_writes_a_page_and_prints_the_tables(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(["compare", *words, "--seeds", "3", "--out", str(tmp_path / "both")], capsys)
    assert (tmp_path / "both" / "report.html").is_file()
    assert "accuracy on held-out questions" in out
    assert "MoELoRA against LoRA" in out
    assert read_json(tmp_path / "both" / "comparison.json")["methods"]["moe"]["seeds"] == [3]


def test_config_file_and_command_line(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "steps: 7\ndata: [a.csv, b.csv]\ncheckpointing: true\nlimit: null\nlearning_rate: 0.01\n"
    )
    options = parse("train", ["--config", str(config), "--steps", "9"])
    assert (options.steps, options.data) == (9, ("a.csv", "b.csv"))
    assert (options.checkpointing, options.limit, options.learning_rate) == (True, None, 0.01)
    assert parse("train", [f"--config={config}"]).steps == 7


def test_defaults_are_the_dataclass() -> None:
    assert parse("train", []) == TrainOptions()
    assert parse("compare", []) == CompareOptions()
    assert parse("compare", ["--seeds", "4", "5"]).seeds == (4, 5)


@pytest.mark.parametrize("command", list(OPTIONS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        moelora([command, "--help"], Console())
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--config", "--device", "--dtype", "--seed"):
        assert option in out


def test_overview_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    out = run([], capsys)
    assert "interp moelora train" in out
    assert "interp moelora compare" in out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("setps: 3\n", "unknown option 'setps'; known: model, method"),
        ("- 3\n", "must hold options as keys"),
        ("{", "cannot be read as YAML"),
        ("data: {a: 1}\n", "data is .* must be a value or a list"),
    ],
)
def test_bad_config(content: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    with pytest.raises(UserError, match=said):
        parse("train", ["--config", str(config)])


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown command 'moelora tarin'; known: train, compare"):
        moelora(["tarin"], Console())
    with pytest.raises(UserError, match="--config needs a YAML file"):
        parse("train", ["--config"])
    with pytest.raises(UserError, match="steps must be at least 1"):
        parse("train", ["--steps", "0"])
    with pytest.raises(UserError, match=r"missing\.yaml: cannot be read"):
        parse("train", ["--config", str(tmp_path / "missing.yaml")])


def test_written_config_is_plain(words: list[str], tmp_path: Path) -> None:
    """Lists and numbers only: no tags of Python objects."""
    options = parse("train", [*words, "--targets", "q_proj"])
    assert options.targets == ("q_proj",)
    moelora(["train", *words, "--out", str(tmp_path / "run")], Console(quiet=True))
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "!!" not in text
    assert yaml.safe_load(text)["steps"] == 2
