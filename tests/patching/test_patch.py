"""``patch`` gives the numbers of whole, unpadded forward passes, one prompt and one hook each."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import interp.models
from interp.errors import UserError
from interp.forward.hook_points import HOOK_LOCATIONS, count_units, hook_name
from interp.models import HookedModel
from interp.patching import LogitDifference, Probability, TokenBatch, patch, patch_heads
from interp.patching.patch_source import derangement, mean_values
from tests.patching.conftest import run_one

# Equal lengths within a pair; longer than gemma3's window, and shorter.
CLEAN = [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22], [40, 41, 42, 43, 44]]
CORRUPTED = [[5, 9, 71, 8, 30, 33, 32, 12], [20, 29, 22], [40, 41, 42, 49, 44]]
FIRST = (2, 1, 3)
# Pairs that differ in length, aligned at two spans.
OTHER = [[15, 9, 7, 8, 30], [20, 26, 27, 28, 22, 25], [41, 42, 43, 44]]
SPANS = {
    "name": ([(2, 4), (1, 2), (0, 3)], [(1, 2), (1, 4), (0, 2)]),
    "end": ([(7, 8), (2, 3), (4, 5)], [(4, 5), (5, 6), (3, 4)]),
}
METRIC = LogitDifference(torch.tensor([3, 14, 15]), torch.tensor([65, 35, 89]))
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


def batch(prompts: list[list[int]]) -> TokenBatch:
    return TokenBatch.from_lists(prompts)


def run(model: Any, corrupted: Any = None, **options: Any) -> Any:
    other = batch(CORRUPTED if corrupted is None else corrupted)
    return patch(model, batch(CLEAN), other, METRIC, progress=False, **options)


def of_prompt(prompt: int, logits: torch.Tensor) -> float:
    return float(METRIC.take(torch.tensor([prompt]))(logits[None])[0])


@cache
def unpatched(model: Any, prompt: int) -> tuple[float, float]:
    """The metric of a prompt of ``OTHER``, and of its clean one."""
    ours, clean = (run_one(model, prompts[prompt]) for prompts in (OTHER, CLEAN))
    return of_prompt(prompt, ours), of_prompt(prompt, clean)


def aligned(prompt: int, name: str) -> dict[int, int]:
    """Corrupted token → clean token, by last tokens; the longer span repeats the first."""
    (first, last), (start, end) = SPANS[name][0][prompt], SPANS[name][1][prompt]
    return {here: max(first, last - (end - here)) for here in range(start, end)}


@pytest.mark.parametrize("component", ["z", "k", "attn_out"])
def test_spans_of_mixed_lengths_equal_whole_runs(
    family: HookedModel, full_logits: Any, full_values: Any, unit_hook: Any, component: str
) -> None:
    layer, unit = family.cfg.n_layers - 1, count_units(family, component) - 1
    result = run(family, OTHER, component=component, positions=SPANS, units=[(layer, unit)])
    assert result.labels == {"span": ("name", "end")}
    name = hook_name(component, layer)
    for prompt, tokens in enumerate(OTHER):
        clean = full_values(family, CLEAN[prompt], [name])[name]
        bare, own = unpatched(family, prompt)
        assert float(result.corrupted[prompt]) == pytest.approx(bare, abs=1e-5)
        assert float(result.clean[prompt]) == pytest.approx(own, abs=1e-5)
        for place, span in enumerate(SPANS):
            if (prompt + place + (component == "k")) % 2:  # the other half in another component
                continue
            hook = unit_hook(component, layer, unit, aligned(prompt, span), clean)
            expected = of_prompt(prompt, full_logits(family, tokens, [hook])) - bare
            where = (
                (prompt, layer, place)
                if component == "attn_out"
                else (
                    prompt,
                    layer,
                    unit,
                    place,
                )
            )
            assert float(result.values[where]) == pytest.approx(expected, abs=1e-5)
    assert float(result.values.abs().nan_to_num().max()) > 5e-3


def test_each_position_of_mixed_lengths(
    family: HookedModel, full_logits: Any, full_values: Any, unit_hook: Any
) -> None:
    """NaN where a shorter prompt has padding, zero before the first difference, else the effect."""
    result = run(family, component="z", positions="each", units=[(1, 2)])
    width = len(CLEAN[0])
    assert result.labels["position"] == tuple(map(str, range(2, width)))
    name = hook_name("z", 1)
    for prompt, tokens in enumerate(CORRUPTED):
        clean = full_values(family, CLEAN[prompt], [name])[name]
        bare = of_prompt(prompt, full_logits(family, tokens))
        for place in range(width - 2):
            position = place + 2 - (width - len(tokens))
            found = float(result.values[prompt, 1, 2, place])
            if position < 0:
                assert math.isnan(found)
            elif position < FIRST[prompt]:
                assert found == 0
            else:
                hook = unit_hook("z", 1, 2, {position: position}, clean)
                expected = of_prompt(prompt, full_logits(family, tokens, [hook])) - bare
                assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("side", "component"), [("left", "q"), ("right", "pattern"), ("right", "mlp_out")]
)
def test_padding_on_either_side_equals_prompts_one_by_one(
    families: dict[str, HookedModel], side: str, component: str
) -> None:
    """Padding holds a token that differs between the runs: it must not count as a difference."""
    model, width = families["gemma3"], 9

    def padded(prompts: list[list[int]], pad: int) -> TokenBatch:
        tokens = torch.full((len(prompts), width), pad)
        mask = torch.zeros(len(prompts), width)
        for row, prompt in enumerate(prompts):
            at = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), width)
            tokens[row, at], mask[row, at] = torch.tensor(prompt), 1
        return TokenBatch.from_padded(tokens, mask)

    options: dict[str, Any] = {"component": component, "units": [(2, 0), (1, 0)]}
    together = patch(
        model, padded(CLEAN, 0), padded(CORRUPTED, 200), METRIC, progress=False, **options
    )
    for prompt in range(3):
        alone = patch(
            model,
            batch([CLEAN[prompt]]),
            batch([CORRUPTED[prompt]]),
            METRIC.take(torch.tensor([prompt])),
            progress=False,
            **options,
        )
        torch.testing.assert_close(
            together.values[prompt], alone.values[0], rtol=0, atol=2e-5, equal_nan=True
        )
        assert float(alone.values.abs().nan_to_num().max()) > 1e-3


def test_no_source_is_zero(family: HookedModel, full_logits: Any, unit_hook: Any) -> None:
    """Zero does not depend on the clean prompt: all real tokens, before the difference too."""
    result = run(family, component="v", source="zero")
    unit = count_units(family, "v") - 1
    for prompt, tokens in enumerate(CORRUPTED):
        moves = {position: position for position in range(len(tokens))}
        hook = unit_hook("v", 0, unit, moves, None)
        expected = of_prompt(prompt, full_logits(family, tokens, [hook])) - of_prompt(
            prompt, full_logits(family, tokens)
        )
        assert float(result.values[prompt, 0, unit]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("with_reference", [False, True])
def test_the_mean_of_a_reference_set(
    tiny_llama: HookedModel, full_logits: Any, unit_hook: Any, with_reference: bool
) -> None:
    reference = batch([[1, 2, 3], [4, 5, 6, 7]]) if with_reference else batch(CLEAN)
    given_reference = {"reference": reference} if with_reference else {}
    result = run(tiny_llama, source="mean", positions="each", units=[(2, 1)], **given_reference)
    mean = mean_values(tiny_llama, reference, "z")[2][None]  # as if of a run of one token
    tokens = CORRUPTED[0]
    for position in (0, 5):
        hook = unit_hook("z", 2, 1, {position: 0}, mean)
        expected = of_prompt(0, full_logits(tiny_llama, tokens, [hook])) - of_prompt(
            0, full_logits(tiny_llama, tokens)
        )
        assert float(result.values[0, 2, 1, position]) == pytest.approx(expected, abs=1e-5)
    assert result.source == "mean"


def test_a_resample_is_another_prompts_clean_run(
    tiny_llama: HookedModel, full_logits: Any, full_values: Any, unit_hook: Any
) -> None:
    """At spans, where prompts of any length meet; the order is the seed's."""
    result = run(tiny_llama, OTHER, source="resample", positions=SPANS, seed=3)
    order, name = derangement(3, 3), hook_name("z", 1)
    for prompt, tokens in enumerate(OTHER):
        drawn = order[prompt]
        clean = full_values(tiny_llama, CLEAN[drawn], [name])[name]
        (first, last), (start, end) = SPANS["name"][0][drawn], SPANS["name"][1][prompt]
        moves = {here: max(first, last - (end - here)) for here in range(start, end)}
        hook = unit_hook("z", 1, 3, moves, clean)
        expected = of_prompt(prompt, full_logits(tiny_llama, tokens, [hook])) - of_prompt(
            prompt, full_logits(tiny_llama, tokens)
        )
        assert float(result.values[prompt, 1, 3, 0]) == pytest.approx(expected, abs=1e-5)
    # The clean metric is that of the pair's own clean prompt, drawn or not.
    own = [of_prompt(prompt, full_logits(tiny_llama, CLEAN[prompt])) for prompt in range(3)]
    torch.testing.assert_close(result.clean, torch.tensor(own), **CLOSE)


