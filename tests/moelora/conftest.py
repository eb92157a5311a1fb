"""Tiny adapted models, and MoELoRA written out one expert at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from interp.moelora import MoELoRAConfig

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
