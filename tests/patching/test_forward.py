"""Partial forward passes give what whole ones give, padded or not, and leave nothing behind."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.forward.partial import common_prefix_length
from interp.models import HookedModel
from interp.patching import TokenBatch, hooked, last_logits, record_run, resume
from tests.patching.conftest import outputs_of, run_one

PROMPTS = [
    [5, 9, 7, 8, 30, 31, 32, 12],
    [20, 21, 22],
    [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50],
]
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 5e-5}


@cache
def whole_runs(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Each prompt's last logits, and its heads' outputs of all layers, run alone."""
    logits = torch.stack([run_one(model, tokens) for tokens in PROMPTS])
    return logits, [torch.stack(outputs_of(model, tokens)) for tokens in PROMPTS]


@pytest.mark.parametrize("start", [0, 3, 9])
def test_recorded_and_resumed_runs_equal_whole_ones(family: HookedModel, start: int) -> None:
    """Columns before the start may be padding only (prompt 1), or most of a prompt (prompt 2)."""
    batch = TokenBatch.from_lists(PROMPTS, pad=3)
    expected, outputs = whole_runs(family)
    run = record_run(family, batch, start=start)
    torch.testing.assert_close(run.logits, expected, **CLOSE)
    for prompt, own in enumerate(outputs):
        own = own[:, -(batch.width - start) :]
        torch.testing.assert_close(run.z[:, prompt, -own.shape[1] :], own, **CLOSE)
    rows = torch.tensor([2, 0, 0, 1])
    for layer in range(family.cfg.n_layers):
        again = resume(family, run, layer=layer, rows=rows)
        torch.testing.assert_close(again, expected[rows], **CLOSE)


def test_whole_padded_batches_equal_prompts_one_by_one(
    family: HookedModel, full_logits: Any
) -> None:
    batch = TokenBatch.from_lists(PROMPTS, pad=3)
    logits = last_logits(family, batch, keep=2)
    assert logits.shape[:2] == (3, 2)
    for prompt, tokens in enumerate(PROMPTS):
        torch.testing.assert_close(logits[prompt, -1], whole_runs(family)[0][prompt], **CLOSE)
        torch.testing.assert_close(logits[prompt, -2], full_logits(family, tokens[:-1]), **CLOSE)


def test_what_stands_on_padding_does_not_matter(family: HookedModel) -> None:
    one, other = (TokenBatch.from_lists(PROMPTS, pad=pad) for pad in (0, 200))
    torch.testing.assert_close(
        record_run(family, one, start=5).logits,
        record_run(family, other, start=5).logits,
        rtol=0,
        atol=1e-6,
    )


def test_resuming_can_enter_with_another_residual(family: HookedModel) -> None:
    """The residual handed in is the one that runs: another prompt's gives that prompt's answer."""
    batch = TokenBatch.from_lists([[5, 9, 7, 8], [5, 9, 7, 11]])
    run = record_run(family, batch, start=3)
    there = resume(
        family, run, layer=1, rows=torch.tensor([0]), residual=run.resid_pre[1][torch.tensor([1])]
    )
    torch.testing.assert_close(there[0], run.logits[1], **CLOSE)
    assert float((run.logits[1] - run.logits[0]).abs().max()) > 1e-2


def test_lower_layers_are_not_run_again(tiny_llama: HookedModel) -> None:
    run = record_run(tiny_llama, TokenBatch.from_lists(PROMPTS), start=2)
    seen: list[int] = []

    def watch(layer: int) -> Any:
        def hook_function(value: torch.Tensor, hook: Any) -> None:
            seen.append(layer)

        return f"blocks.{layer}.attn.hook_z", hook_function

    resume(
        tiny_llama, run, layer=1, rows=torch.tensor([0]), hooks=[watch(layer) for layer in range(3)]
    )
    assert seen == [1, 2]


def test_nothing_is_left_behind(family: HookedModel, traces: Callable[[Any], Any]) -> None:
    before = traces(family)
    run = record_run(family, TokenBatch.from_lists(PROMPTS), start=2)
    resume(family, run, layer=1, rows=torch.arange(3))
    assert traces(family) == before


