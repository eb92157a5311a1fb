"""Rows follow the memory budget; the numbers do not depend on it."""

from typing import Any

import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, patch, patch_paths
from interp.patching.budget import (
    CPU_BUDGET,
    GPU_SHARE,
    bytes_per_row,
    default_budget,
    rows_within,
)

# Mixed lengths, and first differences far apart.
CLEAN = TokenBatch.from_lists(
    [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22], [40, 41, 42, 43, 44, 45], [1, 2, 3, 4]]
)
CORRUPTED = TokenBatch.from_lists(
    [[5, 6, 7, 8, 30, 31, 32, 12], [20, 21, 29], [40, 41, 42, 43, 49, 45], [7, 2, 3, 9]]
)
METRIC = LogitDifference(torch.tensor([3, 14, 15, 16]), torch.tensor([65, 35, 89, 90]))
CPU = torch.device("cpu")
UNITS = [(0, 0), (0, 1), (2, 0), (2, 1)]


def test_bytes_of_a_row_by_hand(tiny_llama: HookedModel) -> None:
    # 5 of 7 columns, d_model 32, MLP of 64, 2 KV heads of 8, 4 heads, four bytes a number:
    # 5 · (3 · 64 + 10 · 32) + 2 · 7 · 2 · 8 + 4 · 5 · 7 = 2560 + 224 + 140 = 2924.
    assert bytes_per_row(tiny_llama, 5, 7) == 4 * 2924
    assert bytes_per_row(tiny_llama, 7, 7) > bytes_per_row(tiny_llama, 5, 7)


def test_narrow_weights_have_float32_activations(
    hf_factory: Any, plain_tokenizer: Any, tiny_llama: HookedModel
) -> None:
    half = interp.models.from_hf(
        hf_factory("llama", plain_tokenizer).to(torch.bfloat16), plain_tokenizer
    )
    assert bytes_per_row(half, 5, 7) == bytes_per_row(tiny_llama, 5, 7)


@pytest.mark.parametrize(("budget", "rows"), [(11_696, 1), (23_391, 1), (23_392, 2), (10**6, 85)])
def test_rows_within_a_budget(tiny_llama: HookedModel, budget: int, rows: int) -> None:
    assert rows_within(tiny_llama, tail=5, width=7, budget=budget, device=CPU) == rows


def test_the_default_follows_the_device(
    tiny_llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_budget(CPU) == CPU_BUDGET
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert default_budget(torch.device("cuda")) == 1000 * GPU_SHARE
    rows = rows_within(tiny_llama, tail=5, width=7, budget=None, device=CPU)
    assert rows == CPU_BUDGET // 11_696


def test_a_budget_too_small_for_one_prompt(tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError) as caught:
        rows_within(tiny_llama, tail=5, width=7, budget=11_695, device=CPU)
    assert str(caught.value) == (
        "a budget of 0.0112 MiB is too small for one prompt of 7 tokens, which takes about "
        "0.0112 MiB"
    )


@pytest.mark.parametrize("method", ["exact", "attribution", "ig", "atp*"])
def test_methods_refuse_a_budget_too_small(tiny_llama: HookedModel, method: str) -> None:
    with pytest.raises(UserError, match="too small for one prompt of 8 tokens") as caught:
        patch(tiny_llama, CLEAN, CORRUPTED, METRIC, method=method, budget=5000, progress=False)
    assert "\n" not in str(caught.value)


def test_paths_refuse_a_budget_too_small(tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError, match="too small for one prompt"):
        patch_paths(tiny_llama, CLEAN, CORRUPTED, METRIC, budget=5000, progress=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"component": "z", "units": UNITS},
        {"component": "pattern", "units": UNITS},
        {"component": "k", "positions": "each", "units": UNITS},
        {"component": "v", "source": "mean"},
        {"component": "v", "method": "attribution"},
        {"component": "z", "method": "ig", "steps": 1},
        {"component": "q", "method": "atp*"},
    ],
    ids=lambda one: "-".join(one),
)
def test_the_numbers_do_not_depend_on_the_budget(
    tiny_llama: HookedModel, settings: dict[str, Any]
) -> None:
    """Two rows of the longest prompt at a time, more of the shorter ones, or all at once."""
    few, all_at_once = (
        patch(tiny_llama, CLEAN, CORRUPTED, METRIC, budget=budget, progress=False, **settings)
        for budget in (40_000, 10**9)
    )
    torch.testing.assert_close(few.values, all_at_once.values, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(few.corrupted, all_at_once.corrupted, rtol=0, atol=1e-5)
    assert float(all_at_once.values.abs().nan_to_num().max()) > 1e-2


@pytest.mark.parametrize("mlps", ["frozen", "recomputed"])
def test_paths_do_not_depend_on_the_budget(tiny_llama: HookedModel, mlps: str) -> None:
    one, all_at_once = (
        patch_paths(
            tiny_llama, CLEAN, CORRUPTED, METRIC, receivers=[(2, 1), (1, 0)], mlps=mlps,
            senders=[(0, 1), (0, 2), (1, 3)], budget=budget, progress=False,
        ).values
        for budget in (40_000, 10**9)
    )  # fmt: skip
    torch.testing.assert_close(one, all_at_once, rtol=0, atol=1e-5, equal_nan=True)
