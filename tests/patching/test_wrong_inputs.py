"""Prompts and metrics of the wrong kind: what is plainly meant, or one line that names it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.models import HookedModel, from_hf
from interp.patching import (
    KLDivergence,
    LogitDifference,
    TokenBatch,
    faithfulness_curve,
    last_logits,
    patch,
    patch_heads,
    patch_paths,
    screen,
)
from tests.patching.prompts import CLEAN, CORRUPTED, METRIC

QUIET: dict[str, Any] = {"progress": False}
EVERY_METHOD: dict[str, Callable[[Any, Any], Any]] = {
    "exact": lambda model, metric: patch(model, CLEAN, CORRUPTED, metric, **QUIET),
    "attribution": lambda model, metric: patch(
        model, CLEAN, CORRUPTED, metric, method="attribution", **QUIET
    ),
    "ig": lambda model, metric: patch(model, CLEAN, CORRUPTED, metric, method="ig", **QUIET),
    "atp*": lambda model, metric: patch(model, CLEAN, CORRUPTED, metric, method="atp*", **QUIET),
    "screen": lambda model, metric: screen(model, CLEAN, CORRUPTED, metric, top_k=2, **QUIET),
    "paths": lambda model, metric: patch_paths(model, CLEAN, CORRUPTED, metric, **QUIET),
    "heads": lambda model, metric: patch_heads(
        model, CLEAN.tokens, CORRUPTED.tokens, metric, **QUIET
    ),
    "faithfulness": lambda model, metric: faithfulness_curve(
        model,
        CLEAN,
        CORRUPTED,
        metric,
        ranking=[(0, 1), (1, 2)],
        n_random=0,
        proportions=(0.5, 1),
        **QUIET,
    ),
}


def undefined(logits: torch.Tensor) -> torch.Tensor:
    """NaN in the second prompt."""
    return logits[:, 3] + torch.tensor([0.0, torch.nan])


def endless(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 3] / torch.tensor([1.0, 0.0])


def of_positions(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 40]


def careless(logits: torch.Tensor) -> torch.Tensor:
    logits[:, 0] = 0
    return logits[:, 3]


WRONG_METRICS: list[tuple[Any, str]] = [
    (undefined, "metric undefined is NaN or infinite for 1 of 2 prompts"),
    (endless, "metric endless is NaN or infinite for 1 of 2 prompts"),
    (of_positions, r"metric of_positions raised IndexError: .*\[prompt d_vocab\]"),
    (careless, "metric careless changes the logits"),
    (lambda logits: logits[:, 3].tolist(), "one value per prompt, .2.; this one: list"),
    (lambda logits: logits, "one value per prompt"),
    (LogitDifference(torch.tensor([3, 4000]), torch.tensor([1, 1])), "token 4000.*vocabulary"),
    (LogitDifference(torch.tensor([3]), torch.tensor([1])), "is for 1 prompts"),
    (LogitDifference(torch.tensor([3, 4, 5]), torch.tensor([1, 1, 1])), "is for 3 prompts"),
    (KLDivergence(torch.zeros(2, 7)), "reference has logits"),
    (lambda logits: torch.zeros(2, device="meta"), "metric <lambda> gives a tensor without data"),
    ("logit", "metric is a function, not|a metric is a callable"),
]


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_a_metric_that_cannot_be_used_is_named(tiny_llama: HookedModel, method: str) -> None:
    for metric, message in WRONG_METRICS:
        with pytest.raises(UserError, match=message) as caught:
            EVERY_METHOD[method](tiny_llama, metric)
        assert "\n" not in str(caught.value)


def test_a_metric_undefined_under_one_patch_only_is_named_with_the_unit(
    tiny_llama: HookedModel,
) -> None:
    """Finite in the clean and in the corrupted run: the square root fails where a patch acts."""
    bare = last_logits(tiny_llama, CORRUPTED)[:, -1]
    clean = last_logits(tiny_llama, CLEAN)[:, -1]

    def root(logits: torch.Tensor) -> torch.Tensor:
        known = [torch.allclose(logits, one, atol=1e-3) for one in (bare, clean)]
        return logits[:, 3] * (1.0 if any(known) else torch.nan)

    with pytest.raises(UserError, match=r"with \[\(\d, \d\)\] edited the metric root is NaN"):
        patch(tiny_llama, CLEAN, CORRUPTED, root, **QUIET)


@pytest.mark.parametrize("method", ["attribution", "ig", "atp*"])
@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits: logits.argmax(-1), "has no gradient"),
        (lambda logits: logits.detach()[:, 3], "has no gradient"),
        (lambda logits: torch.ones(2, requires_grad=True) * 2, "has no gradient"),
        (lambda logits: (logits[:, 3] - logits[:, 3].detach()).sqrt(), "gradient .* not finite"),
    ],
)
def test_gradients_need_a_metric_that_has_one(
    tiny_llama: HookedModel, method: str, metric: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        patch(tiny_llama, CLEAN, CORRUPTED, metric, method=method, **QUIET)


def test_accuracy_is_a_metric_of_the_exact_method(tiny_llama: HookedModel) -> None:
    found = patch(tiny_llama, CLEAN, CORRUPTED, lambda logits: logits.argmax(-1) == 3, **QUIET)
    assert set(found.corrupted.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    "given",
    [
        lambda batch: batch.tokens,
        lambda batch: batch.tokens.int(),
        lambda batch: batch.tokens.tolist(),
        lambda batch: [torch.tensor(row) for row in batch.tokens.tolist()],
        lambda batch: batch.tokens.numpy(),
        lambda batch: iter(batch.tokens.tolist()),
    ],
    ids=["tensor", "int32", "lists", "tensors", "numpy", "iterator"],
)
def test_token_ids_are_prompts_too(tiny_llama: HookedModel, given: Any) -> None:
    right = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, **QUIET).values
    found = patch(tiny_llama, given(CLEAN), given(CORRUPTED), METRIC, **QUIET).values
    assert torch.equal(found, right)


@pytest.mark.parametrize(
    ("clean", "message"),
    [
        ("Paris is", "clean: this is text"),
        (["Paris is", "Rome is"], "clean: this is text"),
        (None, "clean: prompts are"),
        (CLEAN.tokens.float(), "clean: .*whole numbers"),
        (CLEAN.tokens[0], "clean: .*whole numbers"),
        ([[5, 9.5]], "clean: a prompt is a list of token ids"),
        ([], "clean: there is an empty prompt"),
        ([[5, 2**70]], f"token id {2**70} is beyond any vocabulary"),
        ([[5, 9, 7]], "1 clean prompts but 2 corrupted"),
    ],
)
@pytest.mark.parametrize("method", [patch, patch_paths, screen])
def test_what_are_no_prompts_is_refused(
    tiny_llama: HookedModel, method: Any, clean: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        method(tiny_llama, clean, CORRUPTED, METRIC, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "ab"}, "groups is a list"),
        ({"groups": ["a"]}, "2 prompts but 1 groups"),
        ({"templates": ["a", "b", "c"]}, "2 prompts but 3 templates"),
        ({"component": ["z"]}, "component is a text"),
        ({"method": None}, "method is a text"),
        ({"source": 3}, "source is a text"),
        ({"units": [0, 1]}, "an entry of units is a list of 2 values, not 0"),
        ({"units": [(0, 99)]}, "does not exist"),
        ({"method": "ig", "steps": 2.5}, "steps is a whole number"),
        ({"seed": "x"}, "seed is a whole number"),
        ({"budget": "1 GB"}, "budget is a whole number"),
        ({"reference": "Paris", "source": "mean"}, "reference: this is text"),
    ],
)
def test_options_of_the_wrong_kind_are_named(
    tiny_llama: HookedModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        patch(tiny_llama, CLEAN, CORRUPTED, METRIC, **{**QUIET, **options})


@pytest.mark.parametrize("model", [None, "gpt2", torch.nn.Linear(2, 2)])
def test_a_model_without_hooks_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match=r"is not a hooked model: .*interp\.load_model"):
        patch(model, CLEAN, CORRUPTED, METRIC, **QUIET)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_float64_models_take_prompts_of_different_lengths(
    hf_factory: Any, plain_tokenizer: Any, family: str
) -> None:
    double = from_hf(hf_factory(family, plain_tokenizer).double(), plain_tokenizer)
    rows = [[5, 20, 22], [6, 20, 21, 22]], [[5, 20, 23], [6, 20, 21, 23]]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 40] - logits[:, 44]

    alone = [patch(double, [a], [b], metric, **QUIET).values for a, b in zip(*rows, strict=True)]
    clean, corrupted = (TokenBatch.from_lists(one) for one in rows)
    together = patch(double, clean, corrupted, metric, **QUIET).values
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    assert float(together.abs().max()) > 1e-2
