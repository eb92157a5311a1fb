"""The long benchmark: the order of its runs, going on, and publishing what is finished."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from interp.files.documents import read_json
from interp.moelora.training.trainer import Diverged
from interp.moelora.training.training import TrainingSettings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = load("moelora_training")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(module, "base_metrics", lambda *args, **more: {})
    return module


@pytest.fixture
def plan(benchmark: ModuleType, tmp_path: Path) -> Any:
    """Two seeds, two rates, and a fifth of 200 sums held out; nothing is trained in these tests."""
    for name in ("mawps-asdiv-a", "ARC-Easy", "openbookqa", "boolq"):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        rows = [{"prompt": f"{name} {i} + 2?", "answer": str(i + 2)} for i in range(200)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "tasks" / name / "train.jsonl").write_text(text)
    return benchmark.Plan(
        tasks=tmp_path / "tasks",
        out=tmp_path / "out",
        seeds=(0, 1),
        rates=(0.01, 0.1),
        top_k=(1,),
        top_k_seeds=(0,),
    )


Trained = list[tuple[str, TrainingSettings]]


@pytest.fixture
def trained(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Runs as they were asked for. MoELoRA is right everywhere, LoRA nowhere, at any rate."""
    asked: Trained = []

    def train(settings: TrainingSettings, run: Path, **more: Any) -> Path:
        if (run / "metrics.json").is_file():
            return run
        asked.append((f"{run.parent.name}/{run.name}", settings))
        run.mkdir(parents=True)
        if settings.method == "lora" and settings.learning_rate == 0.1:
            raise Diverged("no number")
        tasks = [Path(source).name for source in settings.data]
        right = settings.method == "moelora"
        rows = [
            {"task": task, "subject": f"{i}", "prompt": f"{task} {i}", "right": right}
            for task in tasks
            for i in range(3)
        ]
        loss = abs(settings.learning_rate - (0.1 if settings.method == "moe" else 0.01))
        accuracy = {task: {"value": float(right)} for task in (*tasks, "mean")}
        experts = {"dead_experts": 0.0, "load_smallest": 1.0, "load_largest": 1.0}
        metrics = {
            "trainable_parameters": 8,
            "steps": settings.steps,
            "seconds_per_step": 2.0,
            "accuracy": accuracy,
            "held_out_loss": dict.fromkeys(tasks, loss),
            "last_step": {} if settings.method == "lora" else experts,
        }
        (run / "losses.csv").write_text("step,loss\n1,2.0\n")
        (run / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (run / "metrics.json").write_text(json.dumps(metrics))
        return run

    monkeypatch.setattr(benchmark, "train_moelora", train)
    return asked


def test_seed_by_seed_at_the_rates_that_were_chosen(
    benchmark: ModuleType, plan: Any, trained: Trained
) -> None:
    benchmark.main(replace(plan, groups=("math",)))
    assert [name for name, _ in trained] == [
        *("rates/lora-0.01", "rates/moe-0.01", "rates/moelora-0.01"),
        *("rates/lora-0.1", "rates/moe-0.1", "rates/moelora-0.1"),
        *("runs/lora-seed0", "runs/moe-seed0", "runs/moelora-seed0"),
        *("runs/lora-seed1", "runs/moe-seed1", "runs/moelora-seed1"),
        "runs/top1-seed0",
    ]
    settings = dict(trained)
    assert settings["rates/moe-0.1"].steps == 60
    assert "validation" in settings["rates/moe-0.1"].data[0]
    chosen = {name: settings[f"runs/{name}-seed1"].learning_rate for name in ("lora", "moe")}
    assert chosen == {"lora": 0.01, "moe": 0.1}
    assert settings["runs/moe-seed1"].data == (str(plan.tasks / "mawps-asdiv-a"),)
    assert settings["runs/top1-seed0"].top_k == 1
    benchmark.main(replace(plan, groups=("math",)))
    assert len(trained) == 13  # what is finished, or has diverged, is not trained again


def test_what_is_finished_is_published_with_its_seeds(
    benchmark: ModuleType, plan: Any, trained: Trained, tmp_path: Path
) -> None:
    """Seed 1 lacks a method in math, and the other group is not begun."""
    benchmark.main(replace(plan, groups=("math",)))
    (plan.out / "math" / "runs" / "moe-seed1" / "metrics.json").unlink()
    before = len(trained)
    benchmark.main(replace(plan, publish=True))
    assert len(trained) == before
    content = read_json(tmp_path / "results.json")
    math, other = content["groups"]["math"], content["groups"]["common-sense"]
    assert math["seeds"] == [0]
    assert math["comparison"]["methods"]["lora"]["seeds"] == [0]
    assert math["comparison"]["contrastive_gain"]["mawps-asdiv-a"]["mean"] == 1.0
    assert math["rates"]["lora"]["tried"][1]["loss"] is None
    assert [found["seeds"] for found in math["top_k"]] == [[0]]
    assert (other["trials"], other["seeds"], other["comparison"]) == ([0, 6], [], None)
    assert content["all_sets"] is None
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()


def test_all_sets_weigh_alike_and_the_page_says_so(
    benchmark: ModuleType, plan: Any, trained: Trained, tmp_path: Path
) -> None:
    benchmark.main(plan)
    benchmark.main(replace(plan, publish=True))
    content = read_json(tmp_path / "results.json")
    gain = content["all_sets"]["moelora_less_lora"]
    assert list(gain) == ["mawps-asdiv-a", "ARC-Easy", "openbookqa", "boolq", "mean"]
    assert gain["mean"]["by_seed"] == [1.0, 1.0]
    text = load("moelora_page").training_text(content)
    assert "2 of 2 seeds are finished" in text
    assert "**" in text
    assert "| MoELoRA over LoRA, math | +4.2 | +100.0 (" in text
    assert "diverged" in text


def test_a_page_of_a_run_that_has_just_begun(
    benchmark: ModuleType, plan: Any, trained: Trained, tmp_path: Path
) -> None:
    benchmark.main(replace(plan, publish=True))
    text = load("moelora_page").training_text(read_json(tmp_path / "results.json"))
    assert text.count("Not begun.") == 2
    assert "no seed is finished" in text


def test_an_unknown_group(benchmark: ModuleType, plan: Any) -> None:
    with pytest.raises(Exception, match="unknown group 'maths'; known: math, common-sense"):
        replace(plan, groups=("maths",))
