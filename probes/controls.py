"""Controls for a probe: what it scores when its labels, or the model, mean nothing.

A probe of hundreds of weights fits any labels; only what it predicts of other subjects counts.

* **Shuffled labels** keep everything as it is, but swap the two labels of a random half of the
  subjects, all of a subject's prompts together, in the part that is fitted and in the part that is
  scored. Each subject's label is then a coin's, so that nothing can be learned about another
  subject, and the AUC must lie near 0.5. If it does not, subjects leak: one that is in both parts
  has the same coin in both.
* The **control task** of Hewitt & Liang (arXiv 1909.03368) gives each *object* a coin's label, the
  same wherever it occurs, and scores the probe on other subjects with the same objects: what it
  can learn by heart. Their *selectivity* is the task's score less this one, in the same folds.
* A model of the same shape with **random weights** (Zhang & Bowman, arXiv 1809.10040): what can be
  read off the words themselves through features that nothing was learned in.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.checked import checked
from interp.errors import UserError
from interp.forward.partial import device_of
from interp.models import HookedModel, from_hf, model_info
from probes.labelled_activations import LabelledActivations
from probes.linear import DEFAULT_C, fit_direction
from probes.scoring import area_under_curve, cross_validated_scores

DEFAULT_SHUFFLES = 10
DEFAULT_COINS = 5


@checked
def shuffled_label_auc(
    fitted: LabelledActivations,
    scored: LabelledActivations,
    *,
    n_shuffles: int = DEFAULT_SHUFFLES,
    C: float = DEFAULT_C,
    seed: int = 0,
) -> Float[np.ndarray, " shuffle"]:
    """AUC on ``scored`` of probes fitted on ``fitted``, with labels shuffled in both.

    Labels are shuffled between a subject's two classes; its mean over shuffles is the control.

    Raises:
        UserError: a subject with prompts of one class only, whose labels cannot be swapped.
    """
    if n_shuffles < 1:
        raise UserError(f"at least one shuffle is needed, got {n_shuffles}")
    for part in (fitted, scored):
        _check_both_classes(part)
    rng = np.random.default_rng(seed)
    values = np.empty(n_shuffles)
    for shuffle in range(n_shuffles):
        swapped = _swapped_subjects(fitted.subjects, scored.subjects, rng)
        weight, bias = fit_direction(fitted.activations, _with_swapped(fitted, swapped), C=C)
        scores = scored.activations.cpu().double() @ weight + bias
        values[shuffle] = area_under_curve(scores, _with_swapped(scored, swapped))
    return values


@checked
def control_task_auc(
    part: LabelledActivations,
    objects: Sequence[str],
    *,
    n_coins: int = DEFAULT_COINS,
    C: float = DEFAULT_C,
    seed: int = 0,
) -> Float[np.ndarray, " coin"]:
    """AUC of probes for labels that are a coin's for each object, cross-validated by subject.

    Args:
        objects: what each prompt names, the same object in several subjects' prompts.
        n_coins: how many times the coins are thrown.

    Raises:
        UserError: too few subjects for the folds, or fewer than two objects.
    """
    if n_coins < 1:
        raise UserError(f"the coins must be thrown at least once, got {n_coins}")
    if len(objects) != len(part.subjects):
        raise UserError(f"{len(part.subjects)} prompts but {len(objects)} objects")
    names = list(dict.fromkeys(objects))
    if len(names) < 2:
        raise UserError("a control task needs at least two objects")
    rng = np.random.default_rng(seed)
    found = np.empty(n_coins)
    for throw in range(n_coins):
        heads = rng.permutation(len(names)) < len(names) // 2
        coin = dict(zip(names, heads, strict=True))
        labels = torch.tensor([int(coin[name]) for name in objects])
        scores = cross_validated_scores(part.activations, labels, part.subjects, C=C)
        found[throw] = area_under_curve(scores, labels)
    return found


@checked
def random_weights(model: HookedModel, *, seed: int = 0) -> HookedModel:
    """A model of the same configuration, tokenizer, device and dtype, with weights as drawn anew.

    Raises UserError for a model that was not made by this package.
    """
    spec, device = model_info(model).spec, device_of(model)
    dtype = next(iter(model.original_model.parameters())).dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = AutoModelForCausalLM.from_config(model.original_model.config, dtype=dtype)
    return from_hf(drawn.to(device), model.tokenizer, spec=f"{spec}, random weights")


def _swapped_subjects(
    fitted: Sequence[str], scored: Sequence[str], rng: np.random.Generator
) -> frozenset[str]:
    """A random half of either part's subjects; one that is in both parts is drawn once."""
    first = list(dict.fromkeys(fitted))
    second = [subject for subject in dict.fromkeys(scored) if subject not in set(first)]
    swapped: set[str] = set()
    for names in (first, second):
        half = (len(names) + int(rng.integers(2))) // 2
        drawn = rng.permutation(len(names))[:half]
        swapped.update(names[index] for index in drawn)
    return frozenset(swapped)


def _with_swapped(part: LabelledActivations, swapped: frozenset[str]) -> Tensor:
    swap = torch.tensor([subject in swapped for subject in part.subjects])
    labels = part.labels.cpu()
    return torch.where(swap, 1 - labels, labels)


def _check_both_classes(part: LabelledActivations) -> None:
    seen: dict[str, set[int]] = {}
    for subject, label in zip(part.subjects, part.labels.tolist(), strict=True):
        seen.setdefault(subject, set()).add(label)
    for subject, found in seen.items():
        if len(found) < 2:
            raise UserError(
                f"{subject!r} has prompts of label {found.pop()} only: labels are shuffled within "
                "a subject, so that each needs both"
            )
