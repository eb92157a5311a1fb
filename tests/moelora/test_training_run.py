"""A training run as a whole: its directory, its adapter, its seed, two processes."""

import json
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

from interp.commands.train import load_data
from interp.files.documents import read_json
from interp.forward.generate import greedy_answers
from interp.moelora import load_adapter
from interp.moelora.data.encoding import encode_prompt, end_token
from interp.moelora.training.pretrained import load_pretrained
from interp.moelora.training.training import TrainingSettings

Train = Callable[[TrainingSettings, Path], Path]
SameWeights = Callable[[Path, Path], bool]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_run_directory_is_complete(finished: Path, tiny_training: TrainingSettings) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "adapter",
        "config.yaml",
        "losses.csv",
        "manifest.json",
        "metrics.json",
        "predictions.jsonl",
        "trainer_state.json",
        "training.json",
    }
    manifest = read_json(finished / "manifest.json")
    base = load_pretrained(tiny_training.model)
    recorded = {"spec": tiny_training.model, "folder": tiny_training.model}
    assert manifest["model"] == {**recorded, "fingerprint": base.fingerprint}
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


def test_config_repeats_the_run(finished: Path, tiny_training: TrainingSettings) -> None:
    content = yaml.safe_load((finished / "config.yaml").read_text())
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    assert TrainingSettings(**(content | lists)) == tiny_training


def test_adapter_loads_and_answers_as_in_the_run(
    finished: Path, tiny_training: TrainingSettings
) -> None:
    base = load_pretrained(tiny_training.model)
    adapted = peft.PeftModel.from_pretrained(base.model, str(finished / "adapter"))
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    data = load_data(base, tiny_training)
    prompts = [encode_prompt(base.tokenizer, row["prompt"]) for row in rows]
    said = greedy_answers(
        adapted,
        base.tokenizer,
        prompts,
        end=end_token(base.tokenizer),
        max_new_tokens=data.max_new_tokens,
        progress=False,
    )
    assert said == [row["said"] for row in rows]


@pytest.mark.parametrize("method", ["moelora", "lora"])
def test_the_adapter_names_its_base_model_as_the_user_did(
    method: Any,
    train: Train,
    tiny_training: TrainingSettings,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Not by where its files are here; it loads all the same, and knows another base model."""
    monkeypatch.chdir(model_folder.parent)
    settings = replace(tiny_training, model=model_folder.name, method=method, steps=2)
    adapter = train(settings, tmp_path / "run") / "adapter"
    config = read_json(adapter / "adapter_config.json")
    assert config["base_model_name_or_path"] == "tiny"
    for file in adapter.iterdir():
        assert str(model_folder).encode() not in file.read_bytes()
    base = load_pretrained(settings.model)
    loaded = peft.PeftModel.from_pretrained(base.model, str(adapter))
    assert loaded.peft_config["default"].base_model_name_or_path == "tiny"
    if method == "moelora":
        assert config["base"]["hidden_size"] == base.model.config.hidden_size
        again = load_adapter(load_pretrained(settings.model).model, adapter)
        ids = torch.arange(6)[None]
        with torch.no_grad():
            assert torch.equal(again(ids).logits, loaded(ids).logits)


def test_training_lowers_the_loss(
    model_folder: Path, tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    """With the learning rate at nothing, the control, it stays."""
    found = {}
    for rate in (1e-2, 1e-9):
        settings = replace(
            tiny_training,
            learning_rate=rate,
            steps=20,
            log_every=20,
            method="lora",
            limit=8,
            accumulate=1,
        )
        run = train(settings, tmp_path / str(rate))
        found[rate] = read_json(run / "metrics.json")["held_out_loss"]["sums"]
    assert found[1e-2] < found[1e-9] - 0.5


@pytest.mark.parametrize("method", ["lora", "moe"])
def test_other_methods_train(
    method: Any, tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    run = train(replace(tiny_training, method=method, steps=2), tmp_path / "run")
    config = read_json(run / "adapter" / "adapter_config.json")
    assert config["peft_type"] == ("LORA" if method == "lora" else "MOELORA")
    cosine = read_json(run / "metrics.json")["expert_cosine"]
    assert (cosine is None) == (method == "lora")


def test_same_seed_same_weights_other_seed_other_weights(
    finished: Path,
    tiny_training: TrainingSettings,
    tmp_path: Path,
    train: Train,
    same_weights: SameWeights,
) -> None:
    assert same_weights(finished, train(tiny_training, tmp_path / "same"))
    other = train(replace(tiny_training, seed=1), tmp_path / "other")
    assert not same_weights(finished, other)


def test_mixed_precision_and_checkpointing(
    tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    settings = replace(
        tiny_training, dtype="bfloat16", checkpointing=True, dropout=0.0, router_noise=0.0
    )
    run = train(settings, tmp_path / "run")
    assert {one.dtype for one in weights(run).values()} == {torch.float32}
    mixed = read_json(run / "metrics.json")["held_out_loss"]["sums"]
    full = replace(settings, dtype="float32", checkpointing=False)
    exact = read_json(train(full, tmp_path / "full") / "metrics.json")
    assert mixed == pytest.approx(exact["held_out_loss"]["sums"], abs=0.1)


def test_checkpointing_changes_nothing(
    tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    settings = replace(tiny_training, checkpointing=True)
    plain, less = train(tiny_training, tmp_path / "plain"), train(settings, tmp_path / "less")
    a, b = weights(plain), weights(less)
    assert all(float((a[name] - b[name]).abs().max()) < 1e-6 for name in a)
