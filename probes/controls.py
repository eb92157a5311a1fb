"""Controls for a probe: its scores with random labels, or on a model with random weights.

* **Shuffled labels**: the two labels of a random half of the subjects are swapped, for all prompts
  of a subject together, in the fitted and in the scored part. Nothing can be learned about another
  subject, so the AUC must be near 0.5. If it is not, subjects are in both parts.
* The **control task** of Hewitt & Liang (arXiv 1909.03368) gives each *object* a random label, and
  scores the probe on other subjects with the same objects: it measures memorisation. Their
  *selectivity* is the task's score minus this one, in the same folds.
* **Random weights** (Zhang & Bowman, arXiv 1809.10040): a model of the same configuration without
  training, which measures what the words alone give away.
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
from interp.models import from_hf, model_info
from interp.models.hooked_model import HookedModel
from interp.models.placement import is_dispatched, placed_alike
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
    """A model of the same configuration, tokenizer, device or devices, and dtype, random weights.

    Raises UserError for a model that was not made by this package.
    """
    spec, hf_model = model_info(model).spec, model.original_model
    dtype = next(iter(model.original_model.parameters())).dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = AutoModelForCausalLM.from_config(model.original_model.config, dtype=dtype)
    drawn = placed_alike(drawn, hf_model) if is_dispatched(hf_model) else drawn.to(device_of(model))
    return from_hf(drawn, model.tokenizer, spec=f"{spec}, random weights")


def _swapped_subjects(
    fitted: Sequence[str], scored: Sequence[str], rng: np.random.Generator
) -> frozenset[str]:
    """A random half of each part's subjects; subjects in both parts are drawn once."""
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
    return torch.where(swap, 1 - part.labels.cpu(), part.labels.cpu())


def _check_both_classes(part: LabelledActivations) -> None:
    seen = dict.fromkeys(zip(part.subjects, part.labels.tolist(), strict=True))
    for subject, label in seen:
        if (subject, 1 - label) not in seen:
            raise UserError(
                f"{subject!r} has prompts of label {label} only: labels are shuffled within a "
                "subject, so each needs both"
            )
