"""AUC by hand, its interval by subject, and folds that let nothing through."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interp.errors import UserError
from probes import area_under_curve, auc_with_interval, cross_validated_scores
from probes.scoring import _resampled_auc, _subject_pairs


def noise(n_prompts: int, d_model: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_prompts, d_model, generator=torch.Generator().manual_seed(seed))


def names(index: torch.Tensor | list[int] | range) -> list[str]:
    return [f"s{int(i)}" for i in index]


def test_auc_by_hand():
    """Pairs (1 over 0): 0.9 beats 0.4 and 0.1; 0.4 ties with 0.4 and beats 0.1: 3.5 of 4."""
    scores, labels = torch.tensor([0.9, 0.4, 0.4, 0.1]), torch.tensor([1, 1, 0, 0])
    assert area_under_curve(scores, labels) == 0.875
    assert area_under_curve(-scores, labels) == 0.125
    assert auc_with_interval(scores, labels, names([0, 1, 0, 1]))[0] == 0.875


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_resample_agrees_with_counting_it_out(data):
    """The tables of pairs give scikit-learn's AUC of the prompts written out as often as drawn."""
    n_subjects = data.draw(st.integers(2, 5))
    rows = st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, n_subjects - 1))
    prompts = data.draw(st.lists(rows, min_size=4, max_size=14))
    prompts += [(0, 0, subject) for subject in range(n_subjects)] + [(1, 1, 0)]
    scores, labels, subjects = (torch.tensor(column) for column in zip(*prompts, strict=True))
    drawn = data.draw(
        st.lists(st.integers(0, n_subjects - 1), min_size=n_subjects, max_size=n_subjects)
    )
    wins, pairs = _subject_pairs(scores.float(), labels, names(subjects))
    counts = np.bincount(drawn, minlength=n_subjects)
    found = _resampled_auc(counts[None, :], wins, pairs)[0]
    first_seen = list(dict.fromkeys(subjects.tolist()))
    index = [i for d in drawn for i in range(len(prompts)) if subjects[i] == first_seen[d]]
    if len(set(labels[index].tolist())) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(labels[index], scores[index]))


