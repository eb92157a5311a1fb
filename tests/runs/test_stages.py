"""What an evaluation has finished is taken up, and the outcome has the same bytes."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interp.runs.evaluate as evaluate_module
from interp.evaluation.stages import PreferenceJob, preference_values
from interp.heads.headset import HeadSet
from interp.heads.locate import as_encoded
from interp.interventions.constraint import Constraint
from interp.models import HookedModel, fingerprint
from interp.premises import Premises
from interp.runs.evaluate import EvaluateSettings, evaluate_run
from interp.runs.locate import load_run
from interp.runs.shards import InProcess, Shard
from interp.runs.stages import StoredStages

SETTINGS = EvaluateSettings(heads=1.0, random_sets=20, counts=(1, 2))


class Stopping:
    """The engine in this process, which counts shards and is interrupted at one of them."""

    def __init__(self, model: Any, at: int = 0) -> None:
        self.inner, self.at, self.made = InProcess(model), at, 0

    def run(self, work: Any, jobs: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Shard]]:
        for number, shard in self.inner.run(work, jobs):
            self.made += 1
            if self.made == self.at:
                raise KeyboardInterrupt
            yield number, shard


def evaluated(model: Any, run: Path, engine: Any) -> dict[str, str]:
    _, split, effects = load_run(run)
    evaluate_run(model, split, effects, SETTINGS, run, engine=engine, progress=False)
    assert not (run / "shards").exists()
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.iterdir()
        if path.is_file()
    }


def test_an_interrupted_evaluation_gives_the_same_bytes(
    planted: HookedModel, planted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "stopped"):
        shutil.copytree(planted_run, tmp_path / name)
    engine = Stopping(planted)
    whole = evaluated(planted, tmp_path / "whole", engine)
    total = engine.made
    assert total >= 10
    made = 0
    for at in (3, 5):
        engine = Stopping(planted, at)
        with pytest.raises(KeyboardInterrupt):
            evaluated(planted, tmp_path / "stopped", engine)
        made += engine.made - 1
    # And once when all sweeps and answers are there, at the very end.
    asked: list[int] = []

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "_write", interrupted)
        engine = Stopping(planted)
        with pytest.raises(KeyboardInterrupt):
            evaluated(planted, tmp_path / "stopped", engine)
        assert made + engine.made == total
    engine = Stopping(planted)
    with monkeypatch.context() as patch:
        patch.setattr("interp.evaluation.answers.generate_tokens", asked.append)
        assert evaluated(planted, tmp_path / "stopped", engine) == whole
    assert engine.made == 0
    assert asked == []


def test_kept_values_are_those_of_one_sweep(
    planted: HookedModel, planted_premises: Premises, tmp_path: Path
) -> None:
    encoded = as_encoded(planted, planted_premises)
    sets = (HeadSet(()), HeadSet(((0, 1),)), HeadSet(((1, 2), (0, 1))))
    job = PreferenceJob(encoded, "false", Constraint(HeadSet(()), "resample"), sets)
    stages = StoredStages(tmp_path / "s", InProcess(planted), fingerprint(planted))
    kept = stages.values(planted, job, progress=False)
    torch.testing.assert_close(kept, preference_values(planted, job, progress=False))
    files = {path.name for path in (tmp_path / "s").iterdir()}
    assert len(files) == 4  # 64 prompts, 16 a shard
    assert torch.equal(stages.values(planted, job, progress=False), kept)
    assert {path.name for path in (tmp_path / "s").iterdir()} == files
    others = (
        replace(job, kind="twin"),
        replace(job, sets=sets[:2]),
        replace(job, constraint=Constraint(HeadSet(()), "zero")),
        replace(job, budget=2**26),
        job.take(range(32)),
    )
    for other in others:
        before = len(list((tmp_path / "s").iterdir()))
        stages.values(planted, other, progress=False)
        assert len(list((tmp_path / "s").iterdir())) > before
    with pytest.raises(ValueError, match="mean is over all prompts"):
        stages.values(planted, replace(job, constraint=Constraint(HeadSet(()), "mean")))


def test_texts_are_made_once(planted: HookedModel, tmp_path: Path) -> None:
    stages = StoredStages(tmp_path, InProcess(planted), "ab")
    made: list[int] = []

    def make() -> list[str]:
        made.append(1)
        return ["ä", "=b()\n", "\ud800"]

    for _ in range(2):
        assert stages.texts({"prompts": [[1]]}, make) == ["ä", "=b()\n", "\ud800"]
    assert len(made) == 1
    stages.texts({"prompts": [[2]]}, make)
    replace(stages, fingerprint="cd").texts({"prompts": [[1]]}, make)
    assert len(made) == 3
