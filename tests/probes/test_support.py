"""The support of a premise: its run, the detector that is built on it, and its file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.errors import UserError
from probes import Calibration, PremiseDetector, SupportDetector, load_detector
from probes.activation_reader import read_activations
from probes.detector.detections import Detection, Detector
from probes.detector.detector import SUPPORT
from probes.detector.evidence import Combination
from probes.detector.pair import Pair, premise_pair
from probes.detector.questions import tokenize_question
from probes.detector.scored import TokenScores
from probes.detector.support import (
    LIKELIEST,
    MOST_BEST,
    MOST_SUPPORT,
    Contrast,
    contrast,
    contrast_after_reading,
    supports,
    without_earlier,
)
from probes.detector.support_detector import Suspicion
from probes.detector.train import detector_for
from tests.premise_pairs import PAIRS, TEXTS, pair_of, probes_of


@pytest.fixture(scope="module")
def asked(tiny_llama):
    return [tokenize_question(tiny_llama.tokenizer, text) for text in TEXTS]


@pytest.fixture(scope="module")
def pairs(asked):
    return [pair_of(question, words) for question, words in zip(asked, PAIRS, strict=True)]


def test_a_run_without_the_earlier_words(tiny_llama, asked, pairs):
    """Beside single runs of prompts from which the words were cut by hand."""
    found = contrast(tiny_llama, asked, pairs, progress=False)
    for question, pair, (earlier, _), (value, best) in zip(
        asked, pairs, PAIRS, found.rows(), strict=True
    ):
        prompt = without_earlier(question, pair)
        assert earlier not in tiny_llama.tokenizer.decode(prompt)
        n_later = pair.later[1] - pair.later[0]
        assert prompt[-n_later:] == list(question.tokens[slice(*pair.later)])
        with torch.no_grad():
            logits = tiny_llama(torch.tensor([prompt]))[0].double().log_softmax(-1)
            whole = tiny_llama(torch.tensor([question.tokens]))[0].double().log_softmax(-1)
        expected = sum(float(logits[at - 1, prompt[at]]) for at in range(-n_later, 0))
        assert value == pytest.approx(expected, abs=1e-4)
        likely = whole[pair.later[0] - 1]
        gains = likely - logits[-n_later - 1]
        order = sorted(range(len(gains)), key=lambda token: -float(likely[token]))
        best_of = {n: max(float(gains[token]) for token in order[:n]) for n in (1, LIKELIEST)}
        assert best == pytest.approx(best_of[LIKELIEST], abs=1e-4)
        assert best >= best_of[1] - 1e-4


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_what_was_read_is_not_run_again(family, request, chat_tokenizer):
    """The reference runs whole prompts; later words next to the earlier ones, and one row alone."""
    model = request.getfixturevalue(family)
    texts = (*TEXTS, "Is Rome Japan?")
    asked = [tokenize_question(chat_tokenizer, text) for text in texts]
    words = (*PAIRS, ("Rome", "Japan"))
    pairs = [pair_of(question, part) for question, part in zip(asked, words, strict=True)]
    expected = np.array(contrast(model, asked, pairs, progress=False))
    prompts = [question.to_read for question in asked]
    (chunk,) = read_activations(model, prompts, layers=[0], keys_values=True, progress=False)
    for chosen in ([0, 1, 2, 3], [2], [3]):
        found = contrast_after_reading(
            model,
            [asked[index] for index in chosen],
            [pairs[index] for index in chosen],
            keys_values=chunk.keys_values,
            rows=[chunk.prompts.index(index) for index in chosen],
        )
        np.testing.assert_allclose(np.array(found), expected[:, chosen], atol=1e-4)
    wrong = contrast_after_reading(
        model,
        asked[:1],
        pairs[:1],
        keys_values=tuple((keys + 1, values) for keys, values in chunk.keys_values),
        rows=[chunk.prompts.index(0)],
    )
    for given, right in zip(wrong, expected[:, :1], strict=True):
        assert np.abs(given - right).max() > 1e-4  # what was read matters


def test_the_support_by_hand(asked, pairs):
    (start, end), first = pairs[2].later, asked[2].span[0]
    expected = np.full(len(asked[2].offsets), -7.0)
    expected[start - first : end - first] = np.linspace(-1.0, -0.5, end - start)
    nothing = np.zeros(len(expected))
    scores = TokenScores(nothing, nothing, nothing, expected)
    total = expected[start - first : end - first].sum()
    for without, support in ((-3.0, total + 3), (0.0, max(total, -MOST_SUPPORT)), (-99.0, 3.0)):
        for best, most in ((0.5, 0.5), (9.0, MOST_BEST)):
            read = Contrast(np.array([without]), np.array([best]))
            ((of_support, of_best),) = supports([scores], asked[2:], pairs[2:], read)
            assert of_support == pytest.approx(np.clip(support, -MOST_SUPPORT, MOST_SUPPORT))
            assert of_best == most


@pytest.fixture(scope="module")
def detector(tiny_llama) -> SupportDetector:
    return SupportDetector(
        probes_of(tiny_llama),
        weights=(1.0, 0.0, 0.0),
        bias=0.0,
        floor=-1e9,
        calibration=Calibration("platt"),
        threshold=0.0,
        training={"auc": 0.5},
    )


def test_without_weight_it_is_the_falsity_of_the_later_words(detector, tiny_llama, asked):
    found = detector.detect(tiny_llama, TEXTS, progress=False)
    scores = detector.probes.token_scores(tiny_llama, asked, progress=False)
    n_tested = 0
    for ours, question, of_tokens in zip(found, asked, scores, strict=True):
        pair = premise_pair(question, of_tokens.entity)
        assert ours.fired == (pair is not None)
        if pair is not None:
            n_tested += 1
            first = question.span[0]
            parts = [slice(start - first, end - first) for start, end in pair]
            falsity, mention = of_tokens.falsity[parts[1]].max(), of_tokens.mention
            assert ours.probability == pytest.approx(1 / (1 + np.exp(-falsity)), abs=1e-6)
            words = pair.earlier
            if mention[parts[1]].max() >= mention[parts[0]].max():
                words = pair.later
            assert ours.token_span == words
            assert question.tokens_at(ours.char_span) == words
    assert n_tested
    assert "a test of support" in detector._shown().words
    assert isinstance(detector, Detector)


def test_a_batch_decides_as_single_questions_do(detector, tiny_llama):
    weighing = replace(detector, weights=(0.5, -1.0, 0.5))
    together = weighing.detect(tiny_llama, TEXTS, progress=False)
    alone = [weighing.detect(tiny_llama, [text], progress=False)[0] for text in TEXTS]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.fired == theirs.fired
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-5)


@pytest.mark.parametrize("floor", [-1e9, 1e9])
def test_what_is_not_tested_runs_nothing_and_does_not_fire(
    detector, tiny_llama, monkeypatch, floor
):
    """Below the floor, and without a pair."""
    without_pair = replace(detector.probes, bias=(0.0, 0.0, -1e9))
    high = replace(detector, probes=without_pair, floor=floor, threshold=0.5)
    monkeypatch.setattr(
        "probes.detector.support_detector.contrast_after_reading",
        lambda model, asked, pairs, **options: Contrast(*np.zeros((2, 0))) if not asked else 1 / 0,
    )
    found = high.detect(tiny_llama, TEXTS, progress=False)
    assert not any(part.fired for part in found)
    assert all(part.probability < 0.5 for part in found)


def test_where_object_and_subject_are_not_told_apart_nothing_fires(detector, tiny_llama, asked):
    scores = detector.probes.token_scores(tiny_llama, asked, progress=False)
    before = detector.suspects(asked, scores)
    distances = [part.sureness for part in before if part.pair is not None]
    assert len(set(distances)) > 1
    between = replace(detector, sureness=(min(distances) + max(distances)) / 2)
    after = between.suspects(asked, scores)
    assert 0 < sum(part.pair is not None for part in after) < len(distances)
    for part, other in zip(after, before, strict=True):
        assert (part.falsity, part.sureness) == (other.falsity, other.sureness)
        sure = other.pair is not None and other.sureness >= between.sureness
        assert part.detection.fired == sure
        assert part.pair == (other.pair if sure else None)


def test_the_decision_by_hand(detector):
    weighing = replace(detector, weights=(1.0, -2.0, 0.5), bias=0.0, threshold=0.5)
    assert weighing.suspects([], []) == []
    before = Suspicion(Detection(True, 0.9, (1, 2), (3, 4)), 2.0, 9.0, Pair((1, 2), (3, 4)))
    supported = weighing.decide(before, 2.0, 2.0)  # 2 − 4 + 1 = −1
    assert not supported.fired
    assert supported.probability == pytest.approx(1 / (1 + np.e))
    contradicted = weighing.decide(before, -3.0, 2.0)  # 2 + 6 + 1 = 9
    assert contradicted.fired
    assert contradicted.token_span == (3, 4)


def test_probes_that_are_saved_over_a_test_do_not_take_it_over(detector, tiny_llama, tmp_path):
    detector.save(tmp_path)
    detector.probes.save(tmp_path)
    assert isinstance(load_detector(tmp_path, model=tiny_llama), PremiseDetector)
    detector.save(tmp_path)
    assert isinstance(load_detector(tmp_path, model=tiny_llama), SupportDetector)


def test_probes_that_cannot_be_tested(detector, tiny_llama):
    with pytest.raises(UserError, match="needs an entity probe"):
        replace(detector, probes=probes_of(tiny_llama, 2))
    blind = probes_of(tiny_llama, combination=Combination(("falsity",), (1.0,), 0.0))
    with pytest.raises(UserError, match="needs what the model expected"):
        replace(detector, probes=blind)
    with pytest.raises(UserError, match="three probes needs a combination"):
        probes_of(tiny_llama, combination=None)


def test_its_file(detector, tiny_llama, tiny_gpt2, tmp_path):
    folder = detector.save(tmp_path / "saved")
    again = load_detector(folder, model=tiny_llama)
    assert isinstance(again, SupportDetector)
    assert (again.weights, again.floor, again.sureness) == (detector.weights, -1e9, 0.0)
    assert again.detect(tiny_llama, TEXTS, progress=False) == detector.detect(
        tiny_llama, TEXTS, progress=False
    )
    with pytest.raises(UserError, match="fitted on model"):
        load_detector(folder, model=tiny_gpt2)
    content = json.loads((folder / SUPPORT).read_text())
    for change in (
        {"weights": [1.0]},
        {"floor": "low"},
        {"threshold": 2.0},
        {"format": 9},
        {"sureness": None},
    ):
        (folder / SUPPORT).write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match="train it again"):
            load_detector(folder, model=tiny_llama)
    (folder / SUPPORT).unlink()
    assert isinstance(load_detector(folder), PremiseDetector)
    with pytest.raises(UserError, match="no support test"):
        SupportDetector.load(folder)
    (folder / "echo.json").write_text("{}")
    with pytest.raises(UserError, match="of an earlier version: train it again"):
        load_detector(folder)


def test_probes_of_older_files(tiny_llama, tmp_path):
    """Format 2 has no entity probe; it loads, and detects as before."""
    old = probes_of(tiny_llama, 2)
    folder = old.save(tmp_path / "old")
    assert json.loads((folder / "detector.json").read_text())["format"] == 2
    again = load_detector(folder, model=tiny_llama)
    assert again.detect(tiny_llama, TEXTS, progress=False) == old.detect(
        tiny_llama, TEXTS, progress=False
    )
    new = probes_of(tiny_llama).save(tmp_path / "new")
    content = json.loads((new / "detector.json").read_text())
    assert content["format"] == 3
    (new / "detector.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(UserError, match="biases of shape"):
        load_detector(new)


def test_a_kept_test_is_the_model_s_own(tiny_llama, detector, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.detector.train.train_detector", lambda model, **_: detector)
    detector_for(tiny_llama, cache_dir=tmp_path, progress=False)
    again = detector_for(tiny_llama, cache_dir=tmp_path, progress=False)
    assert isinstance(again, SupportDetector)
