"""Whatever mode a model or a part of it is in, it runs in evaluation mode, and stays as it was."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import interp
from interp.errors import UserError
from interp.models import HookedModel
from interp.models.call import evaluating
from interp.patching import (
    LogitDifference,
    TokenBatch,
    faithfulness_curve,
    last_logits,
    patch,
    patch_heads,
    patch_paths,
    screen,
)

CLEAN = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31], [40, 41, 42, 43, 44, 45]])
CORRUPTED = TokenBatch.from_lists([[5, 9, 7, 81, 30, 31], [40, 41, 52, 43, 44, 45]])
METRIC = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))
PROMPTS = (CLEAN, CORRUPTED, METRIC)
QUIET: dict[str, Any] = {"progress": False}
RUNS: dict[str, Callable[[Any], Any]] = {
    "exact": lambda model: patch(model, *PROMPTS, **QUIET).values,
    "pattern": lambda model: patch(model, *PROMPTS, component="pattern", **QUIET).values,
    "mean": lambda model: patch(model, *PROMPTS, source="mean", **QUIET).values,
    "attribution": lambda model: patch(model, *PROMPTS, method="attribution", **QUIET).values,
    "ig": lambda model: patch(model, *PROMPTS, method="ig", steps=2, **QUIET).values,
    "atp*": lambda model: patch(model, *PROMPTS, method="atp*", **QUIET).values,
    "screen": lambda model: torch.from_numpy(screen(model, *PROMPTS, top_k=2, **QUIET).bound),
    "patch_heads": lambda model: patch_heads(
        model, CLEAN.tokens, CORRUPTED.tokens, METRIC, **QUIET
    ),
    "paths": lambda model: patch_paths(model, *PROMPTS, **QUIET).values,
    "faithfulness": lambda model: (
        faithfulness_curve(
            model,
            *PROMPTS,
            ranking=[(0, 1), (1, 2), (0, 3)],
            n_random=1,
            proportions=(0.4, 1.0),
            **QUIET,
        ).circuit
    ),
    "last_logits": lambda model: last_logits(model, CLEAN),
    "generate": lambda model: interp.generate(model, "Why is Paris in Germany?", max_new_tokens=3),
    "saliency": lambda model: interp.token_saliency(model, "Why is Paris?").values,
    "gradient": lambda model: interp.token_saliency(model, "Why?", method="gradient").values,
    "attention_pattern": lambda model: (
        interp.attention_pattern(model, "Why is Paris?", [(1, 0)]).pattern
    ),
}


def dropouts(model: Any) -> list[nn.Module]:
    """The modules that draw numbers; the whole model where there are none."""
    return [one for one in model.modules() if isinstance(one, nn.Dropout)] or [model]


PARTS: dict[str, Callable[[Any], nn.Module]] = {
    "model": lambda model: model,
    "original_model": lambda model: model.original_model,
    "one dropout": lambda model: dropouts(model)[-1],
}


@pytest.fixture(scope="module")
def dropping(hf_factory: Any, plain_tokenizer: Any) -> HookedModel:
    """GPT-2 with so much dropout that nothing comes out right where any of it acts."""
    shares = {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}
    return interp.models.from_hf(hf_factory("gpt2", plain_tokenizer, **shares), plain_tokenizer)


def modes(model: Any) -> list[bool]:
    return [one.training for one in (*model.modules(), *model.original_model.modules())]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, rtol=0, atol=1e-6, equal_nan=True)
    return one == other


@cache
def expected(model: Any, name: str) -> Any:
    """What a run gives in evaluation mode."""
    model.eval()
    return RUNS[name](model)


def parts_of(name: str) -> tuple[str, ...]:
    """What is put into training mode: all in turn for one run, one part for each of the others."""
    if name == "exact":
        return tuple(PARTS)
    if name == "attention_pattern":  # no dropout of the last layer acts on it
        return ("model",)
    return (tuple(PARTS)[1 + list(RUNS).index(name) % 2],)


@pytest.mark.parametrize("name", RUNS)
def test_evaluation_mode_whatever_mode_the_model_is_in(dropping: Any, name: str) -> None:
    right = expected(dropping, name)
    for part in parts_of(name):
        PARTS[part](dropping).train()
        before = modes(dropping)
        assert any(before)
        try:
            assert same(RUNS[name](dropping), right)
            assert modes(dropping) == before
        finally:
            dropping.eval()
            dropping.original_model.eval()


@pytest.mark.parametrize("name", RUNS)
def test_the_models_own_dtype_whatever_mode_torch_is_in(dropping: Any, name: str) -> None:
    """As `checked` runs what is public: no autocast, and gradients that can be taken."""
    right = expected(dropping, name)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert same(RUNS[name](dropping), right)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()


@pytest.mark.bridge_only  # TransformerLens 3 cannot copy such weights, and says so
def test_weights_of_inference_mode_have_no_gradients(hf_factory: Any, plain_tokenizer: Any) -> None:
    with torch.inference_mode():
        hf_model = hf_factory("llama", plain_tokenizer)
    model = interp.models.from_hf(hf_model, plain_tokenizer)
    assert bool(patch(model, *PROMPTS, **QUIET).values.isfinite().all())
    for method in ("attribution", "atp*", "ig"):
        with pytest.raises(UserError, match=r"torch\.inference_mode"):
            patch(model, *PROMPTS, method=method, **QUIET)


@pytest.mark.bridge_only
def test_training_mode_would_give_other_values(dropping: Any) -> None:
    """The control; TransformerLens 3 has no dropout in its modules."""
    dropping.original_model.train()
    try:
        with torch.no_grad():
            drawn = dropping.original_model(CLEAN.tokens).logits[:, -1:]
    finally:
        dropping.original_model.eval()
    assert not same(drawn, last_logits(dropping, CLEAN))


@pytest.mark.parametrize("training", [True, False])
def test_every_module_gets_its_own_mode_back_whatever_happens(training: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train(training)
    model[1].train(not training)
    before, within = [one.training for one in model.modules()], []

    def stop() -> None:
        with evaluating(model):
            within.extend(one.training for one in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert within == [False] * 4
    assert [one.training for one in model.modules()] == before
