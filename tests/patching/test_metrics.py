"""Metrics by hand, and narrowed to some prompts."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch

from interp.errors import UserError
from interp.patching import KLDivergence, LogitDifference, LogProbability, Probability
from interp.patching.metrics import (
    PerPromptMetric,
    apply_metric,
    check_metrics,
    token_per_prompt,
)

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


@dataclass(frozen=True)
class Tempered(PerPromptMetric):
    """A user's metric: entries in a list, and a constant."""

    tokens: list[int]
    temperature: float = 2.0
    label: str = "tempered"

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        tokens = torch.as_tensor(self.tokens)
        return logits.gather(1, tokens[:, None])[:, 0] / self.temperature


def test_a_users_metric_may_hold_lists_and_constants() -> None:
    metric = Tempered([2, 0])
    check_metrics([metric], 2)
    torch.testing.assert_close(metric(LOGITS), torch.tensor([math.log(5) / 2, math.log(3) / 2]))
    second = metric.take(torch.tensor([1]))
    assert second.temperature == 2.0
    torch.testing.assert_close(second(LOGITS[1:]), torch.tensor([math.log(3) / 2]))
    with pytest.raises(UserError, match=r"is for 2 prompts .its tokens., but there are 3"):
        check_metrics([metric], 3)
    with pytest.raises(UserError, match="the field 'tokens' of the metric Tempered"):
        Tempered(["a", "b"]).take(torch.tensor([1]))  # type: ignore[list-item]


def test_a_column_of_a_table_is_a_list_of_tokens() -> None:
    column = pd.DataFrame({"answer": [9, 2, 0], "kept": [False, True, True]})
    column = column.loc[column["kept"], "answer"]  # whose index does not begin at 0
    assert token_per_prompt("answer", column).tolist() == [2, 0]
