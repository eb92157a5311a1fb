"""The self-check: what is right passes, and each part that is broken on purpose is found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from interp.errors import UserError
from interp.interventions import constrain
from interp.models import HookedModel, from_hf
from interp.models.call import call_model
from interp.models.model_check import (
    ModelCheck,
    check_of,
    check_path,
    keep_check,
    read_check,
    require,
    write_check,
)
from interp.models.self_check import check_model, trial_logits
from interp.patching import LogitDifference, TokenBatch, last_logits, patch
from tests.fixtures import make_hf_model, make_tokenizer
from tests.models.test_native_attention import gptj

pytestmark = pytest.mark.bridge_only
TOKENIZER = make_tokenizer()


def fresh(family: str = "llama", **config: Any) -> HookedModel:
    return from_hf(make_hf_model(family, TOKENIZER, **config), TOKENIZER)


def problems_of(model: Any, expected: Any) -> dict[str, str]:
    return dict(check_model(model, expected).problems)


@pytest.fixture
def expected() -> Any:
    return trial_logits(make_hf_model("llama", TOKENIZER))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_that_is_right_passes(family: str) -> None:
    check = check_of(fresh(family))
    assert not check.problems
    n_layers = fresh(family).cfg.n_layers
    assert check.tuple_outputs == check.unhooked_tuple_outputs == (0,) * n_layers


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_that_is_right_takes_four_passes(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "interp.models.self_check.call_model",
        lambda hf_model, tokens, *rest, **options: (
            shapes.append(tuple(tokens.shape)) or call_model(hf_model, tokens, *rest, **options)
        ),
    )
    assert not check_of(fresh(family)).problems
    # The bare prompt; then it, an edited and a cut one, in two pieces behind padding, and whole.
    assert shapes == [(1, 6), (3, 4), (3, 4), (3, 6)]


def test_the_embedded_model_passes(smollm: HookedModel) -> None:
    assert not check_of(smollm).problems
    assert len(check_of(smollm).unhooked_tuple_outputs) == 30


def test_logits_of_another_model_are_found(expected: Any) -> None:
    other = make_hf_model("llama", TOKENIZER, seed=1)
    found = problems_of(from_hf(other, TOKENIZER), expected)
    assert set(found) == {"logits"}
    assert "differ from those of transformers" in found["logits"]


@pytest.mark.filterwarnings("ignore:A hook on:UserWarning")
def test_hooks_that_are_shown_and_not_read_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TransformerLens leaves GPT-J's attention: what is written at its pattern is dropped."""
    assert not check_of(from_hf(gptj(), TOKENIZER)).problems
    monkeypatch.setattr("interp.models.bridge.connect_attention_hooks", lambda model: None)
    found = check_of(from_hf(gptj(), TOKENIZER)).problems
    assert set(found) == {"attention"}
    assert "differ from those of transformers" in found["attention"]


def test_padding_that_is_read_is_found(expected: Any) -> None:
    model: Any = fresh()

    def forget_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": torch.ones_like(kwargs["attention_mask"])}

    model.original_model.register_forward_pre_hook(forget_mask, with_kwargs=True)
    assert "padding" in problems_of(model, expected)


def test_a_part_that_failed_is_refused_and_the_rest_runs() -> None:
    model = fresh()
    keep_check(model, ModelCheck({"attention": "its edges are not cut"}))
    ids = torch.tensor([[5, 6, 7, 8]])
    with (
        pytest.raises(UserError, match=r"attention pattern of Llama.*its edges are not cut"),
        constrain(model, [(0, 0)], at=[(1, 2)], site="attention"),
    ):
        pass
    with torch.no_grad(), constrain(model, [(0, 0)], at=[(1, 2)], site="output"):
        model(ids)
    require(model, "output")


def test_wrong_logits_refuse_everything() -> None:
    model = fresh()
    keep_check(model, ModelCheck({"logits": "they differ by 3"}))
    batch = TokenBatch.from_lists([[5, 6, 7]])
    with pytest.raises(UserError, match="does not compute LlamaForCausalLM as transformers does"):
        last_logits(model, batch)


def test_without_padding_prompts_of_one_length_run() -> None:
    model = fresh()
    keep_check(model, ModelCheck({"padding": "the last logits differ"}))
    assert last_logits(model, TokenBatch.from_lists([[5, 6], [7, 8]])).shape[:2] == (2, 1)
    with pytest.raises(UserError, match="give prompts of one length"):
        last_logits(model, TokenBatch.from_lists([[5, 6], [7, 8, 9]]))


def test_a_model_that_keeps_a_state_runs_whole_prompts() -> None:
    """Mamba has a cache of its own kind; its effects are those of whole runs."""
    config = MambaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    plain = MambaForCausalLM(config).eval()
    model = from_hf(plain, TOKENIZER)
    assert not check_of(model).has("continuation")
    clean, corrupted = [5, 20, 21, 22, 16], [5, 20, 21, 23, 16]
    metric = LogitDifference(torch.tensor([40]), torch.tensor([44]))
    found = patch(
        model,
        TokenBatch.from_lists([clean]),
        TokenBatch.from_lists([corrupted]),
        metric,
        component="resid_post",
        progress=False,
    )
    # The last layer's residual stream decides the logits alone.
    assert found.clean is not None
    right = found.clean - found.corrupted
    torch.testing.assert_close(found.values[:, -1], right, atol=1e-5, rtol=0)


def test_checks_are_kept_and_damage_is_made_good(tmp_path: Path) -> None:
    where = {"fingerprint": "f" * 64, "dtype": "float32", "device": "cpu"}
    path = check_path(tmp_path, **where)
    assert read_check(path) is None
    check = ModelCheck({"padding": "no"}, (0, 2), (2, 2))
    write_check(path, check)
    assert read_check(path) == check
    assert path != check_path(tmp_path, **{**where, "dtype": "bfloat16"})
    for damage in ("", "[]", '{"problems": 3}', json.dumps({"problems": {}, "hooked": "x"})):
        path.write_text(damage)
        assert read_check(path) is None
