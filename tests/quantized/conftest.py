"""Tiny models whose projections bitsandbytes has quantized, and the same weights as plain numbers.

Widths are multiples of 32 and of the quantization's blocks of 64, as in real models.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import interp.models
from interp.models import HookedModel
from interp.quantized import is_quantized, keep_precision, weight_of

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "double": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "int8": {"load_in_8bit": True},
}
"""All with plain weights in float32; the third computes its products in bfloat16."""

Load = Callable[..., Any]

# As tests/moelora: PEFT knows the old names of gradient checkpointing only.
OLD_NAMES = "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(OLD_NAMES))


def read(folder: Path, kind: str, **settings: Any) -> Any:
    """The model in a directory as transformers quantizes it while it loads.

    It computes as on a CPU without bfloat16 instructions; what bitsandbytes does with them is in
    test_repacked.py.
    """
    config = BitsAndBytesConfig(**(CONFIGS[kind] | settings))
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    keep_precision(model)
    return model.eval()


@pytest.fixture(scope="session")
def plain_folder(
    hf_factory: Any, plain_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "tiny"
    hf_factory("llama", plain_tokenizer, **SIZES).save_pretrained(folder)
    plain_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def load(plain_folder: Path) -> Load:
    """``load(kind, **settings)``: the tiny model, quantized; a new one at each call."""
    return lambda kind, **settings: read(plain_folder, kind, **settings)


@pytest.fixture(scope="session", params=list(CONFIGS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def quantized(kind: str, load: Load, plain_tokenizer: Any) -> HookedModel:
    """The hooked model; no test changes it."""
    return interp.models.from_hf(load(kind), plain_tokenizer, spec=kind)


@torch.no_grad()
def plain_twin(hf_model: Any, plain: Any) -> Any:
    """``plain`` with the weights of a quantized model, as numbers in float32."""
    for name, module in hf_model.named_modules():
        if is_quantized(module):
            twin = plain.get_submodule(name)
            twin.weight.copy_(weight_of(module, needed_by="the test").float())
    return plain


@pytest.fixture(scope="session")
def twin(quantized: HookedModel, kind: str, load: Load, hf_factory: Any, plain_tokenizer: Any):
    """A hooked model that is not quantized, with the quantized one's weights."""
    plain = plain_twin(load(kind), hf_factory("llama", plain_tokenizer, **SIZES))
    return interp.models.from_hf(plain, plain_tokenizer, spec=f"{kind} as numbers")
