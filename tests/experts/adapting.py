"""MoELoRA adapters on tiny models, for tests of experts and heads."""

from typing import Any

import peft
import torch

from interp.models.quiet import quiet_libraries
from interp.moelora import MoELoRAConfig

R, EXPERTS = 2, 4


def adapt(base: Any, *, fill: float = 0.3, **config: Any) -> Any:
    """A PEFT model, with experts that add something unless ``fill`` is zero."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "r": R,
        "num_experts": EXPERTS,
        "top_k": 2,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    with quiet_libraries():  # PEFT asks transformers for a name that it will drop
        adapted = peft.get_peft_model(base, MoELoRAConfig(**(settings | config)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "moelora_B" in name and fill:
                parameter.normal_(std=fill)
    return adapted.eval()


def layer_of(adapted: Any, layer: int, target: str) -> Any:
    return adapted.get_base_model().model.layers[layer].self_attn.get_submodule(target)
