"""What `from_hf` takes besides a bare causal language model, and what it refuses by name."""

import copy
from collections.abc import Callable
from typing import Any, cast

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModel, LlamaForSequenceClassification

from interp.errors import UserError
from interp.models import HookedModel, from_hf
from interp.moelora import MoELoRAConfig

# Of PEFT 0.21 with transformers 5, and of torch.compile; nothing of them is used here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

IDS = torch.tensor([[5, 9, 7, 8, 30, 31]])
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-4}
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS) if isinstance(model, HookedModel) else model(IDS).logits


def adapted(hf_model: Any, family: str, **options: Any) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2,
        target_modules=TARGETS[family],
        init_lora_weights=False,
        lora_dropout=0.3,
        task_type="CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
        **options,
    )
    return peft.get_peft_model(hf_model, config)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("inside", [False, True], ids=["PeftModel", "the model inside"])
def test_an_adapter_is_merged_into_a_copy(
    hf_factory: Any, plain_tokenizer: Any, family: str, inside: bool
) -> None:
    base = hf_factory(family, plain_tokenizer)
    bare = logits(base)
    model = adapted(base, family).eval()
    right = logits(model)
    assert float((right - bare).abs().max()) > 1e-2
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    hooked = from_hf(model.get_base_model() if inside else model, plain_tokenizer)
    torch.testing.assert_close(logits(hooked), right, **CLOSE)
    assert model.training
    model.eval()
    torch.testing.assert_close(logits(model), right, **CLOSE)  # the adapted model is as it was
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), bare, **CLOSE)


def test_modules_saved_beside_an_adapter_come_along(hf_factory: Any, plain_tokenizer: Any) -> None:
    model = adapted(hf_factory("llama", plain_tokenizer), "llama", modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.1)
    right = logits(model.eval())
    torch.testing.assert_close(logits(from_hf(model, plain_tokenizer)), right, **CLOSE)


def test_an_adapter_that_does_not_merge_is_refused(hf_factory: Any, plain_tokenizer: Any) -> None:
    experts = peft.get_peft_model(
        hf_factory("llama", plain_tokenizer),
        MoELoRAConfig(r=2, num_experts=2, top_k=1, target_modules=["q_proj"]),
    )
    with pytest.raises(UserError, match=r"interp\.moelora\.hooked"):
        from_hf(experts, plain_tokenizer)
    prompts = peft.get_peft_model(
        hf_factory("llama", plain_tokenizer),
        peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    )
    with pytest.raises(UserError, match="adapter"):
        from_hf(prompts, plain_tokenizer)


@pytest.mark.parametrize(
    "wrapped",
    [
        nn.DataParallel,
        torch.compile,
        lambda model: nn.DataParallel(cast(nn.Module, torch.compile(model))),
    ],
    ids=["DataParallel", "compiled", "both"],
)
def test_what_wraps_a_model_is_looked_into(
    hf_factory: Any, plain_tokenizer: Any, wrapped: Callable[[Any], Any]
) -> None:
    right = logits(hf_factory("llama", plain_tokenizer))
    hooked = from_hf(wrapped(hf_factory("llama", plain_tokenizer)), plain_tokenizer)
    torch.testing.assert_close(logits(hooked), right, **CLOSE)


def on_meta(hf_model: Any) -> Any:
    return hf_model.to("meta")


def of_two_dtypes(hf_model: Any) -> Any:
    hf_model.to(torch.bfloat16)
    hf_model.lm_head.float()
    return hf_model


def classifier(hf_model: Any) -> Any:
    return LlamaForSequenceClassification(copy.deepcopy(hf_model.config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: "gpt2", r"interp\.load_model\('gpt2'\)"),
        (lambda model: None, "takes a causal language model of transformers, not NoneType"),
        (
            lambda model: nn.Linear(2, 2),
            "language model of transformers, not Linear",
        ),
        (lambda model: AutoModel.from_config(model.config), "LlamaModel is not a causal"),
        (classifier, "LlamaForSequenceClassification is not a causal"),
        (on_meta, "has no data"),
        (of_two_dtypes, "several dtypes .bfloat16, float32."),
    ],
)
def test_anything_else_is_refused_by_name(
    hf_factory: Any, plain_tokenizer: Any, change: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        from_hf(change(hf_factory("llama", plain_tokenizer)), plain_tokenizer)


def test_a_model_is_hooked_once_and_with_its_tokenizer(
    hf_factory: Any, plain_tokenizer: Any, tiny_llama: Any
) -> None:
    with pytest.raises(UserError, match="hooked already"):
        from_hf(tiny_llama, plain_tokenizer)
    for tokenizer in (None, "gpt2"):
        with pytest.raises(UserError, match="tokenizer"):
            from_hf(hf_factory("llama", plain_tokenizer), tokenizer)