def test_the_interval_counts_subjects_not_prompts():
    """Ten copies of a subject's prompts are no more evidence than one."""
    labels = torch.arange(40) % 2
    scores = noise(40, 1)[:, 0] + 0.7 * labels
    few = names(torch.arange(40) // 2)
    once = auc_with_interval(scores, labels, few)
    copies = auc_with_interval(scores.repeat(10), labels.repeat(10), few * 10)
    assert copies == pytest.approx(once)
    as_if_independent = auc_with_interval(scores.repeat(10), labels.repeat(10), names(range(400)))
    assert as_if_independent[2] - as_if_independent[1] < 0.5 * (once[2] - once[1])


def test_the_interval_of_a_perfect_and_of_a_useless_score():
    labels = torch.arange(60) % 2
    subjects = names(torch.arange(60) // 2)
    assert auc_with_interval(labels.float(), labels, subjects) == (1, 1, 1)
    auc, low, high = auc_with_interval(noise(60, 1)[:, 0], labels, subjects)
    assert low < 0.5 < high
    assert low < auc < high
    assert auc_with_interval(torch.zeros(60), labels, subjects) == (0.5, 0.5, 0.5)


def test_the_interval_depends_on_the_seed_only():
    labels = torch.arange(40) % 2
    scores, subjects = noise(40, 1)[:, 0], names(torch.arange(40) // 2)
    assert auc_with_interval(scores, labels, subjects, seed=3) == auc_with_interval(
        scores, labels, subjects, seed=3
    )
    assert auc_with_interval(scores, labels, subjects, seed=3) != auc_with_interval(
        scores, labels, subjects, seed=4
    )


def test_resamples_of_one_class_are_left_out():
    """Of two subjects with one class each, half of the resamples have no AUC."""
    values = auc_with_interval(torch.tensor([2.0, 1.0]), torch.tensor([1, 0]), ["a", "b"])
    assert values == (1, 1, 1)


def test_folds_agree_with_scikit_learn():
    activations, labels = noise(60, 6) * torch.tensor([1, 9, 1, 30, 1, 1]), torch.arange(60) % 2
    groups = names(torch.arange(60) // 2 % 11)
    expected = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000)),
        activations.double().numpy(),
        labels.numpy(),
        groups=groups,
        cv=GroupKFold(4),
        method="decision_function",
    )
    scores = cross_validated_scores(activations, labels, groups, n_splits=4, C=0.3)
    np.testing.assert_allclose(scores.numpy(), np.asarray(expected), rtol=1e-4, atol=1e-5)


def test_a_feature_that_names_the_subject_does_not_help():
    """Each subject has one label: its name tells the label, unless it was never seen."""
    subject = torch.arange(40).repeat_interleave(5)
    labels = subject % 2
    activations = noise(40, 64)[subject] + 0.1 * noise(200, 64, seed=1)
    leaking = cross_validated_scores(activations, labels, names(range(200)))
    assert area_under_curve(leaking, labels) > 0.99
    grouped = cross_validated_scores(activations, labels, names(subject))
    assert area_under_curve(grouped, labels) == pytest.approx(0.5, abs=0.15)


def test_a_real_difference_survives_the_groups():
    subject = torch.arange(40).repeat_interleave(4)
    labels = torch.arange(160) % 2
    activations = noise(40, 16)[subject] + 8 * labels[:, None] * torch.eye(16)[3]
    assert (
        area_under_curve(cross_validated_scores(activations, labels, names(subject)), labels) == 1
    )


def test_a_feature_that_names_the_object_helps_neither_way():
    """One-to-one facts: each object is true of one subject and false of another.

    Folds by subject then meet every object with the label that it does not have in the other
    folds: far below chance. Folds by object, with the subjects kept apart, share neither.
    """
    n_facts = 40
    permutation = (torch.arange(n_facts) + 7) % n_facts
    objects = torch.cat([permutation, torch.arange(n_facts)])
    subjects = torch.arange(n_facts).repeat(2)
    labels = torch.cat([torch.ones(n_facts, dtype=torch.long), torch.zeros(n_facts).long()])
    activations = noise(n_facts, 32)[objects]
    by_subject = cross_validated_scores(activations, labels, names(subjects))
    assert area_under_curve(by_subject, labels) < 0.25
    by_both = cross_validated_scores(activations, labels, names(objects), apart=names(subjects))
    assert area_under_curve(by_both, labels) == pytest.approx(0.5, abs=0.15)


def test_bad_input():
    activations, labels = noise(12, 3), torch.arange(12) % 2
    with pytest.raises(UserError, match="4 groups cannot fill 5 folds"):
        cross_validated_scores(activations, labels, names(torch.arange(12) // 3))
    with pytest.raises(UserError, match="at least 2 folds, got 1"):
        cross_validated_scores(activations, labels, names(range(12)), n_splits=1)
    with pytest.raises(UserError, match="12 prompts but 3 groups"):
        cross_validated_scores(activations, labels, names(range(3)))
    with pytest.raises(UserError, match="12 prompts but 0 entries of `apart`"):
        cross_validated_scores(activations, labels, names(range(12)), apart=[])
    with pytest.raises(UserError, match="leaves one class only to fit a probe on"):
        cross_validated_scores(activations, labels, names(labels), n_splits=2)
    with pytest.raises(UserError, match="leaves one class only to fit a probe on"):
        cross_validated_scores(activations, labels, names(range(12)), apart=["same"] * 12)
    with pytest.raises(UserError, match="only label 1 occurs"):
        cross_validated_scores(activations, torch.ones(12).long(), names(range(12)))
    with pytest.raises(UserError, match="prompt 2 are not finite"):
        cross_validated_scores(
            torch.where(torch.arange(12)[:, None] == 2, torch.nan, activations),
            labels,
            names(range(12)),
        )
    with pytest.raises(UserError, match="an interval needs at least two subjects"):
        auc_with_interval(activations[:, 0], labels, ["a"] * 12)
    with pytest.raises(UserError, match="12 prompts but 1 subjects"):
        auc_with_interval(activations[:, 0], labels, ["a"])
    with pytest.raises(UserError, match="only label 0 occurs"):
        area_under_curve(activations[:, 0], torch.zeros(12).long())
    with pytest.raises(UserError, match="prompt 0 are not finite"):
        area_under_curve(torch.full((12,), torch.inf), labels)
