"""Steering directions from differences of means, and their choice on the search part.

Both directions are a mean difference between two classes of activations:

* ``residual_steering``: the residual stream at the object's last token, true-premise twins minus
  false premises (Marks & Tegmark, arXiv 2310.06824). Strength 1 moves the mean of the false
  premises to the mean of their twins; choose the sign on the search part.
* ``head_directions``: inference-time intervention (Li et al., arXiv 2306.03341). Every head's
  output is read at the first token that tells the true answer from the false one, with both answers
  appended. The direction is the mean difference true − false, of length one standard deviation of
  the activations along it. Heads are ranked by the accuracy of a probe on their output,
  cross-validated over objects and subjects.

``choose_steering`` takes the units and strength with most gain on false premises and, among equals,
least cost on the twins, as ``interp.evaluation.settings`` does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.evaluation.baselines.steering import Steering, SteeringPlace, steered_preference
from interp.evaluation.preference import Preference
from interp.evaluation.settings import best_setting, most_gain
from interp.heads.locate import as_encoded
from interp.models.hooked_model import HookedModel
from interp.patching.sweep import UnitSet
from interp.premises.encode import EncodedPremise, EncodedPremises
from interp.premises.questions import Premises, QuestionKind
from interp.progress import progress_bar
from probes.activation_reader import DEFAULT_BATCH_TOKENS, TokensToRead
from probes.activations import collect_activations, read_tokens
from probes.scoring import DEFAULT_SPLITS, cross_validated_scores


def mean_difference(
    positive: Float[Tensor, "prompt ..."], negative: Float[Tensor, "other ..."]
) -> Float[Tensor, "..."]:
    """Mean of the positive class less mean of the negative class.

    Raises UserError for a class without prompts, or activations that are not finite.
    """
    if len(positive) == 0 or len(negative) == 0:
        raise UserError("a difference of means needs prompts of both classes")
    difference = positive.mean(dim=0) - negative.mean(dim=0)
    if not bool(difference.isfinite().all()):
        raise UserError("the activations are not finite: check the model's weights and its dtype")
    return difference


def residual_steering(
    model: HookedModel,
    premises: Premises | EncodedPremises,
    *,
    place: SteeringPlace = "object",
    progress: bool = True,
) -> Steering:
    """Every layer's direction twin − false at the object's last token; no unit is chosen yet."""
    encoded = as_encoded(model, premises)
    false, twin = (
        collect_activations(model, encoded, kind, hook="resid_post", progress=progress)
        for kind in ("false", "twin")
    )
    vectors = mean_difference(twin, false)[:, None]
    return Steering(vectors, (), "resid_post", place, chosen_by="not chosen")


@dataclass(frozen=True, eq=False)
class HeadDirections:
    """A direction for every head, and how well the head's output tells true from false answers.

    Attributes:
        vectors: Float[layer head d_head], one standard deviation along the direction true − false.
        accuracy: Float[layer head], cross-validated; 0.5 is chance.
    """

    vectors: Float[Tensor, "layer head d_head"]
    accuracy: Float[np.ndarray, "layer head"]

    def top(self, count: int) -> UnitSet:
        """The ``count`` heads of highest accuracy; of equals the lowest (layer, head)."""
        if not 1 <= count <= self.accuracy.size:
            raise UserError(f"there are {self.accuracy.size} heads: cannot take {count}")
        order = np.argsort(-self.accuracy, axis=None, kind="stable")[:count]
        n_heads = self.accuracy.shape[1]
        return tuple((int(index) // n_heads, int(index) % n_heads) for index in order)

    def steering(
        self, count: int, *, strength: float = 1.0, place: SteeringPlace = "answer"
    ) -> Steering:
        """Steering of the ``count`` best heads, by ``strength`` standard deviations."""
        by = f"{count} heads of highest probe accuracy"
        return Steering(self.vectors, self.top(count), "z", place, strength, by)


def head_directions(
    model: HookedModel,
    premises: Premises | EncodedPremises,
    *,
    n_splits: int = DEFAULT_SPLITS,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> HeadDirections:
    """Directions and accuracies of all heads, from answers to the false-premise questions.

    Raises:
        UserError: fewer objects than folds.
    """
    encoded = as_encoded(model, premises)
    prompts = [*_answered(encoded.items, "true_token"), *_answered(encoded.items, "false_token")]
    outputs = read_tokens(
        model, prompts, hook="z", batch_tokens=batch_tokens, progress=progress
    ).values
    n = len(encoded)
    labels = (torch.arange(2 * n) < n).long()
    questions = [item.question for item in encoded.items]
    objects = [question.true_object for question in questions]
    objects += [question.false_object for question in questions]
    n_layers, n_heads = outputs.shape[1:3]
    accuracy = np.empty((n_layers, n_heads))
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    for layer, head in progress_bar(heads, description="probes of heads", shown=progress):
        scores = cross_validated_scores(
            outputs[:, layer, head], labels, objects, n_splits=n_splits, apart=encoded.subjects * 2
        )
        accuracy[layer, head] = float(((scores > 0).long() == labels).double().mean())
    return HeadDirections(deviation_vectors(outputs[:n], outputs[n:]), accuracy)


def deviation_vectors(
    positive: Float[Tensor, "prompt layer head d_head"],
    negative: Float[Tensor, "other layer head d_head"],
) -> Float[Tensor, "layer head d_head"]:
    """The direction positive − negative, as long as one standard deviation of both along it.

    A head whose means do not differ gets zeros.
    """
    direction = torch.nn.functional.normalize(mean_difference(positive, negative), dim=-1)
    along = torch.einsum("plhd,lhd->plh", torch.cat([positive, negative]), direction)
    return direction * along.std(dim=0, correction=0)[..., None]


def _answered(items: Sequence[EncodedPremise], which: str) -> Iterator[TokensToRead]:
    """The false-premise prompts with the answer's first distinguishing token appended."""
    for item in items:
        tokens = (*item.false.tokens, getattr(item, which))
        yield TokensToRead(tokens, (len(tokens) - 1,))


