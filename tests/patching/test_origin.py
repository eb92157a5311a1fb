"""Patched values come from where they should: prompt by prompt, token by token."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.forward.hook_points import hook_name
from interp.forward.out_of_memory import over_parts
from interp.models import HookedModel
from interp.patching import TokenBatch
from interp.patching.alignment import align
from interp.patching.patch_source import check_patch_source, derangement, mean_values, patching_edit

CLEAN = [[5, 9, 7, 8, 30, 31], [20, 21, 22]]
CORRUPTED = [[15, 9, 7, 30], [20, 26, 27, 28, 22]]
SPANS = {
    "middle": ([(1, 4), (0, 1)], [(1, 2), (1, 4)]),
    "end": ([(5, 6), (2, 3)], [(3, 4), (4, 5)]),
}
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


@pytest.mark.parametrize("component", ["z", "k", "mlp_out", "resid_mid"])
def test_a_mean_is_over_all_real_tokens(
    tiny_llama: HookedModel, full_values: Any, component: str
) -> None:
    names = [hook_name(component, layer) for layer in range(3)]
    each = [full_values(tiny_llama, tokens, names) for tokens in CLEAN]
    expected = torch.stack([torch.cat([one[name] for one in each]).mean(dim=0) for name in names])
    found = mean_values(tiny_llama, TokenBatch.from_lists(CLEAN), component)
    torch.testing.assert_close(found.reshape(expected.shape), expected, **CLOSE)


def test_a_mean_over_parts_is_the_mean_over_all(
    tiny_llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = TokenBatch.from_lists([*CLEAN, [1, 2, 3, 4]])
    whole = mean_values(tiny_llama, batch, "z")
    in_parts = partial(over_parts, batch_tokens=6)
    assert len(list(in_parts(batch, lambda part, rows: rows))) == 3
    monkeypatch.setattr("interp.patching.patch_source.over_parts", in_parts)
    torch.testing.assert_close(mean_values(tiny_llama, batch, "z"), whole, **CLOSE)


@given(st.integers(2, 40), st.integers(0, 1000))
def test_a_derangement_keeps_nothing_in_its_place(count: int, seed: int) -> None:
    order = derangement(count, seed)
    assert sorted(order) == list(range(count))
    assert all(place != taken for place, taken in enumerate(order))
    assert order == derangement(count, seed)


def test_seeds_make_different_orders() -> None:
    assert len({tuple(derangement(8, seed)) for seed in range(8)}) > 4


def test_values_of_the_clean_run_at_spans(tiny_llama: HookedModel, full_values: Any) -> None:
    """Every edited column of the source holds the value of the token that it is aligned to."""
    clean, corrupted = TokenBatch.from_lists(CLEAN), TokenBatch.from_lists(CORRUPTED)
    edit = patching_edit(tiny_llama, clean, align(clean, corrupted, SPANS), component="z")
    assert edit.source is not None
    # (prompt, corrupted token, clean token), by hand.
    moves = [(0, 1, 3), (0, 3, 5), (1, 1, 0), (1, 2, 0), (1, 3, 0), (1, 4, 2)]
    names = [hook_name("z", layer) for layer in range(3)]
    values = [full_values(tiny_llama, tokens, names) for tokens in CLEAN]
    for prompt, here, there in moves:
        column = corrupted.width - len(CORRUPTED[prompt]) + here
        assert bool(edit.at[prompt, column])
        for layer, name in enumerate(names):
            found = edit.source[layer, prompt, column - edit.first]
            torch.testing.assert_close(found, values[prompt][name][there], **CLOSE)
    assert int(edit.at.sum()) == len(moves)


def test_nothing_and_means_need_no_run(tiny_llama: HookedModel) -> None:
    clean = TokenBatch.from_lists(CLEAN)
    alignment = align(clean, clean, "all", everywhere=True)
    assert patching_edit(tiny_llama, clean, alignment, component="z", zero=True).source is None
    mean = torch.arange(3.0)[:, None, None].expand(3, 4, 8)
    source = patching_edit(tiny_llama, clean, alignment, component="z", mean=mean).source
    assert source is not None
    assert torch.equal(source, mean[:, None, None].expand(3, 2, 6, 4, 8))


@pytest.mark.parametrize(
    ("origin", "component", "message"),
    [
        ("noise", "z", "unknown source 'noise'; known: run, zero, mean, resample"),
        ("mean", "pattern", "a mean attention pattern is not defined: use source 'run' or 'zero'"),
    ],
)
def test_origins_that_mean_nothing(origin: str, component: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_patch_source(origin, component)


def test_one_prompt_has_no_other_to_draw() -> None:
    with pytest.raises(UserError, match="needs at least two prompts"):
        derangement(1, 0)
