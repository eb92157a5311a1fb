"""Tiny adapted models, and a training run on a tiny model that takes a second."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from interp.commands.train import train_moelora
from interp.moelora import MoELoRAConfig
from interp.moelora.training.training import TrainingSettings

# transformers renames gradient checkpointing; PEFT, and versions before, know the old names only.
OLD_NAMES = "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(OLD_NAMES))


@torch.no_grad()
def fill_up_projections(model: nn.Module, *, std: float = 0.3, seed: int = 1) -> None:
    """As if trained: experts that add something."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "moelora_B" in name:
            parameter.normal_(std=std)


@pytest.fixture(scope="session")
def fill() -> Callable[..., None]:
    return fill_up_projections


AdaptedFactory = Callable[..., Any]


@pytest.fixture(scope="session")
def adapt(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> AdaptedFactory:
    """``adapt(family="llama", filled=True, model={}, **config)``: a tiny PEFT model."""

    def make(
        family: str = "llama", *, filled: bool = True, model: Any = None, **config: Any
    ) -> Any:
        base = hf_factory(family, plain_tokenizer, **(model or {}))
        settings = {"r": 2, "num_experts": 4, "top_k": 2, "task_type": "CAUSAL_LM"}
        if family == "gpt2":
            settings["target_modules"] = ["c_attn"]
        torch.manual_seed(0)
        adapted = peft.get_peft_model(base, MoELoRAConfig(**(settings | config)))
        if filled:
            fill_up_projections(adapted)
        return adapted.eval()

    return make


@pytest.fixture
def batch(plain_tokenizer: Any) -> dict[str, torch.Tensor]:
    """Three prompts of 9 tokens; the first begins with three columns of padding."""
    ids = torch.randint(2, len(plain_tokenizer), (3, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="session")
def model_folder(
    hf_factory: Callable[..., Any], chat_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny model on disk, as transformers saves it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    hf_factory("llama", chat_tokenizer, num_hidden_layers=2).save_pretrained(path)
    chat_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 90 short sums, of which about a fifth is held out."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"prompt": f"{i} + {i % 7}?", "answer": str(i + i % 7)} for i in range(90)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="session")
def tiny_training(model_folder: Path, sums: Path) -> TrainingSettings:
    """Six steps, fewer than an epoch has; every kind of randomness is on."""
    return TrainingSettings(
        model=str(model_folder),
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


@pytest.fixture(scope="session")
def train() -> Callable[[TrainingSettings, Path], Path]:
    return partial(train_moelora, device="cpu", progress=False)


@pytest.fixture(scope="session")
def finished(
    tiny_training: TrainingSettings, train: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of `tiny_training`; no test changes it."""
    return train(tiny_training, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def same_weights() -> Callable[[Path, Path], bool]:
    """Whether two runs' adapters are the same to the last bit."""

    def same(run: Path, other: Path) -> bool:
        files = [one / "adapter" / "adapter_model.safetensors" for one in (run, other)]
        a, b = map(load_file, files)
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    return same
