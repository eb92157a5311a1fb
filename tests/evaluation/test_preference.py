"""Preference and its measures, by hand; and on a model whose preferences are planted."""

from typing import Any

import numpy as np
import pytest
import torch

from interp.evaluation import Preference, preference
from interp.heads import HeadSet
from interp.interventions import Constraint
from interp.models import HookedModel
from interp.patching import last_logits
from interp.premises import Premises, load_premises
from interp.premises.encode import encode_premises


def by_hand() -> Preference:
    """Four prompts, two subjects, two templates, two head sets."""
    return Preference(
        logit_difference=np.array([[-1.0, 2.0], [-3.0, 1.0], [1.0, -2.0], [0.0, 3.0]]),
        p_true=np.array([[0.1, 0.7], [0.2, 0.8], [0.6, 0.2], [0.3, 0.9]]),
        p_false=np.array([[0.5, 0.1], [0.6, 0.2], [0.2, 0.4], [0.3, 0.1]]),
        subjects=("a", "a", "b", "b"),
        templates=("why", "when", "why", "when"),
    )


def test_accuracy_is_the_share_that_prefers_the_true_object() -> None:
    # A tie is no preference for the true object.
    assert by_hand().accuracy.tolist() == [0.25, 0.75]


def test_measures_over_all_prompts_by_hand() -> None:
    measures = by_hand().measures(0)
    assert measures["n"] == 4
    assert measures["preference_accuracy"] == [0.25, 0.0, 0.5]
    assert measures["p_true_object"] == pytest.approx([0.3, 0.15, 0.45])
    assert measures["p_false_object"] == pytest.approx([0.4, 0.25, 0.55])
    assert measures["logit_difference"] == pytest.approx([-0.75, -2.0, 0.5])


def test_measures_of_one_template_by_hand() -> None:
    measures = by_hand().measures(1, template="when")
    assert measures["n"] == 2
    assert measures["preference_accuracy"] == [1.0, 1.0, 1.0]
    assert measures["p_true_object"] == pytest.approx([0.85, 0.8, 0.9])
    assert measures["logit_difference"] == pytest.approx([2.0, 1.0, 3.0])


@pytest.mark.parametrize("site", ["output", "attention"])
def test_the_planted_head_turns_every_preference(
    planted: HookedModel,
    planted_premises: Premises,
    planted_heads: dict[str, tuple[int, int]],
    site: Any,
) -> None:
    encoded = encode_premises(planted.tokenizer, planted_premises)
    chosen = HeadSet((planted_heads[site],), site)
    others = HeadSet(((0, 2), (1, 0), (2, 3)), site)
    found = preference(
        planted,
        encoded,
        "false",
        constraint=Constraint(chosen),
        sets=[HeadSet((), site), chosen, others],
        progress=False,
    )
    assert found.accuracy.tolist() == [0.0, 1.0, 0.0]
    assert found.subjects == encoded.subjects
    twin = preference(
        planted,
        encoded,
        "twin",
        constraint=Constraint(chosen),
        sets=[HeadSet((), site), chosen],
        progress=False,
    )
    assert twin.accuracy.tolist() == [1.0, 1.0]
    # On the twin the head copies the true object: without it the answer is less sure.
    assert (twin.p_true[:, 0] > twin.p_true[:, 1]).all()


def test_the_numbers_are_those_of_whole_runs(tiny_llama: HookedModel) -> None:
    premises = load_premises("capitals", limit=4).with_templates(["why", "when"])
    encoded = encode_premises(tiny_llama.tokenizer, premises)
    constraint = Constraint(HeadSet(((0, 0),)))
    none = HeadSet(())
    for kind in ("false", "twin"):
        found = preference(
            tiny_llama,
            encoded,
            kind,
            constraint=constraint,
            sets=[none],
            budget=1_000_000,
            progress=False,
        )
        with torch.no_grad():
            logits = last_logits(tiny_llama, encoded.batch(kind))[:, -1]
        rows = torch.arange(len(encoded))
        true, false = (
            logits[rows, tokens] for tokens in (encoded.true_tokens, encoded.false_tokens)
        )
        odds = logits.softmax(-1)
        for got, expected in [
            (found.logit_difference, true - false),
            (found.p_true, odds[rows, encoded.true_tokens]),
            (found.p_false, odds[rows, encoded.false_tokens]),
        ]:
            np.testing.assert_allclose(got[:, 0], expected.numpy(), atol=5e-5)
