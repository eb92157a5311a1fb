"""Rows follow the memory budget; the numbers do not depend on it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.forward.memory import (
    CPU_BUDGET,
    CPU_WHOLE,
    Budget,
    decide_budget,
    default_budget,
    using_budget,
)
from interp.forward.pass_tokens import pass_tokens
from interp.forward.sizes import sizes_of
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, patch, patch_paths

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


def test_a_budget_that_is_given_is_a_limit() -> None:
    budget = decide_budget(1000, CPU)
    assert budget == Budget(1000, 1000, given=True)
    assert budget.rows(100, kept=350) == 6
    assert budget.rows(5000) == 1
    budget.refuse(1000, 7)
    with pytest.raises(UserError) as caught:
        decide_budget(11_695, CPU).refuse(11_696, 7)
    assert str(caught.value) == (
        "a budget of 0.0112 MiB is too small for one prompt of 7 tokens, which takes about "
        "0.0112 MiB"
    )


def test_no_bytes_are_no_budget() -> None:
    with pytest.raises(UserError, match="budget, in bytes, is at least 1, not 0"):
        decide_budget(0, CPU)


def test_the_default_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decide_budget(None, CPU) == Budget(CPU_BUDGET, CPU_WHOLE)
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    # 1400 bytes are free, of which torch holds 400: a quarter for batches, as much for the rest.
    assert default_budget(gpu) == Budget(350, 700)


def test_what_did_not_fit_is_not_tried_again() -> None:
    budget = Budget(1000, 4000)
    budget.room.batches, budget.room.whole = 300, 5000
    assert budget.now == (300, 4000)
    assert budget.rows(100) == 3
    assert Budget(1000, 4000).rows(100) == 10  # another call's is its own
    assert budget == Budget(1000, 4000)


def test_a_run_decides_for_all_its_calls() -> None:
    decided = Budget(5, 10)
    with using_budget(decided):
        assert decide_budget(None, CPU) == decided
        assert decide_budget(7, CPU) == Budget(7, 7, given=True)
    assert decide_budget(None, CPU) == Budget(CPU_BUDGET, CPU_WHOLE)


@pytest.mark.parametrize("method", ["exact", "attribution", "ig", "atp*", "screen"])
def test_a_default_budget_refuses_no_prompt(
    tiny_llama: HookedModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little it is, one prompt runs, a row at a time."""
    options: dict[str, Any] = {"method": method, "component": "k", "progress": False}
    if method == "ig":
        options["steps"] = 2
    rows = [3, 1]  # of 4 and of 3 tokens
    prompts = CLEAN.take(rows), CORRUPTED.take(rows), METRIC.take(torch.tensor(rows))
    whole = patch(tiny_llama, *prompts, **options)
    monkeypatch.setattr("interp.forward.memory.CPU_BUDGET", 1)
    monkeypatch.setattr("interp.forward.memory.CPU_WHOLE", 1)
    found = patch(tiny_llama, *prompts, **options)
    torch.testing.assert_close(found.values, whole.values, rtol=0, atol=1e-5, equal_nan=True)


def test_a_metric_that_takes_more_than_the_budget_is_told(
    tiny_llama: HookedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def own(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 3]

    patch(tiny_llama, CLEAN, CORRUPTED, own, budget=100_000, progress=False)
    assert "sees all 4 prompts at once, which takes about" in caplog.text


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
        for budget in (130_000, 10**9)
    )
    torch.testing.assert_close(few.values, all_at_once.values, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(few.corrupted, all_at_once.corrupted, rtol=0, atol=1e-5)
    assert float(all_at_once.values.abs().nan_to_num().max()) > 1e-2


@pytest.mark.parametrize("mlps", ["frozen", "recomputed"])
def test_paths_do_not_depend_on_the_budget(tiny_llama: HookedModel, mlps: str) -> None:
    one, all_at_once = (
        patch_paths(
            tiny_llama,
            CLEAN,
            CORRUPTED,
            METRIC,
            receivers=[(2, 1), (1, 0)],
            mlps=mlps,
            senders=[(0, 1), (0, 2), (1, 3)],
            budget=budget,
            progress=False,
        ).values
        for budget in (130_000, 10**9)
    )
    torch.testing.assert_close(one, all_at_once, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("free", "tokens"),
    [
        (2**40, 132 * 128),  # as many as keep the multiprocessors at work
        (4 * 2**20, None),  # as many whole prompts as fit into a quarter
        (1000, 20),  # one prompt runs, however long
    ],
)
def test_a_pass_on_a_gpu_takes_what_it_has_memory_and_processors_for(
    free: int, tokens: int | None, tiny_llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pass_tokens(tiny_llama, 20, least=4096) == 4096
    assert pass_tokens(tiny_llama, 20, least=4096, kept=["z"]) == 4096
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**41))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        "interp.forward.pass_tokens.device_of", lambda model: torch.device("cuda", 0)
    )
    of_prompt = sizes_of(tiny_llama).row(20, 20, eager=True)
    fitting = free // 4 // of_prompt * 20
    assert pass_tokens(tiny_llama, 20, least=4096) == (fitting if tokens is None else tokens)
    if tokens is None:
        assert 20 < fitting < 4096
        assert pass_tokens(tiny_llama, 20, least=4096, kept=["z"]) < fitting
    # A run that is taken up has the budget that it began with, whatever is free now.
    with using_budget(Budget(100 * of_prompt, 200 * of_prompt)):
        assert pass_tokens(tiny_llama, 20, least=500) == 2000
