"""A planted adapter: which expert a token goes to is known, because it was put there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from interp.experts import CollectSettings, RoutingRecords, collect_routing
from interp.moelora import MoELoRAConfig
from interp.moelora.layer import MoELoRALinear

# transformers renames gradient checkpointing; PEFT, and versions before, know the old names only.
OLD_NAMES = "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning"
FIRST, SECOND = range(40, 60), range(80, 100)
"""Token ids of the two planted tasks, without one in common."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(OLD_NAMES))


@torch.no_grad()
def plant(adapted: Any) -> None:
    """Layer 0 sends the first ids to experts 0 and 1, the second to 2 and 3, whatever the rest.

    One dimension of the embedding says which kind a token is, and the router reads it alone.
    """
    base = adapted.get_base_model().model
    base.embed_tokens.weight[:, 0] = 0.0
    base.embed_tokens.weight[list(FIRST), 0] = 0.2
    base.embed_tokens.weight[list(SECOND), 0] = -0.2
    base.layers[0].input_layernorm.weight.fill_(1.0)
    for name in ("q_proj", "v_proj"):
        router = getattr(base.layers[0].self_attn, name).moelora_router["default"]
        router.zero_()
        router[:, 0] = torch.tensor([2.0, 1.5, -2.0, -1.5])


def texts_of(ids: Sequence[int], n: int, *, length: int = 12, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, len(ids), (n, length), generator=generator)
    return [[ids[int(one)] for one in row] for row in drawn]


@pytest.fixture(scope="session")
def adapted_of(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> Callable[..., Any]:
    """``adapted_of(seed=0, dtype=…, **config)``: a tiny untrained adapter that adds something."""

    def make(*, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
        base = hf_factory("llama", plain_tokenizer).to(dtype)
        settings = {"r": 2, "num_experts": 4, "top_k": 2, "task_type": "CAUSAL_LM"}
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(base, MoELoRAConfig(**(settings | config)))
        for module in adapted.modules():
            if isinstance(module, MoELoRALinear):
                module.moelora_B["default"].data.normal_(std=0.1)
        return adapted.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def planted(adapted_of: Callable[..., Any]) -> Any:
    adapted = adapted_of()
    plant(adapted)
    return adapted


@pytest.fixture(scope="session")
def planted_texts() -> dict[str, list[list[int]]]:
    return {"first": texts_of(FIRST, 20), "second": texts_of(SECOND, 20, seed=1)}


@pytest.fixture(scope="session")
def planted_records(
    planted: Any, planted_texts: dict[str, list[list[int]]], plain_tokenizer: Any
) -> RoutingRecords:
    settings = CollectSettings(routers=39, folds=5)
    records, _ = collect_routing(
        planted, planted_texts, plain_tokenizer, settings=settings, progress=False
    )
    return records
