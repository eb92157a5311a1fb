"""Attribution ranks, exact patching verifies, and what was left out has a bound."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

import interp.models
from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, patch, screen
from interp.patching.screen import marginal_bounds, random_eighths

CLEAN = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31], [40, 41, 42, 43]])
CORRUPTED = TokenBatch.from_lists([[5, 9, 7, 81, 30, 31], [40, 51, 42, 43]])
METRIC = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))


def run(model: Any, **options: Any) -> Any:
    return screen(model, CLEAN, CORRUPTED, METRIC, progress=False, **options)


def exact(model: Any, **options: Any) -> Any:
    return patch(model, CLEAN, CORRUPTED, METRIC, progress=False, **options)


@pytest.mark.parametrize(
    "options", [{}, {"component": "mlp_out", "source": "zero"}, {"component": "v"}]
)
def test_the_first_are_verified_exactly(tiny_llama: HookedModel, options: dict[str, Any]) -> None:
    found, every = run(tiny_llama, top_k=2, **options), exact(tiny_llama, **options)
    verified = ~found.verified.values.isnan().any(dim=0)
    assert int(verified.sum()) == 2
    torch.testing.assert_close(
        found.verified.values[:, verified], every.values[:, verified], rtol=0, atol=1e-5
    )
    # They are the first by the estimate, and the others have a bound instead.
    sizes = found.estimate.mean.abs()
    assert float(sizes[verified].min()) >= float(sizes[~verified].max())
    assert np.isnan(found.bound).tolist() == verified.reshape(found.bound.shape).tolist()
    attribution = exact(tiny_llama, method="attribution", **options)
    assert torch.equal(found.estimate.values, attribution.values)


def test_correlations_are_those_of_the_verified(tiny_llama: HookedModel) -> None:
    found, every = run(tiny_llama, top_k=6), exact(tiny_llama)
    verified = ~found.verified.mean.isnan()
    x, y = found.estimate.mean[verified].numpy(), every.mean[verified].numpy()
    pearson: Any = pearsonr(x, y)
    spearman: Any = spearmanr(x, y)
    assert found.pearson == pytest.approx(float(pearson.statistic), abs=1e-5)
    assert found.spearman == pytest.approx(float(spearman.statistic), abs=1e-5)
    assert 0.5 < found.pearson < 1


def test_an_estimate_without_a_sign_is_compared_with_sizes(tiny_llama: HookedModel) -> None:
    found, every = run(tiny_llama, top_k=6, ranked_by="atp*"), exact(tiny_llama)
    verified = ~found.verified.mean.isnan()
    spearman: Any = spearmanr(found.estimate.mean[verified], every.mean[verified].abs())
    assert found.spearman == pytest.approx(float(spearman.statistic), abs=1e-5)
    figure: Any = found.plot()
    assert figure.layout.title.text == f"Spearman {found.spearman:.2f}, 6 heads"
    sizes = sorted(every.mean[verified].abs().tolist())
    assert sorted(figure.data[0].y) == pytest.approx(sizes, rel=1e-4)
    assert "exact, absolute" in figure.layout.yaxis.title.text


@pytest.mark.parametrize(
    ("component", "units", "hover"),
    [
        ("mlp_out", "3 layers", "<b>layer %{customdata[0]}</b>"),
        ("v", "4 key/value heads", "key/value head %{customdata[1]}</b>"),
    ],
)
def test_the_figure_names_its_units(
    tiny_llama: HookedModel, component: str, units: str, hover: str
) -> None:
    found = run(tiny_llama, component=component, top_k=4)
    figure: Any = found.plot()
    assert figure.layout.title.text == f"Spearman {found.spearman:.2f}, {units}"
    assert hover in figure.data[0].hovertemplate


@pytest.mark.parametrize("seed", range(3))
def test_what_was_left_out_is_below_its_bound(
    hf_factory: Any, plain_tokenizer: Any, seed: int
) -> None:
    """Random models, ranked by attribution; the exact effects of all the rest are known here."""
    sizes = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 4}
    hf_model = hf_factory("llama", plain_tokenizer, seed=seed, **sizes)
    model = interp.models.from_hf(hf_model, plain_tokenizer)
    found, every = run(model, top_k=4, seed=seed), exact(model)
    left = ~np.isnan(found.bound)
    missed = np.abs(every.mean.numpy()[left])
    assert float(missed.max()) <= found.largest_missed == float(found.bound[left].max())
    assert bool((missed <= found.bound[left]).all())
    assert found.confidence == 0.95
    # It is of use: not much above what there is to miss.
    assert found.largest_missed < 3 * float(missed.max())


def test_verifying_all_leaves_nothing_to_bound(tiny_llama: HookedModel) -> None:
    found = run(tiny_llama, top_k=100)
    torch.testing.assert_close(found.verified.values, exact(tiny_llama).values, rtol=0, atol=1e-5)
    assert bool(np.isnan(found.bound).all())
    assert found.largest_missed == 0


def test_equal_prompts_give_nothing(tiny_llama: HookedModel) -> None:
    """The negative control: no effects, no bound to speak of, and nothing that is not rounding."""
    found = screen(tiny_llama, CLEAN, CLEAN, METRIC, top_k=3, progress=False)
    assert float(found.estimate.values.abs().max()) < 1e-5
    assert float(found.verified.values.nan_to_num().abs().max()) < 1e-5
    assert found.largest_missed < 1e-4


def test_effects_that_are_all_the_same_correlate_with_nothing(tiny_llama: HookedModel) -> None:
    def constant(logits: torch.Tensor) -> torch.Tensor:
        return 0 * logits[:, 0] + 7

    found = screen(tiny_llama, CLEAN, CORRUPTED, constant, top_k=3, progress=False)
    assert math.isnan(found.pearson)
    assert math.isnan(found.spearman)
    figure: Any = found.plot()
    assert figure.layout.title.text == "Spearman –, 3 heads"
    assert found.largest_missed == 0


def test_patch_gives_the_verified(tiny_llama: HookedModel) -> None:
    both = [
        exact(tiny_llama, method="screen", top_k=3, seed=1, groups=("a", "b")),
        run(tiny_llama, top_k=3, seed=1, groups=("a", "b")).verified,
    ]
    assert torch.equal(both[0].values.nan_to_num(), both[1].values.nan_to_num())
    assert both[0].groups == ("a", "b")
    said = both[0].metadata
    assert both[0].method == "screen"
    assert said["ranked_by"] == "attribution"
    assert set(said) == {"ranked_by", "pearson", "spearman", "largest_missed", "confidence"}


def test_linear_effects_are_bounded_by_themselves() -> None:
    """By hand: two units, all four subsets; y = 3 a − b, so that a run with a is 3 above one
    without. Each mean has two runs one apart: standard error √(0.5/2 + 0.5/2)."""
    inside = np.array([[True, True], [True, False], [False, True], [False, False]])
    values = np.array([2.0, 3.0, -1.0, 0.0])
    bounds = marginal_bounds(values, inside, 0.95)
    # Student's t with two degrees of freedom at 1 − 0.05 / (2 · 2) is 6.2053; for unit b the runs
    # are three apart: √(4.5/2 + 4.5/2).
    assert bounds == pytest.approx([3 + 6.2053 * 0.5**0.5, 1 + 6.2053 * 4.5**0.5], abs=1e-3)


def test_a_bound_of_nothing_is_zero() -> None:
    inside = random_eighths(5, 16, 0)
    assert marginal_bounds(np.full(len(inside), 7.0), inside, 0.95).tolist() == [0.0] * 5


@given(st.integers(1, 30), st.integers(0, 70), st.integers(0, 99))
def test_every_unit_is_in_an_eighth_of_the_draws(count: int, draws: int, seed: int) -> None:
    inside = random_eighths(count, draws, seed)
    assert inside.shape == (max(16, draws), count)
    assert (inside.sum(axis=0) == len(inside) // 8).all()
    assert np.array_equal(inside, random_eighths(count, draws, seed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "each"}, "screening is of whole units: use positions 'all'"),
        ({"source": "resample"}, "screening draws no resamples: use source run, zero or mean"),
        ({"top_k": 1}, "screening verifies at least two units, not 1"),
        ({"component": "nose"}, "unknown component 'nose'; known: z"),
        ({"ranked_by": "guess"}, "unknown method 'guess'; known: exact"),
        ({"budget": 1000}, "too small for one prompt"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tiny_llama: HookedModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(tiny_llama, **options)
    assert "\n" not in str(caught.value)
