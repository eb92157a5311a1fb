"""A training run taken up again: interrupted, finished, or another one in its directory."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import interp.commands.train
from interp.errors import UserError
from interp.files.documents import read_json
from interp.moelora.training.trainer import WHOLE, last_checkpoint
from interp.moelora.training.training import TrainingSettings

Train = Callable[[TrainingSettings, Path], Path]
SameWeights = Callable[[Path, Path], bool]


class _Interrupt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def add_callback(monkeypatch: pytest.MonkeyPatch, callback: TrainerCallback) -> None:
    """Have every run's Trainer call `callback`."""
    make = interp.commands.train.make_trainer

    def make_with_callback(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.add_callback(callback)
        return trainer

    monkeypatch.setattr(interp.commands.train, "make_trainer", make_with_callback)


@pytest.fixture
def interrupted(
    tiny_training: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Train
) -> Path:
    """A run stopped after its fifth step; the checkpoints are of the second and fourth."""
    with monkeypatch.context() as patched:
        add_callback(patched, _Interrupt(5))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_training, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    return tmp_path / "run"


class _Count(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


def test_resumed_run_ends_with_the_same_bits(
    interrupted: Path,
    finished: Path,
    tiny_training: TrainingSettings,
    monkeypatch: pytest.MonkeyPatch,
    train: Train,
    same_weights: SameWeights,
) -> None:
    assert {path.name for path in (interrupted / "checkpoints").iterdir()} == {
        "checkpoint-2",
        "checkpoint-4",
    }
    counter = _Count()
    add_callback(monkeypatch, counter)
    train(tiny_training, interrupted)
    assert counter.steps == [5, 6]
    assert same_weights(interrupted, finished)
    assert (interrupted / "losses.csv").read_text() == (finished / "losses.csv").read_text()
    assert (interrupted / "predictions.jsonl").read_text() == (
        finished / "predictions.jsonl"
    ).read_text()


def test_run_interrupted_while_it_is_scored_is_not_trained_further(
    finished: Path,
    tiny_training: TrainingSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Train,
    same_weights: SameWeights,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(interp.commands.train, "metrics_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_training, tmp_path / "run")
    train(tiny_training, tmp_path / "run")
    assert same_weights(tmp_path / "run", finished)
    assert read_json(tmp_path / "run" / "metrics.json")["steps"] == tiny_training.steps
    for name in ("losses.csv", "predictions.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (finished / name).read_text()


def test_unfinished_checkpoint_is_passed_over(
    interrupted: Path,
    finished: Path,
    tiny_training: TrainingSettings,
    caplog: pytest.LogCaptureFixture,
    train: Train,
    same_weights: SameWeights,
) -> None:
    newest = interrupted / "checkpoints" / "checkpoint-4"
    (newest / WHOLE).unlink()
    (newest / "optimizer.pt").write_bytes(b"")
    assert last_checkpoint(interrupted / "checkpoints") == newest.with_name("checkpoint-2")
    train(tiny_training, interrupted)
    assert "cut short while it was written: passed over" in caplog.text
    assert same_weights(interrupted, finished)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", WHOLE])
def test_checkpoint_cut_short_later_is_told(
    name: str, interrupted: Path, tiny_training: TrainingSettings, train: Train
) -> None:
    file = interrupted / "checkpoints" / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[:-20])
    said = "not valid JSON" if name == WHOLE else "is cut short"
    with pytest.raises(UserError, match=said) as caught:
        train(tiny_training, interrupted)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_finished_run_is_returned_as_it_is(
    finished: Path, tiny_training: TrainingSettings, train: Train
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    train(tiny_training, finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_finished_run_tells_that_its_data_changed(
    tiny_training: TrainingSettings,
    tmp_path: Path,
    train: Train,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = Path(tiny_training.data[0]).read_text(encoding="utf-8")
    data = tmp_path / "data.jsonl"
    data.write_text(rows, encoding="utf-8")
    settings = replace(tiny_training, data=(str(data),))
    train(settings, tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.json").read_bytes()
    data.write_text("\n".join(rows.splitlines()[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match=r"holds another run .*data"):
        train(settings, tmp_path / "run")
    data.unlink()
    train(settings, tmp_path / "run")
    assert "its data cannot be compared with today's" in caplog.text
    assert (tmp_path / "run" / "metrics.json").read_bytes() == metrics


def test_other_settings_in_the_same_directory_are_refused(
    finished: Path, tiny_training: TrainingSettings, train: Train
) -> None:
    with pytest.raises(UserError, match=r"holds another run \(rank was 2, now 3\)"):
        train(replace(tiny_training, rank=3), finished)


def test_a_directory_of_something_else_is_left_alone(
    tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        train(tiny_training, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_changed_data_are_refused(
    tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = replace(tiny_training, data=(str(path),), steps=2)
    run = train(settings, tmp_path / "run")
    (run / "metrics.json").unlink()
    path.write_text("\n".join(map(json.dumps, rows[:-1])))
    with pytest.raises(UserError, match="data_sha256 was"):
        train(settings, run)
