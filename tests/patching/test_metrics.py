"""Metrics by hand, and narrowed to some prompts."""

import math
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.patching import KLDivergence, LogitDifference, LogProbability, Probability
from interp.patching.metrics import apply_metric

LOGITS = torch.tensor([[0.0, math.log(2), math.log(5)], [math.log(3), 0.0, 0.0]])


def test_logit_difference_and_probabilities_by_hand() -> None:
    answer, wrong = torch.tensor([2, 0]), torch.tensor([0, 1])
    torch.testing.assert_close(
        LogitDifference(answer, wrong)(LOGITS), torch.tensor([math.log(5), math.log(3)])
    )
    torch.testing.assert_close(Probability(answer)(LOGITS), torch.tensor([5 / 8, 3 / 5]))
    torch.testing.assert_close(
        LogProbability(answer)(LOGITS), torch.tensor([math.log(5 / 8), math.log(3 / 5)])
    )


def test_divergence_by_hand() -> None:
    reference = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]))
    run = torch.log(torch.tensor([[0.25, 0.25, 0.5], [0.2, 0.2, 0.6]]))
    # 0.5 log 2 + 0 − 0.25 log 2 = 0.25 log 2, and nothing where the two are the same.
    expected = torch.tensor([0.25 * math.log(2), 0.0])
    torch.testing.assert_close(KLDivergence(reference)(run), expected, rtol=0, atol=1e-6)
    # A constant added to all logits is not a difference.
    shifted = KLDivergence(reference + 5)(run - 3)
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "metric",
    [
        LogitDifference(torch.tensor([2, 0]), torch.tensor([0, 1])),
        Probability(torch.tensor([1, 0])),
        LogProbability(torch.tensor([1, 0])),
        KLDivergence(LOGITS.flip(1)),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_a_narrowed_metric_gives_the_same_numbers(metric: Any) -> None:
    narrow = metric.take(torch.tensor([1]))
    assert torch.equal(narrow(LOGITS[1:]), metric(LOGITS)[1:])
    assert not torch.equal(metric(LOGITS)[:1], metric(LOGITS)[1:])


@pytest.mark.parametrize(
    ("metric", "shape"), [(lambda x: x, r"\(2, 3\)"), (lambda x: x.mean(), r"\(\)"), (len, "int")]
)
def test_a_metric_of_another_shape_is_refused(metric: Any, shape: str) -> None:
    with pytest.raises(UserError, match=rf"one value per prompt, \[2\]; this one: {shape}"):
        apply_metric(metric, LOGITS)
