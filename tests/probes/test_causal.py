"""Taking a probe's direction away: by hand, against whole runs, and where it is planted."""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.evaluation import preference
from interp.heads import HeadSet
from interp.interventions import Constraint
from interp.models import HookedModel
from interp.models.versions import writes_resid_mid
from interp.patching import TokenBatch, hooked, tail_logits
from interp.premises import Premises, load_premises
from interp.premises.encode import encode_premises
from probes import LinearProbe
from probes.causal import DirectionRemoval, remove_direction, step_along


def probe_of(model: Any, weight: torch.Tensor, layer: int = 0, **place: Any) -> LinearProbe:
    place = {"hook": "resid_post", "position": "object"} | place
    return LinearProbe(weight, 0.5, layer, fingerprint=interp.models.fingerprint(model), **place)


@pytest.fixture(scope="module")
def marks_countries(planted: HookedModel) -> LinearProbe:
    """Reads the mark by which READER finds the object."""
    weight = torch.zeros(planted.cfg.d_model)
    weight[len(planted.tokenizer) + 2 * 16 + 1] = 3.0
    return probe_of(planted, weight)


def test_the_step_by_hand() -> None:
    """w = (3, 4), |w| = 5, b = 10; x = (2, 1) scores 20 and lies 2 along ŵ."""
    probe = LinearProbe(torch.tensor([3.0, 4.0]), 10.0, 0, "resid_post", "object", "f")
    x = torch.tensor([2.0, 1.0])
    assert step_along(x, probe, "component") == pytest.approx(2.0)
    assert step_along(x, probe, "score") == pytest.approx(4.0)
    direction = probe.weight / 5
    without = x - step_along(x, probe, "component") * direction
    assert float(without @ direction) == pytest.approx(0, abs=1e-6)
    undecided = x - step_along(x, probe, "score") * direction
    assert float(probe.scores(undecided)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("hook", ["resid_post", "resid_mid", "mlp_out"])
@pytest.mark.parametrize("removal", ["component", "score"])
def test_the_change_is_that_of_whole_runs(tiny_llama: HookedModel, hook: Any, removal: Any) -> None:
    premises = load_premises("capitals", limit=3).with_templates(["why", "famous"])
    encoded = encode_premises(tiny_llama.tokenizer, premises)
    weight = torch.randn(32, generator=torch.Generator().manual_seed(3))
    probe = probe_of(tiny_llama, weight, layer=1, hook=hook)
    found = remove_direction(tiny_llama, encoded, probe, removal=removal, progress=False)
    assert found.random.shape == (20, 6)
    # What the bridge calls resid_mid is read by the MLP alone: there the block's output is mended.
    taken: list[torch.Tensor] = []
    for index, item in enumerate(encoded.items):
        start, end = item.false.object

        def take(
            value: torch.Tensor, hook: object, start: int = start, end: int = end
        ) -> torch.Tensor:
            value = value.clone()
            step = step_along(value[0, start:end], probe, removal)[:, None]
            step = step * probe.weight / probe.weight.norm()
            value[0, start:end] -= step
            taken.append(step)
            return value

        def mend(
            value: torch.Tensor, hook: object, start: int = start, end: int = end
        ) -> torch.Tensor:
            value = value.clone()
            value[0, start:end] -= taken[-1]
            return value

        hooks = [(f"blocks.1.hook_{hook}", take)]
        if hook == "resid_mid" and not writes_resid_mid(tiny_llama):
            hooks.append(("blocks.1.hook_resid_post", mend))
        batch = TokenBatch.from_lists([item.false.tokens])
        with torch.no_grad():
            plain = tail_logits(tiny_llama, batch)[0, -1]
            with hooked(tiny_llama, hooks):
                without = tail_logits(tiny_llama, batch)[0, -1]
        tokens = [item.true_token, item.false_token]
        expected = (without - plain)[tokens]
        assert found.change[index] == pytest.approx(float(expected[0] - expected[1]), abs=1e-4)
    assert np.abs(found.change).max() > 1e-3


def test_without_the_planted_mark_the_answer_is_the_constraints(
    planted: HookedModel,
    planted_premises: Premises,
    marks_countries: LinearProbe,
    planted_heads: dict[str, tuple[int, int]],
) -> None:
    some = planted_premises.first(8).with_templates(["why", "famous"])
    found = remove_direction(planted, some, marks_countries, progress=False)
    constraint = Constraint(HeadSet((planted_heads["attention"],), "attention"))
    encoded = encode_premises(planted.tokenizer, some)
    values = preference(
        planted,
        encoded,
        "false",
        constraint,
        [HeadSet((), "attention"), constraint.heads],
        progress=False,
    ).logit_difference
    agreement = found.agreement(values[:, 1] - values[:, 0])
    assert agreement["share"] == pytest.approx(1.0, abs=0.15)
    assert found.effect[0] > 5
    # Twenty random directions do nothing of the kind.
    assert found.p_value == pytest.approx(1 / 21)
    assert np.abs(found.random.mean(axis=1)).max() < 2


def test_a_direction_that_nothing_reads_changes_nothing(
    planted: HookedModel, planted_premises: Premises
) -> None:
    """After the last layer the object's own column is read no more."""
    some = planted_premises.first(6).with_templates(["why"])
    probe = probe_of(planted, torch.ones(planted.cfg.d_model), layer=2)
    found = remove_direction(planted, some, probe, progress=False)
    assert np.abs(found.change).max() < 1e-4
    assert found.p_value > 0.04


def by_hand() -> DirectionRemoval:
    return DirectionRemoval(
        np.array([1.0, 3.0]),
        np.array([[0.5, 0.5], [-2.0, -2.0], [3.0, 0.0]]),
        ("a", "b"),
        ("why", "why"),
        "false",
        1,
        "resid_post",
        "component",
    )


def test_effect_null_and_agreement_by_hand() -> None:
    removal = by_hand()
    assert removal.effect == (2.0, 1.0, 3.0)
    assert removal.p_value == 0.5  # itself, and the one of -2
    assert removal.agreement([2.0, 6.0]) == {"spearman": pytest.approx(1.0), "share": 0.5}
    constant = removal.agreement([4.0, 4.0])
    assert np.isnan(constant["spearman"])
    assert constant["share"] == 0.5
    table = removal.to_dataframe()
    assert table["change"].tolist() == [1.0, 3.0]
    assert table["random_change"].tolist() == pytest.approx([0.5, -0.5])
    bars, point = removal.plot().to_plotly_json()["data"]
    assert list(bars["x"]) == [0.5, -2.0, 1.5]
    assert list(point["x"]) == [2.0]


def test_bad_input(planted: HookedModel, planted_premises: Premises) -> None:
    some = planted_premises.first(3)
    probe = probe_of(planted, torch.ones(planted.cfg.d_model))
    unchecked: Any = inspect.unwrap(remove_direction)
    for wrong, options, fault in (
        (probe, {"removal": "half"}, "unknown removal 'half'; known: component, score"),
        (probe, {"kind": "masked"}, "unknown kind 'masked'; known: false, twin"),
        (probe, {"n_random": 19}, "a null of 19 random directions says little"),
        (replace(probe, fingerprint="x" * 64), {}, "fitted on model xxxxxxxxxxxx"),
        (replace(probe, weight=torch.zeros(planted.cfg.d_model)), {}, "weight is zero"),
    ):
        with pytest.raises(UserError, match=fault):
            unchecked(planted, some, wrong, progress=False, **options)
    with pytest.raises(UserError, match="2 prompts here, 3 in the constraint"):
        by_hand().agreement([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="differ in number"):
        replace(by_hand(), subjects=("a",))