def test_only_some_units(tiny_llama: HookedModel) -> None:
    every = run(tiny_llama, component="k")
    some = run(tiny_llama, component="k", units=[(2, 1), (0, 0)])
    asked = torch.zeros(3, 2, dtype=torch.bool)
    asked[2, 1] = asked[0, 0] = True
    torch.testing.assert_close(some.values[:, asked], every.values[:, asked], **CLOSE)
    assert bool(some.values[:, ~asked].isnan().all())


@pytest.mark.parametrize("method", ["exact", "attribution", "ig", "atp*"])
def test_the_order_of_prompts_is_irrelevant(tiny_llama: HookedModel, method: str) -> None:
    order = torch.tensor([2, 0, 1])
    places = "each" if method == "attribution" else "all"
    options: dict[str, Any] = {"method": method, "positions": places, "progress": False}
    shuffled = patch(
        tiny_llama,
        batch(CLEAN).take(order.tolist()),
        batch(CORRUPTED).take(order.tolist()),
        METRIC.take(order),
        budget=130_000,
        steps=1,
        **options,
    )
    expected = patch(tiny_llama, batch(CLEAN), batch(CORRUPTED), METRIC, steps=1, **options)
    torch.testing.assert_close(
        shuffled.values, expected.values[order], rtol=0, atol=1e-5, equal_nan=True
    )


