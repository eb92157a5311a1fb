"""Steering directions: by hand, and their choice where the right one is planted."""

from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.evaluation.baselines.steering import Steering
from interp.evaluation.baselines.steering_directions import (
    HeadDirections,
    choose_steering,
    deviation_vectors,
    head_directions,
    mean_difference,
    residual_steering,
)
from interp.models import HookedModel
from interp.patching import TokenBatch, record_run
from interp.premises import Premises, load_premises
from interp.premises.encode import encode_premises


def test_a_difference_of_means_by_hand() -> None:
    positive = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    negative = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 4.0]])
    assert mean_difference(positive, negative).tolist() == [2.0, 1.0]
    with pytest.raises(UserError, match="both classes"):
        mean_difference(positive, negative[:0])
    with pytest.raises(UserError, match="not finite"):
        mean_difference(positive / 0, negative)


def test_a_unit_of_strength_is_one_standard_deviation() -> None:
    """One head of width 2, means (2, 0) and (0, 0): the direction is (1, 0)."""
    positive = torch.tensor([[[[3.0, 1.0]]], [[[1.0, -1.0]]]])
    negative = torch.tensor([[[[1.0, 5.0]]], [[[-1.0, -5.0]]]])
    # Along it lie 3, 1, 1, -1: mean 1, variance 2.
    assert deviation_vectors(positive, negative)[0, 0].tolist() == pytest.approx([2**0.5, 0])
    assert deviation_vectors(positive, positive)[0, 0].tolist() == [0.0, 0.0]


def test_the_best_heads_come_first() -> None:
    found = HeadDirections(torch.ones(2, 2, 3), np.array([[0.5, 0.9], [0.9, 0.7]]))
    assert found.top(3) == ((0, 1), (1, 0), (1, 1))
    steering = found.steering(2, strength=5.0)
    assert (steering.units, steering.component) == (((0, 1), (1, 0)), "z")
    assert (steering.place, steering.strength) == ("answer", 5.0)
    with pytest.raises(UserError, match="there are 4 heads: cannot take 5"):
        found.top(5)


def test_residual_directions_are_those_of_whole_runs(tiny_llama: HookedModel) -> None:
    premises = load_premises("capitals", limit=3).with_templates(["why", "when"])
    steering = residual_steering(tiny_llama, premises, place="all", progress=False)
    assert (steering.units, steering.place, steering.vectors.shape) == ((), "all", (3, 1, 32))
    encoded = encode_premises(tiny_llama.tokenizer, premises)

    def last(kind: Any, layer: int) -> torch.Tensor:
        rows = []
        for item in encoded.items:
            batch = TokenBatch.from_lists([item.prompt(kind).tokens])
            with torch.no_grad():
                run = record_run(tiny_llama, batch, keep=("resid_post",))
            rows.append(run.values["resid_post"][layer, 0, item.prompt(kind).object[1] - 1, 0])
        return torch.stack(rows).mean(dim=0)

    for layer in (0, 2):
        expected = last("twin", layer) - last("false", layer)
        np.testing.assert_allclose(steering.vectors[layer, 0], expected, atol=5e-5)


def test_the_planted_heads_tell_true_from_false_answers(
    planted: HookedModel, planted_premises: Premises
) -> None:
    """READER knows which country the question names; a random head does not know the answer."""
    found = head_directions(planted, planted_premises.with_templates(["why"]), progress=False)
    assert found.accuracy.shape == (3, 4)
    assert found.vectors.shape[:2] == (3, 4)
    assert found.vectors.isfinite().all()
    # Objects are true as often as false: noise heads of layer 0 see the object alone.
    assert found.accuracy[0].max() < 0.8


@pytest.fixture(scope="module")
def hides_the_object(planted: HookedModel) -> Steering:
    """Strength 1 takes the mark off a country's token that READER looks for in layer 1."""
    n_words = len(planted.tokenizer)
    is_country = n_words + 2 * 16 + 1
    vectors = torch.zeros(3, 1, planted.cfg.d_model)
    vectors[:, 0, is_country] = -1.0
    return Steering(vectors, (), place="object")


def test_layer_and_sign_are_chosen_where_they_help(
    planted: HookedModel, planted_premises: Premises, hides_the_object: Steering
) -> None:
    some = planted_premises.first(5).with_templates(["why"])
    sets = [((layer, 0),) for layer in range(3)]
    chosen, table = choose_steering(
        planted, some, hides_the_object, sets=sets, strengths=(-1.0, 1.0, 2.0), progress=False
    )
    assert chosen.units == ((0, 0),)
    assert chosen.strength in (1.0, 2.0)
    assert len(table) == 9
    gains = table.set_index(["units", "strength"])["gain"]
    assert gains.loc[[(((0, 0),), 1.0), (((0, 0),), 2.0)]].tolist() == [1.0, 1.0]
    assert gains.loc[[(((0, 0),), -1.0), (((1, 0),), 2.0), (((2, 0),), 2.0)]].max() == 0
    # The cost was measured for the best only, and the cheaper of them taken.
    measured = table.dropna(subset="cost")
    assert set(measured["strength"]) == {1.0, 2.0}
    assert chosen.strength == measured.loc[measured["cost"].idxmin(), "strength"]
    assert chosen.chosen_by == "most gain of 9 settings on 5 questions"


def test_the_direction_of_means_has_nothing_to_give_where_nothing_is_read(
    honest: HookedModel, planted_premises: Premises
) -> None:
    """The negative control: the honest model prefers the true object whatever is tried."""
    some = planted_premises.first(5).with_templates(["why"])
    steering = residual_steering(honest, some, progress=False)
    _, table = choose_steering(
        honest, some, steering, sets=[((1, 0),)], strengths=(-1.0, 1.0), progress=False
    )
    assert table["gain"].tolist() == [0.0, 0.0]


def test_bad_input(tiny_llama: HookedModel, hides_the_object: Steering) -> None:
    premises = load_premises("capitals", limit=3)
    with pytest.raises(UserError, match="nothing to choose from"):
        choose_steering(tiny_llama, premises, hides_the_object, sets=[], strengths=(1.0,))
    with pytest.raises(UserError, match="cannot fill 5 folds"):
        head_directions(tiny_llama, premises.first(2), progress=False)
