"""Cross-validated scores of probes, and AUC and accuracy with intervals over subjects.

Questions about one subject share its tokens, so a fold holds whole subjects, and intervals come
from resampling whole subjects. Where false objects are drawn from the same facts, folds by subject
are not enough: an object that is false in some folds is true in another, so a probe that reads only
the object scores far *below* chance. Folds by object, kept ``apart`` by subject, share neither.

AUC is the probability that a prompt of label 1 scores above one of label 0; ties count half.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import check_choice
from interp.checked import checked
from interp.errors import UserError
from interp.lazy import model_selection
from interp.premises import Question
from interp.statistics.resampling import group_draws, resamples_at_once
from interp.statistics.significance import BOOTSTRAP_RESAMPLES, CONFIDENCE, mean_interval
from probes.linear import DEFAULT_C, ProbeMethod, check_labelled, fit_direction

DEFAULT_SPLITS = 5

Grouping = Literal["subject", "template", "relation"]
"""Folds that hold out subjects, templates, or relations."""


@checked
def groups_of(questions: Sequence[Question], by: Grouping = "subject") -> tuple[str, ...]:
    """Each question's group, which cross-validation never splits.

    Equal subjects or templates of different relations are different groups. Raises UserError for
    an unknown grouping.
    """
    check_choice("grouping", by, get_args(Grouping))
    if by == "relation":
        return tuple(question.relation for question in questions)
    return tuple(f"{question.relation}/{getattr(question, by)}" for question in questions)


@checked
def cross_validated_scores(
    activations: Float[Tensor, "prompt d_model"],
    labels: Int[Tensor, " prompt"],
    groups: Sequence[str],
    *,
    n_splits: int = DEFAULT_SPLITS,
    apart: Sequence[str] | None = None,
    method: ProbeMethod = "logistic",
    C: float = DEFAULT_C,
) -> Float[Tensor, " prompt"]:
    """Each prompt's score from a probe fitted on the folds without its group.

    Standardisation is part of the fit, so it uses no held-out prompt.

    Args:
        groups: the group of each prompt, such as its subject; a fold never splits one.
        apart: a second group of each prompt; prompts that share one with the held-out fold are not
            fitted on.

    Raises:
        UserError: fewer groups than folds, a fold that leaves one class only to fit on, or data
            that `fit_probe` refuses.
    """
    check_labelled(activations, labels)
    _check_length(len(labels), groups, "groups")
    if apart is not None:
        _check_length(len(labels), apart, "entries of `apart`")
    n_groups = len(set(groups))
    if n_splits < 2:
        raise UserError(f"cross-validation needs at least 2 folds, got {n_splits}")
    if n_groups < n_splits:
        raise UserError(
            f"{n_groups} groups cannot fill {n_splits} folds: give more subjects, or fewer folds"
        )
    scores = torch.empty(len(labels))
    folds = model_selection.GroupKFold(n_splits).split(
        np.zeros(len(labels)), groups=np.asarray(groups)
    )
    for others, left_out in folds:
        fitted = others
        if apart is not None:
            shared = {apart[index] for index in left_out}
            fitted = np.array([index for index in others if apart[index] not in shared], dtype=int)
        if len(set(labels[fitted].tolist())) < 2:
            raise UserError(
                f"a fold of {len(left_out)} prompts leaves one class only to fit a probe on: "
                "give more subjects and more objects"
            )
        weight, bias = fit_direction(activations[fitted], labels[fitted], method=method, C=C)
        values = activations[left_out].cpu().double() @ weight + bias
        scores[left_out] = values.float()
    return scores


@checked
def auc_with_interval(
    scores: Float[Tensor, " prompt"],
    labels: Int[Tensor, " prompt"],
    subjects: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """AUC with the ends of its 95 % interval, from resampling subjects (percentile bootstrap).

    Raises:
        UserError: scores that are not finite, one class only, or fewer than two subjects.
    """
    wins, pairs = _subject_pairs(scores, labels, subjects)
    n_subjects = len(wins)
    if n_subjects < 2:
        raise UserError("an interval needs at least two subjects")
    low, high = resampled_interval(
        n_subjects, lambda counts: _resampled_auc(counts, wins, pairs), width=4, seed=seed
    )
    return float(wins.sum() / pairs.sum()), low, high


def resampled_interval(
    n_groups: int,
    statistic: Callable[[Int[np.ndarray, "resample group"]], Float[np.ndarray, " resample"]],
    *,
    width: int = 1,
    seed: int = 0,
) -> tuple[float, float]:
    """The ends of a 95 % percentile interval from resampling groups; NaN resamples are left out.

    Args:
        statistic: takes how often each resample contains each group.
        width: numbers that ``statistic`` computes for each group, which bounds the memory.
    """
    size = resamples_at_once(width * n_groups, BOOTSTRAP_RESAMPLES)
    generator = np.random.default_rng(seed)
    draws = group_draws(n_groups, BOOTSTRAP_RESAMPLES, size, generator=generator)
    tail = (1 - CONFIDENCE) / 2
    values = np.concatenate([statistic(counts) for counts in draws])
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def accuracy_with_interval(
    scores: Float[Tensor, " prompt"],
    labels: Int[Tensor, " prompt"],
    subjects: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Share of prompts on the right side of zero, with its 95 % interval over subjects.

    A score of exactly zero counts as label 0. Raises UserError as `auc_with_interval`.
    """
    check_labelled(scores[:, None], labels)
    _check_length(len(labels), subjects)
    if len(set(subjects)) < 2:
        raise UserError("an interval needs at least two subjects")
    right = ((scores > 0).cpu() == (labels.cpu() == 1)).double().numpy()
    return mean_interval(right, subjects, seed=seed)


