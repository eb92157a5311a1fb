"""Training settings that make no sense, or do not fit the data or the model, and loading it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.errors import UserError
from interp.moelora.config import MoELoRAConfig
from interp.moelora.training.pretrained import load_pretrained
from interp.moelora.training.training import TrainingSettings

Train = Callable[[TrainingSettings, Path], Path]


def test_data_that_do_not_fill_a_batch(
    tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    with pytest.raises(UserError, match="60 training examples do not fill one batch of 64"):
        train(replace(tiny_training, batch=64), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_longer_than_the_context(
    tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    with pytest.raises(UserError, match=r"max_length is 4096, but .* reads at most 512"):
        train(replace(tiny_training, max_length=4096), tmp_path / "run")
    with pytest.raises(UserError, match="examples are longer than 30 tokens"):
        train(replace(tiny_training, max_length=30), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loss_that_is_no_number_is_told(
    tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    settings = replace(
        tiny_training, learning_rate=3e38, warmup=0.0, schedule="constant", method="lora"
    )
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


def test_unknown_model_and_dtype(
    tiny_training: TrainingSettings, tmp_path: Path, train: Train
) -> None:
    with pytest.raises(UserError, match="unknown model 'gpt-9'"):
        train(replace(tiny_training, model="gpt-9"), tmp_path / "run")
    with pytest.raises(UserError, match="unknown dtype 'int3'; known: float32, bfloat16"):
        load_pretrained(tiny_training.model, dtype="int3")


def test_pretrained_is_what_transformers_loads(model_folder: Path) -> None:
    ids = torch.arange(5)[None]
    expected = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    with torch.no_grad():
        assert torch.equal(load_pretrained(model_folder).model(ids).logits, expected(ids).logits)


def test_defaults_of_the_adapter_stand_in_one_place() -> None:
    """But for the projections, which PEFT would choose by the model, and the task."""
    made, default = TrainingSettings().adapter().to_dict(), MoELoRAConfig().to_dict()
    assert {key for key in default if made[key] != default[key]} == {"target_modules", "task_type"}
    assert (default["load_balance_weight"], default["contrastive_weight"]) == (1.0, 0.1)
