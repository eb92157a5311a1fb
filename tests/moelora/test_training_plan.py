"""Plans of training and of analysis: a few steps and answers say what the run takes."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from interp.cli.moelora import moelora
from interp.commands.plan_adapter import plan_training
from interp.errors import UserError
from interp.files.documents import read_json
from interp.moelora.training.training import TrainingSettings
from interp.runs.plan import REST, Plan
from interp.runs.usage import PassCounter, folder_bytes


def stage_of(plan: Plan, name: str) -> Any:
    return next(stage for stage in plan.stages if stage.name == name)


def test_a_plan_of_training_is_what_the_run_does(
    tiny_training: TrainingSettings, finished: Path, tmp_path: Path
) -> None:
    plan = plan_training(tiny_training, tmp_path / "run", device="cpu", before=1.0)
    assert not (tmp_path / "run").exists()
    steps = stage_of(plan, "training steps")
    per_step = tiny_training.batch * tiny_training.accumulate
    assert steps.prompts == tiny_training.steps * per_step
    assert steps.passes.forward == steps.passes.backward == steps.prompts
    n_test = read_json(finished / "metrics.json")["n_test"]
    assert stage_of(plan, "greedy answers").prompts == n_test
    assert plan.disk == pytest.approx(folder_bytes(finished), rel=0.1)
    assert plan.disk_while > plan.disk


def test_a_finished_run_takes_nothing_more(tiny_training: TrainingSettings, finished: Path) -> None:
    plan = plan_training(tiny_training, finished, device="cpu")
    assert [stage.name for stage in plan.stages[1:]] == [REST]
    assert plan.disk == folder_bytes(finished)


def test_what_remains_of_a_stopped_training_is_planned(
    tiny_training: TrainingSettings, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def stop(*args: Any, **kwargs: Any) -> None:
        raise UserError("stopped")

    monkeypatch.setattr("interp.commands.train.write_training", stop)
    with pytest.raises(UserError, match="stopped"):
        train(tiny_training, run)
    monkeypatch.undo()
    plan = plan_training(tiny_training, run, device="cpu")
    assert not any(stage.name == "training steps" for stage in plan.stages)
    other = TrainingSettings(**{**vars(tiny_training), "steps": 7})
    with pytest.raises(UserError) as error:
        plan_training(other, run, device="cpu")
    assert f"{run} holds another run (steps was 6, now 7)" in str(error.value)


def test_the_command_line_prints_it(
    tiny_training: TrainingSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--model", tiny_training.model, "--data", *tiny_training.data, "--steps", "4"]
    words += ["--batch", "4", "--test-limit", "4", "--device", "cpu"]
    with PassCounter() as counter:
        moelora([*words, "--out", str(tmp_path / "run"), "--plan"], Console(width=200))
    assert counter.passes.backward == 3 * 4  # three of the four steps
    shown = capsys.readouterr().out
    assert "training steps" in shown
    assert "the whole run" in shown
    assert not list(tmp_path.iterdir())
