"""Fitting a detector, on activations in which the answer was put."""

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.premises import load_premises
from probes.detector.balance import balanced_questions
from probes.detector.dataset import DetectorDataset, Folds
from probes.detector.discriminant import Moments, fit_discriminant
from probes.detector.fit import (
    cross_fit_layers,
    default_false_alarms,
    fit_detector,
    lowest_threshold,
)
from probes.detector.fold_moments import FoldMoments, falsity_tokens
from probes.detector.questions import label_questions

SIGNS = 1.0 - 2.0 * (torch.arange(32) % 3 == 0)


class PlantedStore:
    """A store whose activations are noise, and a direction where a false premise is complete."""

    layers = (0, 1, 2)
    predictions = False

    def __init__(self, questions: Any, background: Any, strength: float) -> None:
        texts = [one.asked for one in (*questions, *background)]
        sizes = [len(one.offsets) for one in texts]
        self.prompt = torch.repeat_interleave(torch.tensor(sizes))
        noise = torch.randn(sum(sizes), 32, generator=torch.Generator().manual_seed(0))
        self.values = {layer: noise.clone() for layer in self.layers}
        start = 0
        for one, size in zip(questions, sizes, strict=False):
            first, last = one.object_tokens
            self.values[1][start + first : start + last, 0] += 2 * strength
            if one.label:
                self.values[1][start + one.completion] += strength * SIGNS
            start += size

    def __len__(self) -> int:
        return len(self.prompt)

    def read(self, layer: int, *, rows: Any) -> torch.Tensor:
        return self.values[layer][rows]


@pytest.fixture(scope="module")
def questions(tiny_llama):
    premises = load_premises("capitals", limit=12)
    return label_questions(tiny_llama.tokenizer, premises, balanced_questions(premises))


def material(questions: Any, strength: float) -> DetectorDataset:
    unchecked: Any = DetectorDataset
    found = object.__new__(unchecked)
    for name, value in {
        "questions": tuple(questions),
        "store": PlantedStore(questions, (), strength),
        "prompts": None,
        "background": (),
    }.items():
        object.__setattr__(found, name, value)
    found.__post_init__()
    return found


def test_a_planted_premise_is_found(questions):
    found = fit_detector(
        material(questions, 3.0), fingerprint="f" * 64, max_false_alarms=0.01, progress=False
    )
    assert found.layers == (1,)
    training = found.training
    assert training["auc"] > 0.99
    assert training["fired_on_false"] > 0.9
    assert training["fired_on_twins"] <= 0.01
    assert training["span_covers_object"] > 0.9
    assert training["calibration_error"] < 0.1
    cosine = torch.nn.functional.cosine_similarity(found.weight[0], SIGNS, dim=0)
    assert cosine > 0.8  # a positive score is a false premise


def test_noise_is_not_taken_for_a_premise(questions):
    layer_aucs = cross_fit_layers(material(questions, 0.0), Folds(), progress=False)[1]
    assert all(0.35 < auc < 0.65 for auc in layer_aucs.values())


def test_moments_of_folds_are_those_of_their_tokens(questions):
    """The reference computes a fold's falsity probe from all of its tokens at once."""
    data = material(questions, 1.0)
    (fitted, _), *_ = pairs = Folds(4).pairs(questions)
    weight, bias = FoldMoments(data, 1, np.stack([one for one, _ in pairs])).fit(0)
    values = data.read(1).double()
    rows, positive, weights = falsity_tokens(data, fitted)
    high, low = (
        Moments.of(values[rows & chosen], weights[rows & chosen])
        for chosen in (positive, ~positive)
    )
    expected, offset = fit_discriminant(high, low)
    torch.testing.assert_close(weight[0], expected, atol=1e-4, rtol=1e-4)
    assert float(bias[0]) == pytest.approx(offset, abs=1e-3)


def test_shuffled_labels_are_not_detected(questions):
    generator = np.random.default_rng(0)
    labels = generator.permutation([one.label for one in questions])
    shuffled = [
        replace(one, label=int(label)) for one, label in zip(questions, labels, strict=True)
    ]
    planted = material(questions, 3.0)
    object.__setattr__(planted, "questions", tuple(shuffled))
    fired = []
    with contextlib.suppress(UserError):  # "the calibration falls with the score"
        found = fit_detector(planted, fingerprint="f" * 64, max_false_alarms=0.01, progress=False)
        fired.append(found.training["fired_on_false"])
    assert max(fired, default=0.0) < 0.2


def test_folds_leave_subject_and_template_out(questions):
    seen = np.zeros(len(questions), dtype=int)
    for fitted, scored in Folds(4).pairs(questions):
        seen += scored
        for name in ("subject", "template"):
            names = np.array([getattr(one.question, name) for one in questions])
            assert not set(names[fitted]) & set(names[scored])
    assert (seen == 1).all()
    with pytest.raises(UserError, match="12 subjects cannot fill 13 folds"):
        Folds(13).pairs(questions)


def test_the_threshold_by_hand():
    probabilities = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.8])
    labels = np.array([0, 0, 0, 0, 1, 1])
    for share, passed in ((0.0, 0), (0.24, 0), (0.25, 1), (0.5, 2), (1.0, 4)):
        threshold = lowest_threshold(probabilities, labels, share)
        assert (probabilities[labels == 0] >= threshold).sum() == passed
    with pytest.raises(UserError, match="between 0 and 1"):
        lowest_threshold(probabilities, labels, 2.0)


def test_how_many_false_alarms_are_allowed_by_hand():
    assert default_false_alarms(20) == 0.05
    assert default_false_alarms(100) == 0.03
    assert default_false_alarms(1000) == 0.01


def test_material_of_one_class(questions):
    twins = [one for one in questions if not one.label]
    with pytest.raises(UserError, match="questions of both classes"):
        material(twins, 1.0)


def test_entities_are_the_tokens_of_both(questions):
    data = material(questions, 1.0)
    for one, part in zip(questions, data.entities.split(data.sizes), strict=True):
        spans = one.subject_tokens, one.object_tokens
        expected = {at for start, end in spans for at in range(start, end)}
        assert set(part.nonzero()[:, 0].tolist()) == expected


def test_the_entity_probe_reads_what_marks_subjects_and_objects(questions):
    """Planted at both; the moments of every token, label 1 at both."""
    data = material(questions, 0.0)
    store: Any = data.store
    store.values[1][data.entities] += 3.0 * SIGNS
    pairs = Folds(4).pairs(questions)
    weight, _ = FoldMoments(data, 1, np.stack([one for one, _ in pairs])).fit(0)
    cosine = torch.nn.functional.cosine_similarity(weight[2].float(), SIGNS, dim=0)
    assert cosine > 0.8