def choose_steering(
    model: HookedModel,
    premises: Premises,
    steering: Steering,
    *,
    sets: Sequence[UnitSet],
    strengths: Sequence[float],
    progress: bool = True,
) -> tuple[Steering, pd.DataFrame]:
    """Choose units and strength on these premises, which should be the search part.

    Args:
        sets: sets of units, such as one layer each.

    Returns:
        the steering, and a table of all settings: units, strength, gain (rise of preference
        accuracy on false premises), logit_difference (its mean rise), and cost (fall of P(true
        object) on the twins; NaN where the gain is not among the best).
    """
    if not sets or not strengths:
        raise UserError("nothing to choose from: give sets of units and strengths")

    def under(strength: Any, kind: QuestionKind, tried: Sequence[UnitSet]) -> Preference:
        """Without steering, and then with each of the sets."""
        scaled, all_sets = steering.with_strength(float(strength)), [(), *tried]
        return steered_preference(
            model, premises, scaled, kind=kind, sets=all_sets, progress=progress
        )

    rows = []
    for strength in strengths:
        found = under(strength, "false", sets)
        gains = found.accuracy[1:] - found.accuracy[0]
        rises = (found.logit_difference[:, 1:] - found.logit_difference[:, :1]).mean(axis=0)
        every = [strength] * len(sets)
        rows += zip(sets, every, gains, rises, strict=True)
    table = pd.DataFrame(rows, columns=["units", "strength", "gain", "logit_difference"])
    table["cost"] = np.nan
    for strength, equals in most_gain(table).groupby("strength"):
        p_true = under(strength, "twin", list(equals["units"])).p_true.mean(axis=0)
        table.loc[equals.index, "cost"] = p_true[0] - p_true[1:]
    row = table.loc[best_setting(table)]
    chosen_by = f"most gain of {len(table)} settings on {len(premises)} questions"
    chosen = replace(
        steering, units=row["units"], strength=float(row["strength"]), chosen_by=chosen_by
    )
    return chosen, table