def test_first_order_effects_add_up_over_places(tiny_llama: HookedModel) -> None:
    for method in ("attribution", "ig"):
        whole = run(tiny_llama, method=method, steps=1)
        each = run(tiny_llama, method=method, steps=1, positions="each")
        torch.testing.assert_close(each.values.nansum(dim=-1), whole.values, **CLOSE)
        assert (
            each.values[1, 0, 0].isnan().tolist()
            == run(tiny_llama, positions="each", units=[(0, 0)]).values[1, 0, 0].isnan().tolist()
        )


def test_equal_prompts_have_no_effect(tiny_llama: HookedModel) -> None:
    """The negative control: nothing to patch in, for any method, component or place."""
    for options in (
        {},
        {"component": "resid_mid"},
        {"component": "pattern", "positions": "each"},
        {"method": "attribution", "component": "q"},
        {"method": "ig", "steps": 1},
        {"method": "atp*", "component": "k"},
        {"positions": {"all": ([(0, 3)] * 3, [(0, 3)] * 3)}},
    ):
        result = run(tiny_llama, CLEAN, **options)
        assert float(result.values.abs().nan_to_num().max()) < 1e-5
        torch.testing.assert_close(result.clean, result.corrupted, **CLOSE)


def test_patch_heads_gives_the_metric_itself(tiny_llama: HookedModel) -> None:
    """The contract's function and ``patch`` agree, up to the unpatched metric."""
    clean, corrupted = (torch.tensor([one[0], one[0][::-1]]) for one in (CLEAN, CORRUPTED))
    metric = METRIC.take(torch.tensor([0, 1]))
    for component in ("z", "v"):
        values = patch_heads(
            tiny_llama, clean, corrupted, metric, component=component, progress=False
        )
        result = patch(
            tiny_llama,
            TokenBatch.from_padded(clean),
            TokenBatch.from_padded(corrupted),
            metric,
            component=component,
            progress=False,
        )
        torch.testing.assert_close(values, result.values + result.corrupted[:, None, None], **CLOSE)


