"""A control for a probe: what it scores when its labels mean nothing.

A probe of hundreds of weights fits any labels; only what it predicts of other subjects counts. The
control keeps everything as it is, but swaps the two labels of a random half of the subjects, all of
a subject's prompts together, in the part that is fitted and in the part that is scored (after the
control tasks of Hewitt & Liang, arXiv 1909.03368). Each subject's label is then a coin's, so
that nothing can be learned about another subject, and the AUC must lie near 0.5. If it does not,
subjects leak: one that is in both parts has the same coin in both.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from probes.labelled import LabelledActivations
from probes.linear import DEFAULT_C, fit_direction
from probes.scoring import area_under_curve

DEFAULT_SHUFFLES = 10


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
