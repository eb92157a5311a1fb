"""NaN in a weight or an activation is found and named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.finite import first_bad_hook, first_bad_module
from interp.forward.partial import record_run, tail_logits
from interp.models import load_model
from interp.models.finite import first_bad_weight
from interp.moelora.data.encoding import EncodedExample
from interp.moelora.training.scoring import answer_losses


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bad_weight_is_named(
    value: float, dtype: torch.dtype, hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    model = hf_factory("llama", plain_tokenizer).to(dtype)
    assert first_bad_weight(model) is None
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 2] = value
    assert first_bad_weight(model) == "model.layers.1.self_attn.v_proj.weight"


def test_a_sum_that_overflows_is_no_bad_weight(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    model = hf_factory("llama", plain_tokenizer)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    assert first_bad_weight(model) is None


def test_loading_looks_where_it_is_asked(
    hf_factory: Callable[..., Any], chat_tokenizer: Any, tmp_path: Path
) -> None:
    hf_model = hf_factory("llama", chat_tokenizer)
    with torch.no_grad():
        hf_model.model.layers[2].mlp.up_proj.weight[:2, 0] = torch.nan
    hf_model.save_pretrained(tmp_path)
    chat_tokenizer.save_pretrained(tmp_path)
    said = r"2 of 2048 values of model\.layers\.2\.mlp\.up_proj\.weight are NaN or infinite"
    with pytest.raises(UserError, match=said):
        load_model(tmp_path, device="cpu", check_finite=True)
    model = load_model(tmp_path, device="cpu")
    with pytest.raises(UserError, match=r"NaN or infinity: hook blocks\.2\.\S+ of layer 2"):
        tail_logits(model, TokenBatch.from_lists([[1, 2, 3]]))


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    ("part", "hook"),
    [
        ("self_attn.v_proj", "attn.hook_v"),
        ("self_attn.o_proj", "hook_attn_out"),
        ("mlp.down_proj", "hook_mlp_out"),
    ],
)
def test_a_bad_activation_is_named_by_layer_and_hook(
    layer: int, part: str, hook: str, hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    hf_model = hf_factory("llama", plain_tokenizer)
    with torch.no_grad():
        hf_model.get_submodule(f"model.layers.{layer}.{part}").weight[0, 0] = torch.nan
    model = interp.models.from_hf(hf_model, plain_tokenizer)
    batch = TokenBatch.from_lists([[1, 2, 3], [4, 5]])
    for run in (lambda: tail_logits(model, batch), lambda: record_run(model, batch)):
        with pytest.raises(UserError) as caught:
            run()
        assert f"hook blocks.{layer}.{hook} of layer {layer} is not finite" in str(caught.value)
        assert "because its weight" in str(caught.value)


def test_overflow_without_a_bad_weight_points_to_the_dtype(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    hf_model = hf_factory("llama", plain_tokenizer).to(torch.float16)
    with torch.no_grad():
        hf_model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
        hf_model.model.layers[1].mlp.up_proj.weight.fill_(6e4)
    model = interp.models.from_hf(hf_model, plain_tokenizer)
    with pytest.raises(UserError, match=r"of layer 1 is not finite; check its dtype \(float16"):
        tail_logits(model, TokenBatch.from_lists([[1, 2, 3]]))


def test_a_good_model_has_no_bad_place(tiny_llama: Any) -> None:
    batch = TokenBatch.from_lists([[1, 2, 3]])
    assert first_bad_hook(tiny_llama, lambda: tail_logits(tiny_llama, batch)) is None
    hooks = [point.fwd_hooks for point in tiny_llama.hook_dict.values()]
    assert not any(hooks)


def test_training_scores_name_the_module(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    model = hf_factory("llama", plain_tokenizer)
    example = EncodedExample(tokens=(1, 2, 3, 4), n_prompt=2)
    assert len(answer_losses(model, [example])) == 1
    assert first_bad_module(model, lambda: model(torch.tensor([[1, 2]]))) is None
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"output of model\.layers\.1\.mlp\.gate_proj is not"):
        answer_losses(model, [example])