def test_a_result_says_what_was_done(tiny_llama: HookedModel) -> None:
    result = patch(
        tiny_llama,
        batch(CLEAN),
        batch(CORRUPTED),
        Probability(torch.tensor([3, 14, 15])),
        component="q",
        groups=("a", "a", "b"),
        templates=("s", "t", "s"),
        seed=7,
        progress=False,
    )
    assert (result.component, result.method, result.source) == ("q", "exact", "run")
    assert (result.metric, result.seed) == ("Probability", 7)
    assert (result.groups, result.templates) == (("a", "a", "b"), ("s", "t", "s"))
    assert result.axes == ("prompt", "layer", "head")


def test_a_metric_of_ones_own_sees_all_prompts_in_order(tiny_llama: HookedModel) -> None:
    def own(logits: torch.Tensor) -> torch.Tensor:
        return METRIC(logits)

    result = patch(tiny_llama, batch(CLEAN), batch(CORRUPTED), own, budget=64_000, progress=False)
    torch.testing.assert_close(result.values, run(tiny_llama).values, **CLOSE)
    assert result.metric == "own"


def test_the_fraction_recovered_needs_a_gap(tiny_llama: HookedModel) -> None:
    whole = run(tiny_llama, component="resid_pre")
    torch.testing.assert_close(whole.recovered(), torch.ones(3), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"same mean LogitDifference.*there is no gap") as caught:
        run(tiny_llama, CLEAN).recovered()
    assert "\n" not in str(caught.value)