def test_nothing_is_left_behind_when_a_hook_raises(
    family: HookedModel, traces: Callable[[Any], Any]
) -> None:
    before = traces(family)
    run = record_run(family, TokenBatch.from_lists(PROMPTS), start=2)

    def fail(value: torch.Tensor, hook: Any) -> None:
        raise RuntimeError("on purpose")

    point = f"blocks.{family.cfg.n_layers - 1}.attn.hook_z"
    with pytest.raises(RuntimeError, match="on purpose"):
        resume(family, run, layer=1, rows=torch.arange(3), hooks=[(point, fail)])
    assert traces(family) == before
    torch.testing.assert_close(
        resume(family, run, layer=0, rows=torch.arange(3)), run.logits, **CLOSE
    )


def test_a_hook_point_that_is_not_there_leaves_no_hook(
    tiny_llama: HookedModel, traces: Callable[[Any], Any]
) -> None:
    before = traces(tiny_llama)

    def idle(value: torch.Tensor, hook: Any) -> None:
        return None

    hooks = [("blocks.0.attn.hook_z", idle), ("blocks.9.attn.hook_z", idle)]
    with (
        pytest.raises(UserError, match=r"no hook point 'blocks\.9\.attn\.hook_z'"),
        hooked(tiny_llama, hooks),
    ):
        raise AssertionError("the context must not be entered")
    assert traces(tiny_llama) == before


def test_hooks_come_off_in_the_inner_context_only(tiny_llama: HookedModel) -> None:
    tokens = torch.tensor([[1, 2, 3]])
    counts = {"outer": 0, "inner": 0}

    def count(which: str) -> Any:
        def hook_function(value: torch.Tensor, hook: Any) -> None:
            counts[which] += 1

        return [("blocks.0.attn.hook_z", hook_function)]

    with hooked(tiny_llama, count("outer")):
        with hooked(tiny_llama, count("inner")):
            tiny_llama(tokens)
        tiny_llama(tokens)
    tiny_llama(tokens)
    assert counts == {"outer": 2, "inner": 1}


def test_a_model_that_gives_nan_names_the_layer(hf_factory: Any, plain_tokenizer: Any) -> None:
    import interp.models

    hf_model = hf_factory("llama", plain_tokenizer, seed=1)
    with torch.no_grad():
        hf_model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    model = interp.models.from_hf(hf_model, plain_tokenizer)
    with pytest.raises(UserError, match="layer 1 is not finite, because its weight"):
        record_run(model, TokenBatch.from_lists(PROMPTS))


@pytest.mark.parametrize("start", [-1, 11])
def test_a_start_outside_the_prompts_is_refused(tiny_llama: HookedModel, start: int) -> None:
    words = f"start is at least 0, not {start}|starts at position {start}, the prompts have 11"
    with pytest.raises(UserError, match=words):
        record_run(tiny_llama, TokenBatch.from_lists(PROMPTS), start=start)


def test_what_all_prompts_begin_with() -> None:
    def count(*prompts: list[int], end: int = 4) -> int:
        return common_prefix_length(TokenBatch.from_lists(prompts), end)

    assert count([1, 2, 3, 4], [1, 2, 5, 4]) == 2
    assert count([1, 2, 3, 4], [1, 2, 3, 4], end=3) == 3
    assert count([1, 2, 3, 4], [9, 2, 3, 4]) == 0
    assert count([1, 2, 3, 4], [2, 3, 4]) == 0  # padding is nobody's beginning
    assert count([1, 2, 3, 4]) == 0


@torch.no_grad()
def test_a_beginning_that_all_share_runs_once(
    family: HookedModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    prompts = [[3, 5, 9, 7, 8, 30, 31], [3, 5, 9, 7, 8, 40, 12], [3, 5, 9, 1, 8, 40, 12]]
    batch = TokenBatch.from_lists(prompts)
    for start in (3, 5):  # all of the beginning is common, and three of its five columns
        together = record_run(family, batch, start=start)
        for row, prompt in enumerate(prompts):
            alone = record_run(family, TokenBatch.from_lists([prompt]), start=start)
            torch.testing.assert_close(together.logits[row], alone.logits[0], **CLOSE)
            for both, one in zip(together.keys_values, alone.keys_values, strict=True):
                torch.testing.assert_close(both[0][row], one[0][0], **CLOSE)
                torch.testing.assert_close(both[1][row], one[1][0], **CLOSE)
    assert "runs on the hooked model" not in caplog.text
