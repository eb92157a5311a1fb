"""Integrated gradients: complete per layer, and the mean slope along the way."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.forward.hook_points import count_units, hook_name
from interp.models import HookedModel
from interp.patching import LogitDifference, Probability, TokenBatch, patch, sweep_sets
from interp.patching.alignment import align
from interp.patching.integrated_gradients import integrate_positions
from interp.patching.patch_source import patching_edit

CLEAN = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31], [40, 41, 42, 43]])
CORRUPTED = TokenBatch.from_lists([[5, 9, 7, 81, 30, 31], [40, 51, 42, 43]])
METRIC = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))
# Not linear in the logits, and small: to be compared on its own scale.
PROBABILITY = Probability(torch.tensor([3, 14]))


def edit_for(model: Any, component: str) -> Any:
    with torch.no_grad():
        return patching_edit(model, CLEAN, align(CLEAN, CORRUPTED, "all"), component=component)


def whole_layers(model: Any, component: str, metric: Any) -> torch.Tensor:
    """The effect of editing all units of a layer together, Float[prompt layer]."""
    n_units = count_units(model, component)
    sets: list[list[tuple[int, int]]] = [
        [(layer, unit) for unit in range(n_units)] for layer in range(model.cfg.n_layers)
    ]
    values = sweep_sets(
        model,
        CORRUPTED,
        edit_for(model, component),
        sets=[[], *sets],
        metrics=[metric],
        progress=False,
    )[0]
    return values[:, 1:] - values[:, :1]


def integral(model: Any, component: str, metric: Any, steps: int) -> torch.Tensor:
    return patch(
        model,
        CLEAN,
        CORRUPTED,
        metric,
        component=component,
        method="ig",
        steps=steps,
        progress=False,
    ).values


@pytest.mark.parametrize("component", ["z", "k", "resid_mid"])
def test_a_layers_effects_add_up_to_the_layers_effect(
    tiny_llama: HookedModel, component: str
) -> None:
    """Completeness, and the midpoint rule's error falls with the square of the steps."""
    whole = whole_layers(tiny_llama, component, METRIC)
    errors = []
    for steps in (1, 3, 9):
        effects = integral(tiny_llama, component, METRIC, steps)
        errors.append(float((effects.reshape(2, 3, -1).sum(dim=2) - whole).abs().max()))
    assert float(whole.abs().max()) > 0.2
    assert errors[2] < 0.01 * float(whole.abs().max())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.mark.parametrize(
    ("name", "component"), [("gpt2", "q"), ("gemma3", "mlp_out"), ("neox", "pattern")]
)
def test_completeness_on_other_architectures(
    families: dict[str, HookedModel], name: str, component: str
) -> None:
    family = families[name]
    whole = whole_layers(family, component, METRIC)
    effects = integral(family, component, METRIC, 8).reshape(2, family.cfg.n_layers, -1)
    torch.testing.assert_close(
        effects.sum(dim=2), whole, rtol=0, atol=0.02 * float(whole.abs().max())
    )


def test_completeness_of_a_metric_that_is_not_linear(tiny_llama: HookedModel) -> None:
    whole = whole_layers(tiny_llama, "z", PROBABILITY)
    effects = integral(tiny_llama, "z", PROBABILITY, 16).sum(dim=2)
    size = float(whole.abs().max())
    assert size > 1e-4
    torch.testing.assert_close(effects, whole, rtol=0, atol=0.01 * size)


def test_it_is_exact_where_the_model_is_linear(micro: HookedModel) -> None:
    """One step is enough; by hand, from test_micro: u3 = 30 → 23.5, v = 90 → 70.5, w → 16.208."""
    clean, corrupted = TokenBatch.from_lists([[1, 1, 5, 7]]), TokenBatch.from_lists([[1, 3, 5, 7]])
    metric = LogitDifference(torch.tensor([0]), torch.tensor([1]))
    options: dict[str, Any] = {"progress": False}
    effects = patch(micro, clean, corrupted, metric, method="ig", steps=1, **options).values[0]
    w = 16 * ((12 + 12 + 52 / 3 + 23.5) / 4 - 21)
    expected = [[-6.5 - 195 - 18 + w, 0], [-6.5 + w, -195], [w, 0]]
    torch.testing.assert_close(effects, torch.tensor(expected), rtol=0, atol=3e-3)
    exact = patch(micro, clean, corrupted, metric, **options).values[0]
    torch.testing.assert_close(effects, exact, rtol=0, atol=3e-3)


@torch.no_grad()
def test_each_step_is_a_gradient_along_the_way(tiny_llama: HookedModel, full_values: Any) -> None:
    """Two steps, said literally with whole runs: gradients at 1/4 and 3/4 of the way."""
    layer, name = 1, hook_name("z", 1)
    clean = full_values(tiny_llama, CLEAN.tokens[0], [name])[name]
    own = full_values(tiny_llama, CORRUPTED.tokens[0], [name])[name]
    metric, expected = METRIC.take(torch.tensor([0])), torch.zeros(4)
    for share in (0.25, 0.75):
        leaf = (own + share * (clean - own)).requires_grad_()

        def walk(value: torch.Tensor, hook: Any, leaf: Any = leaf) -> torch.Tensor:
            return leaf[None]

        with torch.enable_grad(), tiny_llama.hooks(fwd_hooks=[(name, walk)]):
            metric(tiny_llama(CORRUPTED.tokens[:1])[:, -1]).sum().backward()
        assert leaf.grad is not None
        expected += ((clean - own) * leaf.grad).sum(dim=(0, 2)) / 2
    found = integral(tiny_llama, "z", METRIC, 2)[0, layer]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_columns_before_the_first_difference_are_zero(tiny_llama: HookedModel) -> None:
    columns = integrate_positions(
        tiny_llama, CORRUPTED, edit_for(tiny_llama, "z"), metric=METRIC, steps=1, progress=False
    )
    assert columns.shape == (2, 3, 4, 6)
    assert not bool(columns[:, :, :, :3].any())
    assert bool((columns[:, :, :, 3:] != 0).any(dim=(0, 1, 2)).all())
    assert not columns.requires_grad


@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(tiny_llama: HookedModel, steps: int) -> None:
    with pytest.raises(UserError, match=f"at least one step, not {steps}"):
        integral(tiny_llama, "z", METRIC, steps)
