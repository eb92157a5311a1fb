"""The shuffled control is at chance when nothing leaks, and is not when something does."""

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.models import fingerprint
from probes import (
    LabelledActivations,
    area_under_curve,
    control_task_auc,
    fit_probe,
    random_weights,
    shuffled_label_auc,
)
from probes.controls import _swapped_subjects, _with_swapped


def noise(n_prompts: int, d_model: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_prompts, d_model, generator=torch.Generator().manual_seed(seed))


def part(prefix: str, *, seed: int, signal: float = 0.0, n_subjects: int = 30):
    """Two questions a subject; ``signal`` is how far false premises lie from their twins."""
    subjects = [f"{prefix}{index // 2}" for index in range(2 * n_subjects)]
    own = noise(n_subjects, 24, seed).repeat_interleave(2, dim=0)
    false = own + noise(2 * n_subjects, 24, seed + 1) + signal * torch.eye(24)[0]
    return LabelledActivations.from_pairs(
        false, own + noise(2 * n_subjects, 24, seed + 2), subjects
    )


def test_pairs_are_labelled_false_first():
    pairs = LabelledActivations.from_pairs(torch.ones(2, 3), torch.zeros(2, 3), ["a", "b"])
    assert pairs.labels.tolist() == [1, 1, 0, 0]
    assert pairs.activations.sum(dim=1).tolist() == [3, 3, 0, 0]
    assert pairs.subjects == ("a", "b", "a", "b")


@pytest.mark.parametrize("signal", [0.0, 12.0])
def test_shuffled_labels_are_at_chance_however_strong_the_signal(signal):
    fitted, scored = part("a", seed=0, signal=signal), part("b", seed=50, signal=signal)
    values = shuffled_label_auc(fitted, scored, n_shuffles=20)
    assert values.shape == (20,)
    assert values.mean() == pytest.approx(0.5, abs=0.07)
    probe = fit_probe(fitted.activations, fitted.labels, layer=0, fingerprint="f")
    auc = area_under_curve(probe.scores(scored.activations), scored.labels)
    assert auc == 1 if signal else auc == pytest.approx(0.5, abs=0.12)


def test_a_leaked_subject_is_noticed():
    """Each subject's two kinds of prompt can be told apart by themselves: only a leak helps."""
    fitted = part("a", seed=0, n_subjects=12, signal=0.0)
    own = noise(24, 64, seed=5)  # one point per subject and class
    index = torch.tensor([int(name[1:]) for name in fitted.subjects]) * 2 + fitted.labels
    leaked = LabelledActivations(own[index], fitted.labels, fitted.subjects)
    assert shuffled_label_auc(leaked, leaked, n_shuffles=5).min() > 0.99
    renamed = tuple(f"other {name}" for name in leaked.subjects)
    apart = LabelledActivations(noise(24, 64, seed=6)[index], leaked.labels, renamed)
    assert shuffled_label_auc(leaked, apart, n_shuffles=20).mean() == pytest.approx(0.5, abs=0.1)


def test_all_prompts_of_half_the_subjects_are_swapped():
    rng = np.random.default_rng(0)
    first, second = [f"a{i}" for i in range(10)], ["a0", *(f"b{i}" for i in range(7))]
    seen = set()
    for _ in range(50):
        swapped = _swapped_subjects(first * 2, second, rng)
        assert sum(name in swapped for name in first) == 5
        assert sum(name in swapped for name in second[1:]) in (3, 4)
        seen.add(swapped)
    assert len(seen) > 40
    pairs = LabelledActivations.from_pairs(torch.ones(2, 3), torch.zeros(2, 3), ["a", "b"])
    assert _with_swapped(pairs, frozenset({"b"})).tolist() == [1, 0, 0, 1]


def test_a_seed_gives_the_same_shuffles():
    fitted, scored = part("a", seed=0), part("b", seed=50)
    first, again, other = (
        shuffled_label_auc(fitted, scored, n_shuffles=3, seed=seed) for seed in (1, 1, 2)
    )
    assert first.tolist() == again.tolist() != other.tolist()


def test_bad_input():
    fitted = part("a", seed=0, n_subjects=4)
    one_class = LabelledActivations(torch.zeros(2, 24), torch.tensor([0, 1]), ("x", "y"))
    with pytest.raises(UserError, match="'x' has prompts of label 0 only"):
        shuffled_label_auc(fitted, one_class)
    with pytest.raises(UserError, match="at least one shuffle is needed, got 0"):
        shuffled_label_auc(fitted, fitted, n_shuffles=0)
    with pytest.raises(UserError, match="2 prompts but 1 subjects"):
        LabelledActivations(torch.zeros(2, 3), torch.tensor([0, 1]), ("x",))
    with pytest.raises(UserError, match="only label 1 occurs"):
        LabelledActivations(torch.zeros(2, 3), torch.tensor([1, 1]), ("x", "y"))


def test_a_probe_of_the_object_learns_the_control_task_by_heart():
    """Forty subjects, ten objects: a coin's label of an object holds for its other subjects."""
    subject = torch.arange(40).repeat_interleave(2)
    objects = subject % 10
    names = tuple(f"s{index}" for index in subject.tolist())
    labels = torch.arange(80) % 2
    telling = torch.nn.functional.one_hot(objects, 10).float()
    part = LabelledActivations(telling, labels, names)
    by_heart = control_task_auc(part, [f"o{index}" for index in objects.tolist()])
    assert by_heart.tolist() == pytest.approx([1] * 5)
    noise = torch.randn(80, 10, generator=torch.Generator().manual_seed(0))
    nothing = control_task_auc(
        LabelledActivations(noise, labels, names), [f"o{index}" for index in objects.tolist()]
    )
    assert nothing.mean() == pytest.approx(0.5, abs=0.15)
    with pytest.raises(UserError, match="80 prompts but 2 objects"):
        control_task_auc(part, ["a", "b"])
    with pytest.raises(UserError, match="at least two objects"):
        control_task_auc(part, ["a"] * 80)
    with pytest.raises(UserError, match="at least once"):
        control_task_auc(part, ["a"] * 80, n_coins=0)


def test_random_weights_have_the_shape_and_nothing_else(tiny_llama):
    before = torch.random.get_rng_state()
    one, again, other = (random_weights(tiny_llama, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert fingerprint(one) == fingerprint(again) != fingerprint(other)
    assert fingerprint(one) != fingerprint(tiny_llama)
    assert one.cfg.n_layers == tiny_llama.cfg.n_layers
    assert one.tokenizer.get_vocab() == tiny_llama.tokenizer.get_vocab()