@checked
def area_under_curve(scores: Float[Tensor, " prompt"], labels: Int[Tensor, " prompt"]) -> float:
    """AUC without an interval. Raises UserError as `auc_with_interval`."""
    wins, pairs = _subject_pairs(scores, labels, [""] * len(labels))
    return float(wins.sum() / pairs.sum())


def _subject_pairs(
    scores: Float[Tensor, " prompt"], labels: Int[Tensor, " prompt"], subjects: Sequence[str]
) -> tuple[Float[np.ndarray, "subject subject"], Float[np.ndarray, "subject subject"]]:
    """Per two subjects, pairs of a prompt of label 1 and one of label 0: those in order, and all.

    The AUC of any resample of subjects is a ratio of sums over these two tables.
    """
    check_labelled(scores[:, None], labels)
    _check_length(len(labels), subjects)
    order = {subject: index for index, subject in enumerate(dict.fromkeys(subjects))}
    index = torch.tensor([order[subject] for subject in subjects])
    values, ones = scores.detach().cpu().double(), labels.cpu() == 1
    ahead = torch.sign(values[ones][:, None] - values[~ones][None, :]).add(1).div(2)
    member = torch.nn.functional.one_hot(index, len(order)).double()
    positive, negative = member[ones], member[~ones]
    wins = positive.T @ ahead @ negative
    pairs = positive.sum(dim=0)[:, None] * negative.sum(dim=0)[None, :]
    return wins.numpy(), pairs.numpy()


def _resampled_auc(
    counts: Int[np.ndarray, "resample subject"],
    wins: Float[np.ndarray, "subject subject"],
    pairs: Float[np.ndarray, "subject subject"],
) -> Float[np.ndarray, " resample"]:
    """AUC with each subject counted so often; NaN for a resample of one class only."""
    won = ((counts @ wins) * counts).sum(axis=1)
    total = ((counts @ pairs) * counts).sum(axis=1)
    return np.divide(won, total, out=np.full_like(won, np.nan), where=total > 0)


def _check_length(n_prompts: int, names: Sequence[str], what: str = "subjects") -> None:
    if len(names) != n_prompts:
        raise UserError(f"{n_prompts} prompts but {len(names)} {what}: give one for each")
