"""What an evaluation has finished is taken up, and the outcome has the same bytes."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interp.commands.evaluate as evaluate_module
from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import load_run
from interp.evaluation.jobs import AnswersJob, PreferenceJob, greedy_texts, preference_values
from interp.heads.headset import HeadSet
from interp.heads.locate import as_encoded
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.jobs import OutputSpec
from interp.models import HookedModel, fingerprint, from_hf
from interp.premises import Premises
from interp.runs.identity import conditions
from interp.runs.job_runner import StoredJobRunner
from interp.runs.shards import InProcess
from tests.fixtures import make_planted_hf_model
from tests.runs.stopping import Stopping

VALUES, TEXTS = OutputSpec({"values": 3}), OutputSpec(texts=True)
SETTINGS = EvaluateSettings(heads=1.0, random_sets=20, counts=(1, 2))


def evaluated(
    model: Any, run: Path, engine: Any, settings: EvaluateSettings = SETTINGS
) -> dict[str, str]:
    _, split, effects = load_run(run)
    evaluate_run(model, split, effects, settings=settings, run=run, engine=engine, progress=False)
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
        made += engine.made
    # And once when all sweeps and answers are there, at the very end.
    asked: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "_write", interrupted)
        engine = Stopping(planted)
        with pytest.raises(KeyboardInterrupt):
            evaluated(planted, tmp_path / "stopped", engine)
        assert made + engine.made == total
    engine = Stopping(planted)
    with monkeypatch.context() as patch:
        patch.setattr("interp.evaluation.jobs.greedy_answers", asked.append)
        assert evaluated(planted, tmp_path / "stopped", engine) == whole
    assert engine.made == 0
    assert asked == []


def test_a_model_in_another_dtype_takes_nothing_from_them(
    planted: HookedModel, word_tokenizer: Any, planted_run: Path, tmp_path: Path
) -> None:
    run, settings = shutil.copytree(planted_run, tmp_path / "run"), replace(SETTINGS, counts=(1,))
    whole = evaluated(planted, run, Stopping(planted), settings)
    rough = from_hf(
        make_planted_hf_model(word_tokenizer).to(torch.bfloat16),
        word_tokenizer,
        fingerprint=fingerprint(planted),
    )
    engine = Stopping(rough)
    assert evaluated(rough, run, engine, settings) != whole
    assert engine.made >= 10
    assert json.loads((run / "evaluation.json").read_text())["dtype"] == "bfloat16"
    engine = Stopping(planted)
    assert evaluated(planted, run, engine, settings) == whole
    assert engine.made >= 10  # the other dtype's shards have taken their place


def test_kept_values_are_those_of_one_sweep(
    planted: HookedModel, planted_premises: Premises, tmp_path: Path
) -> None:
    encoded = as_encoded(planted, planted_premises)
    sets = (HeadSet(()), HeadSet(((0, 1),)), HeadSet(((1, 2), (0, 1))))
    job = PreferenceJob(encoded, "false", Constraint(HeadSet(()), "resample"), sets)
    stages = StoredJobRunner(tmp_path / "s", InProcess(planted), conditions(planted))

    def values(job: PreferenceJob) -> torch.Tensor:
        done = stages.run(
            preference_values, planted, job, description="", output=VALUES, progress=False
        )
        return done.tensors["values"]

    kept = values(job)
    torch.testing.assert_close(kept, preference_values(planted, job).tensors["values"])
    files = {path.name for path in (tmp_path / "s").iterdir()}
    assert len(files) == 4  # 64 prompts, 16 a shard
    assert torch.equal(values(job), kept)
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
        values(other)
        assert len(list((tmp_path / "s").iterdir())) > before
    with pytest.raises(ValueError, match="mean is over all prompts"):
        values(replace(job, constraint=Constraint(HeadSet(()), "mean")))


def test_answers_are_given_once(
    planted: HookedModel, planted_premises: Premises, tmp_path: Path
) -> None:
    encoded = as_encoded(planted, planted_premises)
    prompts = tuple(tuple(item.false.tokens) for item in encoded.items)
    job = AnswersJob(prompts, max_new_tokens=2, prompts_per_shard=24)
    engine = Stopping(planted)
    stages = StoredJobRunner(tmp_path, engine, conditions(planted))

    def said(job: AnswersJob, stages: StoredJobRunner = stages) -> list[str]:
        done = stages.run(greedy_texts, planted, job, description="", output=TEXTS, progress=False)
        return list(done.texts)

    at_once = greedy_texts(planted, job).texts
    assert len(set(at_once)) > 4
    assert said(job) == at_once
    assert said(job) == at_once
    assert engine.made == 3  # of 64 prompts
    spans = tuple(item.false.object for item in encoded.items)
    held = replace(job, under=Intervention.of([(0, 1)], site="output"), at=spans)
    constrained = said(held)
    assert constrained == greedy_texts(planted, held).texts
    assert constrained != at_once
    made = engine.made
    for other in (
        replace(job, max_new_tokens=3),
        replace(job, prompts_per_shard=16),
        replace(held, at=tuple((begin - 1, end) for begin, end in spans)),
        held.take(range(10)),
    ):
        said(other)
        assert engine.made > made
        made = engine.made
    said(job, replace(stages, conditions={"fingerprint": "cd"}))
    assert engine.made == made + 3
