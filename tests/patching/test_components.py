"""Every component gives the numbers of TransformerLens' own patching loops, for each prompt."""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import pandas as pd
import pytest
import torch
import transformer_lens.patching
from transformer_lens import ActivationCache

from interp.errors import UserError
from interp.forward.hook_points import (
    HOOK_LOCATIONS,
    as_units,
    axis_of,
    check_component,
    count_units,
    from_units,
    hook_name,
)
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, patch
from tests.patching.conftest import seen_in

# (clean, corrupted); the pairs first differ at position 1 and at position 2.
SHORT = torch.tensor([[40, 41, 42], [5, 9, 70]]), torch.tensor([[40, 51, 42], [5, 9, 71]])
# Longer than the sliding window of four.
LONG = (
    torch.tensor([[40, 41, 42, 43, 44, 45, 46], [5, 9, 70, 8, 30, 31, 32]]),
    torch.tensor([[40, 51, 42, 43, 44, 45, 46], [5, 9, 71, 8, 33, 31, 32]]),
)
Pairs = tuple[torch.Tensor, torch.Tensor]
METRIC = LogitDifference(torch.tensor([14, 3]), torch.tensor([35, 65]))
HEADS = {"z": "out", "q": "q", "k": "k", "v": "v", "pattern": "pattern"}
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


def has(model: Any, component: str) -> bool:
    return hook_name(component, 0) in model.hook_dict


def ours(model: Any, component: str, pairs: Pairs, positions: Any = "all") -> Any:
    clean, corrupted = (TokenBatch.from_padded(tokens) for tokens in pairs)
    return patch(
        model, clean, corrupted, METRIC, component=component, positions=positions, progress=False
    )


@cache
def clean_cache(model: Any, width: int) -> ActivationCache:
    """All that TransformerLens keeps of the clean run of ``SHORT`` or ``LONG``, by their width."""
    (clean,) = (pairs[0] for pairs in (SHORT, LONG) if pairs[0].shape[1] == width)
    with torch.no_grad():
        _, found = model.run_with_cache(clean)
    assert isinstance(found, ActivationCache)
    return found


def cells(
    model: Any, component: str, width: int, *, by_position: bool
) -> Sequence[tuple[int, ...]]:
    """Which layers, units and positions TransformerLens patches, in the order of its setters.

    Where there are units, every second cell of the grid, so that any two of a layer, a unit and a
    position meet; of position 0, where all pairs are the same, the first cell alone.
    """
    units = range(count_units(model, component)) if component in HEADS else [0]
    places = range(width) if by_position else [0]
    found = [
        (layer, unit, place)
        for layer, unit, place in product(range(model.cfg.n_layers), units, places)
        if len(units) == 1 or (layer + unit + place) % 2 == 0
        if not by_position or place > 0 or (layer, unit) == (0, 0)
    ]
    if not by_position:
        return [(layer, unit) for layer, unit, _ in found]
    if component not in HEADS:
        return [(layer, place) for layer, _, place in found]
    if component == "pattern":
        return found
    return [(layer, place, unit) for layer, unit, place in found]


def theirs(model: Any, component: str, pairs: Pairs, *, by_position: bool) -> torch.Tensor:
    """TransformerLens' loop: Float[prompt layer unit (position)], the metric at `cells`."""
    clean, corrupted = pairs
    values: list[torch.Tensor] = []

    def of_the_first(logits: torch.Tensor) -> torch.Tensor:
        values.append(METRIC(logits[:, -1]))  # a sweep takes a number: the others' are kept here
        return values[-1][0]

    settings: dict[str, Any] = {}
    if component in HEADS:
        how = "by_pos" if by_position else "all_pos"
        name = f"get_act_patch_attn_head_{HEADS[component]}_{how}"
        sweep = getattr(transformer_lens.patching, name)
    else:
        sweep = transformer_lens.patching.generic_activation_patch
        settings = {
            "patch_setter": transformer_lens.patching.layer_pos_patch_setter,
            "activation_name": component,
        }
    asked = cells(model, component, clean.shape[1], by_position=by_position)
    settings |= {"index_axis_names": None, "index_df": pd.DataFrame(list(asked))}
    with torch.no_grad():
        first = sweep(
            model, corrupted, clean_cache(model, clean.shape[1]), of_the_first, **settings
        )
    shape = [max(cell[axis] for cell in asked) + 1 for axis in range(len(asked[0]))]
    found = torch.full((len(clean), *shape), torch.nan)
    for cell, value in zip(asked, values, strict=True):
        found[(slice(None), *cell)] = value
    assert torch.equal(torch.stack(values)[:, 0], first)
    # [prompt layer position head] of theirs; a pattern's head comes first already.
    return found.transpose(2, 3) if found.ndim == 4 and component != "pattern" else found