def test_a_model_that_gives_nan_names_the_layer(hf_factory: Any, plain_tokenizer: Any) -> None:
    hf_model = hf_factory("llama", plain_tokenizer, seed=1)
    with torch.no_grad():
        hf_model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    model = interp.models.from_hf(hf_model, plain_tokenizer)
    for method in ("exact", "attribution"):
        with pytest.raises(
            UserError,
            match=r"NaN or infinity: hook blocks\.1\.\S+ of layer 1 is not finite, because",
        ) as caught:
            run(model, method=method)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"component": "nose"}, "unknown component 'nose'; known: z, q, k, v, pattern, attn_out"),
        (
            {"method": "guess"},
            "unknown method 'guess'; known: exact, attribution, atp\\*, ig, screen",
        ),
        ({"source": "noise"}, "unknown source 'noise'; known: run, zero, mean, resample"),
        ({"positions": "last"}, "unknown positions 'last'; known: all, each, or named spans"),
        ({"corrupted": OTHER}, "differ in length: give spans to align them by"),
        ({"corrupted": CORRUPTED[:2]}, "3 clean prompts but 2 corrupted ones: give pairs"),
        ({"units": [(3, 0)]}, r"head \(3, 0\) does not exist: the model has layers 0 to 2"),
        (
            {"units": [(0, 2)], "component": "k"},
            r"unit \(0, 2\) does not exist: .* units 0 to 1",
        ),
        ({"units": [(0, 0)], "method": "ig"}, "gives all units at once: leave `units` out"),
        ({"component": "pattern", "source": "mean"}, "a mean attention pattern is not defined"),
        (
            {"component": "pattern", "positions": SPANS, "corrupted": OTHER},
            "a pattern's keys are positions: patch it at equal lengths",
        ),
        ({"method": "ig", "steps": 0}, "at least one step, not 0"),
        ({"budget": 1000}, "a budget of 0.000954 MiB is too small for one prompt of 8 tokens"),
        ({"groups": ("a",)}, "3 prompts but 1 groups"),
        ({"reference": CLEAN}, "reference prompts are for source 'mean', not 'run'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tiny_llama: HookedModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(tiny_llama, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["exact", "attribution", "ig", "atp*"])
def test_a_metric_of_another_shape_is_told(tiny_llama: HookedModel, method: str) -> None:
    with pytest.raises(UserError, match=r"one value per prompt, \[3\]; this one: \(\)"):
        patch(
            tiny_llama,
            batch(CLEAN),
            batch(CORRUPTED),
            lambda logits: logits.mean(),
            method=method,
            progress=False,
        )


def test_blocks_have_no_heads_to_patch(tiny_llama: HookedModel) -> None:
    tokens = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(UserError, match="'mlp_out' has no heads: use interp"):
        patch_heads(tiny_llama, tokens, tokens, METRIC, component="mlp_out")


def test_a_longer_span_repeats_the_other_ones_first_token_in_a_single_prompt(
    tiny_llama: HookedModel,
) -> None:
    """Both places take the clean run's place 0, where one token attends to itself.

    In layer 0 the output is then the value of token 2, as it is in the corrupted run of twos.
    """
    spans = {"here": ([(0, 1)], [(0, 2)])}
    same = patch(
        tiny_llama,
        batch([[2, 3]]),
        batch([[2, 2]]),
        METRIC.take(torch.tensor([0])),
        positions=spans,
        progress=False,
    )
    assert float(same.values[0, 0].abs().max()) < 1e-5
    spans = {"here": ([(0, 2)], [(0, 2)])}
    other = patch(
        tiny_llama,
        batch([[2, 3]]),
        batch([[2, 2]]),
        METRIC.take(torch.tensor([0])),
        positions=spans,
        progress=False,
    )
    assert float(other.values[0, 0].abs().max()) > 1e-3


tokens = st.lists(st.integers(2, 300), min_size=1, max_size=6)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_unit_at_any_span_of_any_prompts(
    tiny_llama: HookedModel, full_logits: Any, full_values: Any, unit_hook: Any, data: st.DataObject
) -> None:
    clean = data.draw(st.lists(tokens, min_size=1, max_size=3))
    corrupted = [data.draw(tokens) for _ in clean]

    def span(prompt: list[int]) -> tuple[int, int]:
        start = data.draw(st.integers(0, len(prompt) - 1))
        return start, data.draw(st.integers(start + 1, len(prompt)))

    spans = [span(prompt) for prompt in clean], [span(prompt) for prompt in corrupted]
    component = data.draw(st.sampled_from([name for name in HOOK_LOCATIONS if name != "pattern"]))
    layer = data.draw(st.integers(0, 2))
    unit = data.draw(st.integers(0, count_units(tiny_llama, component) - 1))
    metric = LogitDifference(torch.tensor([3] * len(clean)), torch.tensor([65] * len(clean)))
    result = patch(
        tiny_llama,
        batch(clean),
        batch(corrupted),
        metric,
        component=component,
        positions={"here": spans},
        units=[(layer, unit)],
        progress=False,
    )
    name = hook_name(component, layer)
    for prompt, own in enumerate(corrupted):
        (first, last), (start, end) = spans[0][prompt], spans[1][prompt]
        moves = {here: max(first, last - (end - here)) for here in range(start, end)}
        other = full_values(tiny_llama, clean[prompt], [name])[name]
        logits = full_logits(tiny_llama, own, [unit_hook(component, layer, unit, moves, other)])
        bare = full_logits(tiny_llama, own)
        expected = float((logits[3] - logits[65]) - (bare[3] - bare[65]))
        found = result.values[prompt, layer].reshape(-1)[unit]
        assert float(found) == pytest.approx(expected, abs=2e-5)
