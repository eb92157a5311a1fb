"""The command line as it is used: help, options, config files, listing premises."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from interp.cli import main, summaries
from interp.cli.config import to_config
from interp.cli.options import COMMANDS, DemoOptions, LocateOptions, parse
from interp.files.documents import write_table
from interp.premises import FRAMES


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"interp {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_command_line_wins_over_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("seed: 5\nlimit: 12\nout: elsewhere\n")
    options = parse("locate", ["--config", str(config), "--seed", "7"])
    assert (options.seed, options.limit, options.out) == (7, 12, Path("elsewhere"))


def test_written_config_repeats_the_run(tmp_path: Path) -> None:
    options = LocateOptions(seed=3, premises="languages", out=tmp_path / "run", site="output")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(to_config(options)))
    assert parse("locate", ["--config", str(config)]) == options


def test_the_overview_lists_what_can_be_run() -> None:
    assert list(summaries.COMMANDS) == list(COMMANDS)


def test_the_overview_waits_for_no_model_code() -> None:
    code = (
        "import sys, contextlib\nfrom interp.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "assert not {'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_defaults_are_the_dataclass() -> None:
    assert parse("demo", []) == DemoOptions()


def test_premises_ls_names_the_relations(capsys: pytest.CaptureFixture[str]) -> None:
    main(["premises", "ls"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("capitals", "films", "nobel"))


def test_premises_show_has_frames_and_distances(capsys: pytest.CaptureFixture[str]) -> None:
    main(["premises", "show", "capitals", "--limit", "12", "--distance", "near"])
    out = capsys.readouterr().out
    assert "template why (near false object)" in out
    assert all(f"template frame-{frame} (near" in out for frame in FRAMES)


def test_premises_build_writes_the_questions(tmp_path: Path) -> None:
    out = tmp_path / "questions.jsonl"
    main(["premises", "build", "capitals", "--limit", "6", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["split"] for row in rows} == {"search", "held_out"}
    for row in rows:
        start, end = row["false"]["object_span"]
        assert row["false"]["question"][start:end] == row["false_object"]
        start, end = row["twin"]["object_span"]
        assert row["twin"]["question"][start:end] == row["true_object"]


def test_cells_cannot_act_as_formulas(tmp_path: Path) -> None:
    table = pd.DataFrame({"subject": ["=cmd()", "Rome"], "effect": [-1.5, 2.0]})
    write_table(tmp_path / "table.csv", table)
    back = pd.read_csv(tmp_path / "table.csv")
    assert back["subject"].tolist() == ["'=cmd()", "Rome"]
    assert back["effect"].tolist() == [-1.5, 2.0]