def agree(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same, wherever the slow reference was asked."""
    asked = ~expected.isnan()
    assert found.shape == expected.shape
    assert bool(asked.flatten(1).any(dim=1).all())
    torch.testing.assert_close(found[asked], expected[asked], **CLOSE)


@pytest.mark.parametrize("component", [name for name in HOOK_LOCATIONS if name != "mlp_post"])
def test_by_position_equals_transformer_lens(family: HookedModel, component: str) -> None:
    if not has(family, component):
        with pytest.raises(UserError, match="has no 'resid_mid'; it has: z, q, k, v, pattern"):
            ours(family, component, SHORT, "each")
        return
    result = ours(family, component, SHORT, "each")
    expected = theirs(family, component, SHORT, by_position=True)
    assert result.labels["position"] == ("1", "2")
    assert result.axes[2:-1] == (() if axis_of(component) is None else (axis_of(component),))
    bare = result.corrupted.reshape(-1, *[1] * (result.values.ndim - 1))
    agree(result.values + bare, expected[..., 1:])
    # Where the pair is still the same, a patch is no patch: exactly zero, not missing.
    agree(bare[..., 0].expand_as(expected[..., 0]), expected[..., 0])
    assert torch.equal(result.values[1, ..., 0], torch.zeros_like(result.values[1, ..., 0]))
    assert float(result.values.abs().amax()) > 0.02


@pytest.mark.parametrize("component", list(HEADS))
def test_all_positions_equal_transformer_lens(family: HookedModel, component: str) -> None:
    result = ours(family, component, LONG)
    expected = theirs(family, component, LONG, by_position=False)
    assert result.values.shape == (2, family.cfg.n_layers, count_units(family, component))
    agree(result.values + result.corrupted[:, None, None], expected)


@cache
def clean_values(model: Any, prompt: int) -> dict[str, torch.Tensor]:
    """What a clean prompt's run shows of whole layers."""
    whole = [name for name in HOOK_LOCATIONS if not axis_of(name) and has(model, name)]
    names = [hook_name(name, layer) for name in whole for layer in range(model.cfg.n_layers)]
    return seen_in(model, LONG[0][prompt], names)


@pytest.mark.parametrize("component", [name for name in HOOK_LOCATIONS if not axis_of(name)])
def test_whole_layers_at_all_positions_equal_whole_runs(
    family: HookedModel, full_logits: Any, unit_hook: Any, component: str
) -> None:
    if not has(family, component):
        with pytest.raises(UserError, match="this model has no 'resid_mid'; it has: z, "):
            ours(family, component, LONG)
        return
    result = ours(family, component, LONG)
    for prompt in range(2):
        values = clean_values(family, prompt)
        moves = {position: position for position in range(7)}
        for layer in range(prompt, family.cfg.n_layers, 2):  # each layer in one of the prompts
            hook = unit_hook(component, layer, 0, moves, values[hook_name(component, layer)])
            logits = full_logits(family, LONG[1][prompt], [hook])
            expected = METRIC.take(torch.tensor([prompt]))(logits[None])[0]
            patched = result.values[prompt, layer] + result.corrupted[prompt]
            torch.testing.assert_close(patched, expected, **CLOSE)


def test_each_neuron_equals_a_whole_run(
    family: HookedModel, full_logits: Any, full_values: Any, unit_hook: Any
) -> None:
    """The first and the last neuron of a layer, a middle one of the next, at all positions."""
    result = ours(family, "mlp_post", LONG)
    n_layers, d_mlp = family.cfg.n_layers, family.cfg.d_mlp
    assert result.axes == ("prompt", "layer", "neuron")
    assert result.values.shape == (2, n_layers, d_mlp)
    moves = {position: position for position in range(7)}
    names = [hook_name("mlp_post", layer) for layer in range(n_layers)]
    clean = full_values(family, LONG[0][0], names)
    for layer, name in enumerate(names):
        for neuron in (d_mlp // 2,) if layer % 2 else (0, d_mlp - 1):
            hook = unit_hook("mlp_post", layer, neuron, moves, clean[name])
            logits = full_logits(family, LONG[1][0], [hook])
            expected = METRIC.take(torch.tensor([0]))(logits[None])[0]
            patched = result.values[0, layer, neuron] + result.corrupted[0]
            torch.testing.assert_close(patched, expected, **CLOSE)
    assert float(result.values.abs().amax()) > 1e-3


@pytest.mark.parametrize("component", ["resid_pre", "resid_mid", "resid_post"])
def test_the_whole_residual_stream_carries_the_whole_run(
    tiny_llama: HookedModel, component: str
) -> None:
    """Whatever the layer, the clean stream at all positions gives the clean run's metric."""
    result = ours(tiny_llama, component, LONG)
    gap = (result.clean - result.corrupted)[:, None].expand_as(result.values)
    torch.testing.assert_close(result.values, gap, **CLOSE)
    assert float(gap.abs().min()) > 0.1


def test_a_key_value_head_serves_its_group(tiny_llama: HookedModel, full_values: Any) -> None:
    """Patching kv head 1 of 2 moves the patterns of query heads 2 and 3, and of no others."""
    name = hook_name("k", 1)
    assert ours(tiny_llama, "k", SHORT).axes == ("prompt", "layer", "kv_head")
    clean = full_values(tiny_llama, SHORT[0][0], [name])[name]

    def swap(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([value[:, :, :1], clean[None, :, 1:]], dim=2)

    pattern = hook_name("pattern", 1)
    before = full_values(tiny_llama, SHORT[1][0], [pattern])[pattern]
    with tiny_llama.hooks(fwd_hooks=[(name, swap)]):
        after = full_values(tiny_llama, SHORT[1][0], [pattern])[pattern]
    moved = (after - before).abs().amax(dim=(1, 2))
    assert moved[:2].tolist() == [0, 0]
    assert float(moved[2:].min()) > 1e-3


def test_an_edited_middle_goes_on_in_the_stream(tiny_llama: HookedModel) -> None:
    """The bridge's hook point is the MLP norm's input; the engine's edit is of the stream itself.

    Only the MLP's share of the effect would be seen otherwise, which is what ``mlp_out`` gives.
    """
    middle, mlp = (ours(tiny_llama, name, LONG).values for name in ("resid_mid", "mlp_out"))
    assert float((middle - mlp).abs().min()) > 1e-3


@pytest.mark.parametrize("component", list(HOOK_LOCATIONS))
def test_units_are_a_view_of_what_the_hook_point_shows(component: str) -> None:
    shape = {"pattern": (2, 4, 3, 5), None: (2, 3, 8), "neuron": (2, 3, 4)}.get(
        component if component == "pattern" else axis_of(component), (2, 3, 4, 8)
    )
    value = torch.randn(shape)
    shown = as_units(value, component)
    assert shown.shape[:2] == (2, 3)
    assert shown.shape[2] == (4 if axis_of(component) else 1)
    assert torch.equal(from_units(shown, component), value)
    shown.zero_()
    assert not bool(value.any())


def test_units_are_counted_by_their_axis(tiny_llama: HookedModel, tiny_gpt2: HookedModel) -> None:
    counts = {name: count_units(tiny_llama, name) for name in HOOK_LOCATIONS}
    units = {"z": 4, "q": 4, "k": 2, "v": 2, "pattern": 4, "mlp_post": tiny_llama.cfg.d_mlp}
    assert counts == {name: units.get(name, 1) for name in HOOK_LOCATIONS}
    assert count_units(tiny_gpt2, "k") == 4


def test_unknown_components_list_the_known() -> None:
    with pytest.raises(UserError) as caught:
        check_component("result")
    assert str(caught.value) == (
        "unknown component 'result'; known: z, q, k, v, pattern, attn_out, mlp_post, mlp_out, "
        "resid_pre, resid_mid, resid_post"
    )
