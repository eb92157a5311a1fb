"""A training run as a whole: its directory, resuming to the last bit, two processes, bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback

import interp.runs.moelora
from interp.errors import UserError
from interp.moelora.encoding import encode_prompt
from interp.moelora.pretrained import load_pretrained
from interp.moelora.scoring import greedy_answers
from interp.moelora.trainer import WHOLE, last_checkpoint
from interp.moelora.training import TrainingSettings
from interp.runs.moelora import load_data, train_moelora
from interp.runs.store import read_json

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(
    hf_factory: Callable[..., Any], chat_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny model on disk, as transformers saves it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    hf_factory("llama", chat_tokenizer, num_hidden_layers=2).save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 90 short sums, of which about a fifth is held out."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"prompt": f"{i} + {i % 7}?", "answer": str(i + i % 7)} for i in range(90)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def tiny(folder: Path, sums: Path) -> TrainingSettings:
    """Six steps, fewer than an epoch has; every kind of randomness is on."""
    return TrainingSettings(
        model=str(folder),
        data=(str(sums),),
        limit=60,
        test_limit=4,
        experts=4,
        rank=2,
        dropout=0.1,
        router_noise=0.1,
        steps=6,
        batch=4,
        accumulate=2,
        log_every=2,
        save_every=2,
    )


def train(settings: TrainingSettings, run: Path) -> Path:
    return train_moelora(settings, run, device="cpu", progress=False)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tiny: TrainingSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny, tmp_path_factory.mktemp("runs") / "finished")


class _Interrupt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def add_callback(monkeypatch: pytest.MonkeyPatch, callback: TrainerCallback) -> None:
    """Have every run's Trainer call `callback`."""
    make = interp.runs.moelora.make_trainer

    def make_with_callback(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.add_callback(callback)
        return trainer

    monkeypatch.setattr(interp.runs.moelora, "make_trainer", make_with_callback)


@pytest.fixture
def interrupted(tiny: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped after its fifth step; the checkpoints are of the second and fourth."""
    with monkeypatch.context() as patched:
        add_callback(patched, _Interrupt(5))
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    return tmp_path / "run"


def test_run_directory_is_complete(finished: Path, tiny: TrainingSettings) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "adapter", "config.yaml", "losses.csv", "manifest.json", "metrics.json",
        "predictions.jsonl", "trainer_state.json", "training.json",
    }  # fmt: skip
    manifest = read_json(finished / "manifest.json")
    base = load_pretrained(tiny.model)
    assert manifest["model"] == {"spec": tiny.model, "fingerprint": base.fingerprint}
    assert manifest["versions"]["peft"] == peft.__version__
    metrics = read_json(finished / "metrics.json")
    assert (metrics["method"], metrics["steps"], metrics["n_train"]) == ("moelora", 6, 60)
    assert metrics["trainable_parameters"] == sum(one.numel() for one in weights(finished).values())
    assert set(metrics["accuracy"]) == set(metrics["held_out_loss"]) == {"sums"}
    assert metrics["accuracy"]["sums"]["n"] == 4
    lines = (finished / "losses.csv").read_text().splitlines()
    assert len(lines) == 1 + 3
    assert lines[0].startswith("step,epoch,loss,")
    for column in ("language_loss", "load_balance", "contrastive", "load_smallest", "dead_experts"):
        assert column in lines[0].split(",")


def test_config_repeats_the_run(finished: Path, tiny: TrainingSettings) -> None:
    content = yaml.safe_load((finished / "config.yaml").read_text())
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    assert TrainingSettings(**(content | lists)) == tiny


def test_adapter_loads_and_answers_as_in_the_run(finished: Path, tiny: TrainingSettings) -> None:
    base = load_pretrained(tiny.model)
    adapted = peft.PeftModel.from_pretrained(base.model, str(finished / "adapter"))
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    data = load_data(base, tiny)
    prompts = [encode_prompt(base.tokenizer, row["prompt"]) for row in rows]
    said = greedy_answers(
        adapted, base.tokenizer, prompts, max_new_tokens=data.max_new_tokens, progress=False
    )
    assert said == [row["said"] for row in rows]


def test_training_lowers_the_loss(folder: Path, tiny: TrainingSettings, tmp_path: Path) -> None:
    """With the learning rate at nothing, the control, it stays."""
    found = {}
    for rate in (1e-2, 1e-9):
        settings = replace(
            tiny, learning_rate=rate, steps=20, log_every=20, method="lora", limit=8, accumulate=1
        )
        run = train(settings, tmp_path / str(rate))
        found[rate] = read_json(run / "metrics.json")["held_out_loss"]["sums"]
    assert found[1e-2] < found[1e-9] - 0.5


@pytest.mark.parametrize("method", ["lora", "moe"])
def test_other_methods_train(method: Any, tiny: TrainingSettings, tmp_path: Path) -> None:
    run = train(replace(tiny, method=method, steps=2), tmp_path / "run")
    config = read_json(run / "adapter" / "adapter_config.json")
    assert config["peft_type"] == ("LORA" if method == "lora" else "MOELORA")
    cosine = read_json(run / "metrics.json")["expert_cosine"]
    assert (cosine is None) == (method == "lora")


def test_same_seed_same_weights_other_seed_other_weights(
    finished: Path, tiny: TrainingSettings, tmp_path: Path
) -> None:
    assert equal(weights(finished), weights(train(tiny, tmp_path / "same")))
    other = weights(train(replace(tiny, seed=1), tmp_path / "other"))
    assert not equal(weights(finished), other)


class _Count(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


def test_resumed_run_ends_with_the_same_bits(
    interrupted: Path, finished: Path, tiny: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path.name for path in (interrupted / "checkpoints").iterdir()} == {
        "checkpoint-2",
        "checkpoint-4",
    }
    counter = _Count()
    add_callback(monkeypatch, counter)
    train(tiny, interrupted)
    assert counter.steps == [5, 6]
    assert equal(weights(interrupted), weights(finished))
    assert (interrupted / "losses.csv").read_text() == (finished / "losses.csv").read_text()
    assert (interrupted / "predictions.jsonl").read_text() == (
        finished / "predictions.jsonl"
    ).read_text()


def test_run_interrupted_while_it_is_scored_is_not_trained_further(
    finished: Path, tiny: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(interp.runs.moelora, "metrics_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "run")
    train(tiny, tmp_path / "run")
    assert equal(weights(tmp_path / "run"), weights(finished))
    assert read_json(tmp_path / "run" / "metrics.json")["steps"] == tiny.steps
    for name in ("losses.csv", "predictions.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (finished / name).read_text()


def test_unfinished_checkpoint_is_passed_over(
    interrupted: Path, finished: Path, tiny: TrainingSettings, caplog: pytest.LogCaptureFixture
) -> None:
    newest = interrupted / "checkpoints" / "checkpoint-4"
    (newest / WHOLE).unlink()
    (newest / "optimizer.pt").write_bytes(b"")
    assert last_checkpoint(interrupted / "checkpoints") == newest.with_name("checkpoint-2")
    train(tiny, interrupted)
    assert "cut short while it was written: passed over" in caplog.text
    assert equal(weights(interrupted), weights(finished))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", WHOLE])
def test_checkpoint_cut_short_later_is_told(
    name: str, interrupted: Path, tiny: TrainingSettings
) -> None:
    file = interrupted / "checkpoints" / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[:-20])
    said = "cannot be read" if name == WHOLE else "is cut short"
    with pytest.raises(UserError, match=said) as caught:
        train(tiny, interrupted)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_finished_run_is_returned_as_it_is(finished: Path, tiny: TrainingSettings) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    train(tiny, finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_other_settings_in_the_same_directory_are_refused(
    finished: Path, tiny: TrainingSettings
) -> None:
    with pytest.raises(UserError, match=r"holds another run \(rank was 2, now 3\)"):
        train(replace(tiny, rank=3), finished)


def test_a_directory_of_something_else_is_left_alone(
    tiny: TrainingSettings, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        train(tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_changed_data_are_refused(tiny: TrainingSettings, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i} + 1?", "answer": str(i + 1)} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = replace(tiny, data=(str(path),), steps=2)
    run = train(settings, tmp_path / "run")
    (run / "metrics.json").unlink()
    path.write_text("\n".join(map(json.dumps, rows[:-1])))
    with pytest.raises(UserError, match="data_sha256 was"):
        train(settings, run)


def test_mixed_precision_and_checkpointing(tiny: TrainingSettings, tmp_path: Path) -> None:
    settings = replace(tiny, dtype="bfloat16", checkpointing=True, dropout=0.0, router_noise=0.0)
    run = train(settings, tmp_path / "run")
    assert {one.dtype for one in weights(run).values()} == {torch.float32}
    mixed = read_json(run / "metrics.json")["held_out_loss"]["sums"]
    full = replace(settings, dtype="float32", checkpointing=False)
    exact = read_json(train(full, tmp_path / "full") / "metrics.json")
    assert mixed == pytest.approx(exact["held_out_loss"]["sums"], abs=0.1)


def test_checkpointing_changes_nothing(tiny: TrainingSettings, tmp_path: Path) -> None:
    settings = replace(tiny, checkpointing=True)
    plain, less = train(tiny, tmp_path / "plain"), train(settings, tmp_path / "less")
    a, b = weights(plain), weights(less)
    assert all(float((a[name] - b[name]).abs().max()) < 1e-6 for name in a)


LAUNCHED = """
import sys
from pathlib import Path
from interp.moelora.training import TrainingSettings
from interp.runs.moelora import train_moelora
model, data, run = sys.argv[1:]
settings = TrainingSettings(
    model=model, data=(data,), limit=60, test_limit=4, experts=4, rank=2, dropout=0.1,
    router_noise=0.1, steps=6, batch=4, accumulate=1, log_every=2, save_every=2,
)
train_moelora(settings, Path(run), device="cpu", progress=False)
"""


def test_two_processes_train_as_one(
    folder: Path, sums: Path, finished: Path, tmp_path: Path
) -> None:
    """Two processes with one micro-batch each take the steps of one process with two."""
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    words = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", str(script), str(folder), str(sums),
        str(tmp_path / "run"),
    ]  # fmt: skip
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    metrics = read_json(run / "metrics.json")
    assert metrics["processes"] == 2
    one, two = weights(finished), weights(run)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    logged = [read_json(path / "metrics.json")["last_step"] for path in (finished, run)]
    for line in logged:
        # Batches of an epoch are counted in whole ones, and two processes take two at a time.
        del line["seconds_per_step"], line["epoch"]
    assert logged[1] == pytest.approx(logged[0], abs=1e-5)


def test_data_that_do_not_fill_a_batch(tiny: TrainingSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="60 training examples do not fill one batch of 64"):
        train(replace(tiny, batch=64), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_longer_than_the_context(tiny: TrainingSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_length is 4096, but .* reads at most 512"):
        train(replace(tiny, max_length=4096), tmp_path / "run")
    with pytest.raises(UserError, match="examples are longer than 30 tokens"):
        train(replace(tiny, max_length=30), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loss_that_is_no_number_is_told(tiny: TrainingSettings, tmp_path: Path) -> None:
    settings = replace(tiny, learning_rate=3e38, warmup=0.0, schedule="constant", method="lora")
    with pytest.raises(UserError, match="no longer a finite number at step 2: choose a smaller"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch": -1}, "batch must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"warmup": 1.0}, "warmup must be a share"),
        ({"held_out": 0.0}, "held_out must be a share"),
        ({"data": ()}, "data must be at least one source"),
        ({"top_k": 9}, "top_k=9 is more than the 8 experts"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"scaling": -1.0}, "scaling must be above 0"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TrainingSettings(**wrong)


def test_unknown_model_and_dtype(tiny: TrainingSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown model 'gpt-9'"):
        train(replace(tiny, model="gpt-9"), tmp_path / "run")
    with pytest.raises(UserError, match="unknown dtype 'int3'; known: float32, bfloat16"):
        load_pretrained(tiny.model, dtype="int3")


def test_pretrained_is_what_transformers_loads(folder: Path) -> None:
    ids = torch.arange(5)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(load_pretrained(folder).model(ids).logits, expected(ids).logits)
