"""``interp patch`` on the command line: its run, its config, its messages."""

import json
from pathlib import Path

import pytest

import interp.cli.commands
from interp.cli import main
from interp.cli.options import PatchOptions, parse
from interp.models import HookedModel
from interp.patching import PatchEffects


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "clean": f"Why is city{i} the capital of land{i + 1}?",
            "corrupted": f"Why is city{i} the capital of land{i + 2}?",
            "answer": f" land{i + 1}",
            "wrong_answer": f" land{i + 2}",
        }
        for i in range(7)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(autouse=True)
def _planted_model(planted: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interp.cli.commands, "load_model", lambda *args, **kwargs: planted)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["patch", *words])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1
    return lines[0]


def test_a_run_from_the_command_line(
    pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["patch", "--pairs", str(pairs_file), "--out", str(run)])
    out = capsys.readouterr().out
    assert "largest of 12 effects" in out
    assert "7 of 7 clean texts are answered rightly" in out
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["settings"]["pairs"] == str(pairs_file)
    assert len(manifest["prompts_sha256"]) == 64
    assert manifest["model"]["n_heads"] == 4
    assert len(PatchEffects.load(run / "effects.safetensors")) == 7


def test_the_written_config_repeats_the_run(
    pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    main(["patch", "--pairs", str(pairs_file), "--component", "mlp_out", "--out", str(first)])
    config = first / "config.yaml"
    assert parse("patch", ["--config", str(config)]) == PatchOptions(
        pairs=str(pairs_file), component="mlp_out", out=first
    )
    main(["patch", "--config", str(config), "--out", str(second)])
    assert (first / "units.csv").read_text() == (second / "units.csv").read_text()


def test_few_prompts_are_told(
    pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["patch", "--pairs", str(pairs_file), "--limit", "3", "--out", str(tmp_path / "run")])
    assert "Too few groups of prompts for intervals and tests" in capsys.readouterr().out


def test_mistakes_are_one_line(
    pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    missing = fails(capsys, "--pairs", "none.jsonl", "--out", out)
    assert "none.jsonl: cannot be read" in missing
    broken = tmp_path / "broken.jsonl"
    broken.write_text(pairs_file.read_text() + "\n{")
    assert "line 8: not valid JSON" in fails(capsys, "--pairs", str(broken), "--out", out)
    spans = fails(capsys, "--pairs", str(pairs_file), "--positions", "spans", "--out", out)
    assert "have no spans" in spans
    memory = fails(capsys, "--pairs", str(pairs_file), "--memory", "0", "--out", out)
    assert "memory is 0.0 MiB" in memory
    assert not Path(out).exists()
