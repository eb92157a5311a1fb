"""The echo: its two runs, the detector that is built on it, its file, and its fit."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.heads.headset import HeadSet
from interp.interventions import constrain
from interp.premises import load_premises
from probes import Calibration, EchoDetector, PremiseDetector, load_detector
from probes.activation_reader import read_activations
from probes.detector.balance import balanced_questions
from probes.detector.dataset import DetectorDataset
from probes.detector.detections import Detection, Detector
from probes.detector.echo import echo_after_reading, echo_log_odds, echo_prompt
from probes.detector.echo_detector import ECHO
from probes.detector.echo_fit import evenly_chosen, fit_echo
from probes.detector.evidence import Combination
from probes.detector.fit import CombinedScores
from probes.detector.questions import label_questions, tokenize_question
from probes.detector.train import detector_for, train_detector

HEADS = HeadSet(((0, 1), (1, 0), (1, 3)), "attention")
TEXTS = (
    "Why is Paris the capital of Germany?",
    "In which year did Rome become the capital of Spain?",
)
WORDS = ("Germany", "Spain", "Japan")


@pytest.fixture(scope="module")
def asked(tiny_llama):
    return [tokenize_question(tiny_llama.tokenizer, text) for text in TEXTS]


@pytest.fixture(scope="module")
def spans(asked):
    words = ("Germany", "Spain")
    places = [text.index(word) for text, word in zip(TEXTS, words, strict=True)]
    parts = zip(asked, places, words, strict=True)
    return [question.tokens_at((at, at + len(word))) for question, at, word in parts]


def test_echoes_are_those_of_single_constrained_runs(tiny_llama, asked, spans):
    found = echo_log_odds(tiny_llama, asked, spans, heads=HEADS, progress=False)
    for question, span, values in zip(asked, spans, found, strict=True):
        prompt = echo_prompt(question, span)
        assert prompt[: len(question.tokens)] == list(question.tokens)
        said = tiny_llama.tokenizer.decode(prompt[len(question.tokens) :])
        assert question.text.startswith(said.strip())
        assert len(said) > 10
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            uncut = tiny_llama(tokens)[0, -1]
            with constrain(tiny_llama, HEADS, at=[span]):
                cut = tiny_llama(tokens)[0, -1]
        wanted = question.tokens[span[0]]
        expected = [float(part.double().softmax(-1)[wanted].logit()) for part in (uncut, cut)]
        np.testing.assert_allclose(values, expected, atol=2e-4)
        assert abs(values[0] - values[1]) > 1e-4  # the cut does something


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("heads", [HEADS, HeadSet(((1, 0), (1, 3)), "attention")])
def test_what_was_read_is_not_run_again(family, heads, request, chat_tokenizer):
    """The reference runs whole prompts; spans at the end and in the middle, and of two questions
    the second alone."""
    model = request.getfixturevalue(family)
    texts = (*TEXTS, "When was Rome, the capital of Japan, built?")
    asked = [tokenize_question(chat_tokenizer, text) for text in texts]
    places = [(text.index(word), word) for text, word in zip(texts, WORDS, strict=True)]
    spans = [
        question.tokens_at((at, at + len(word)))
        for question, (at, word) in zip(asked, places, strict=True)
    ]
    expected = echo_log_odds(model, asked, spans, heads=heads, progress=False)
    prompts = [question.to_read for question in asked]
    (chunk,) = read_activations(model, prompts, layers=[0], keys_values=True, progress=False)
    assert sorted(chunk.prompts) == [0, 1, 2]
    for chosen in ([0, 1, 2], [1]):
        found = echo_after_reading(
            model,
            [asked[index] for index in chosen],
            [spans[index] for index in chosen],
            heads=heads,
            keys_values=chunk.keys_values,
            rows=[chunk.prompts.index(index) for index in chosen],
        )
        np.testing.assert_allclose(found, expected[chosen], atol=1e-4)
        assert np.abs(found[:, 0] - found[:, 1]).min() > 1e-4
    wrong = echo_after_reading(
        model,
        asked[:1],
        spans[:1],
        heads=heads,
        keys_values=chunk.keys_values,
        rows=[chunk.prompts.index(1)],
    )
    assert np.abs(wrong - expected[:1]).max() > 1e-4  # what was read matters


def test_no_heads_and_others(tiny_llama, asked, spans):
    for heads, fault in (
        (HeadSet((), "attention"), "at least one head"),
        (HeadSet(((0, 0),), "output"), "site 'attention'"),
        (HeadSet(((9, 0),), "attention"), "does not exist"),
    ):
        with pytest.raises(UserError, match=fault):
            echo_log_odds(tiny_llama, asked, spans, heads=heads, progress=False)


def probes_of(model: Any) -> PremiseDetector:
    weight = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    return PremiseDetector(
        weight=weight,
        bias=(0.0, 0.0),
        layer=1,
        calibration=Calibration("platt"),
        threshold=0.0,
        fingerprint=interp.models.fingerprint(model),
    )


@pytest.fixture(scope="module")
def detector(tiny_llama) -> EchoDetector:
    return EchoDetector(
        probes_of(tiny_llama),
        HEADS,
        weights=(1.0, 0.0, 0.0),
        bias=0.0,
        floor=-1e9,
        calibration=Calibration("platt"),
        threshold=0.0,
        training={"auc": 0.5},
    )


def test_without_weight_it_is_the_probes(detector, tiny_llama):
    found = detector.detect(tiny_llama, TEXTS, progress=False)
    expected = detector.probes.detect(tiny_llama, TEXTS, progress=False)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.char_span == theirs.char_span
        assert ours.fired
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-6)
    assert "echo under 3 heads" in detector._shown().words
    assert isinstance(detector, Detector)


def test_below_the_floor_nothing_runs_and_nothing_fires(detector, tiny_llama, monkeypatch):
    high = replace(detector, floor=1e9, threshold=0.5)
    monkeypatch.setattr(
        "probes.detector.echo_detector.echo_after_reading",
        lambda model, asked, spans, **options: np.zeros((len(asked), 2)) if not asked else 1 / 0,
    )
    found = high.detect(tiny_llama, TEXTS, progress=False)
    assert not any(part.fired for part in found)
    assert all(part.probability < 0.5 for part in found)


def test_the_decision_by_hand(detector):
    weighing = replace(detector, weights=(1.0, 0.5, -2.0), bias=1.0, threshold=0.5)
    suspected = weighing.suspects([], [])
    assert suspected == []
    before = Detection(True, 0.9, (1, 2), (3, 4))
    known = weighing.decide(before, 2.0, np.array([4.0, 3.0]))  # 2 + 2 − 6 + 1 = −1
    assert not known.fired
    assert known.probability == pytest.approx(1 / (1 + np.e))
    copied = weighing.decide(before, 2.0, np.array([4.0, -3.0]))  # 2 + 2 + 6 + 1 = 11
    assert copied.fired
    assert copied.token_span == (3, 4)


def test_its_file(detector, tiny_llama, tiny_gpt2, tmp_path):
    folder = detector.save(tmp_path / "saved")
    again = load_detector(folder, model=tiny_llama)
    assert isinstance(again, EchoDetector)
    assert (again.weights, again.floor, again.heads) == (detector.weights, -1e9, HEADS)
    assert again.detect(tiny_llama, TEXTS, progress=False) == detector.detect(
        tiny_llama, TEXTS, progress=False
    )
    with pytest.raises(UserError, match="fitted on model"):
        load_detector(folder, model=tiny_gpt2)
    content = json.loads((folder / ECHO).read_text())
    for change in ({"weights": [1.0]}, {"heads": [[40, 0]]}, {"threshold": 2.0}, {"format": 9}):
        (folder / ECHO).write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match="train it again"):
            load_detector(folder, model=tiny_llama)
    (folder / ECHO).unlink()
    assert isinstance(load_detector(folder), PremiseDetector)
    with pytest.raises(UserError, match="no echo detector"):
        EchoDetector.load(folder)


class NoStore:
    """Activations that nobody reads."""

    layers = (1,)
    predictions = False

    def __init__(self, sizes: list[int]) -> None:
        self.prompt = torch.repeat_interleave(torch.tensor(sizes))


@pytest.fixture(scope="module")
def fitted_on(tiny_llama):
    premises = load_premises("capitals", limit=12)
    questions = label_questions(tiny_llama.tokenizer, premises, balanced_questions(premises))
    unchecked: Any = object.__new__(DetectorDataset)
    store = NoStore([len(question.asked.offsets) for question in questions])
    for name, value in {
        **{"questions": tuple(questions), "store": store},
        **{"background": (), "prompts": None},
    }.items():
        object.__setattr__(unchecked, name, value)
    return unchecked


def planted_scores(material: DetectorDataset, seed: int = 0) -> CombinedScores:
    """Noise, higher at the completion of every premise, false or true: the probes know nothing."""
    noise = torch.randn(sum(material.sizes), generator=torch.Generator().manual_seed(seed))
    tokens = noise + 5 * material.completes
    return CombinedScores(tokens, tokens, np.zeros(0), Combination(("falsity",), (1.0,), 0.0))


def test_a_planted_echo_is_weighed(fitted_on, detector):
    labels = {q.asked.tokens: q.label for q in fitted_on.questions}

    def read(asked: Any, spans: Any) -> np.ndarray:
        return np.array([[4.0, -4.0 if labels[q.tokens] else 3.0] for q in asked]).reshape(-1, 2)

    options: Any = {"scores": planted_scores(fitted_on), "heads": HEADS}
    found = fit_echo(fitted_on, detector.probes, read=read, **options)
    training = found.training
    assert training["fired_on_false"] > 0.9
    assert training["fired_on_twins"] == 0
    assert found.weights[2] < 0  # an object that survives the cut is known

    def silent(asked: Any, spans: Any) -> np.ndarray:
        values = np.random.default_rng(0).normal(size=(len(asked), 2))
        return values

    # Negative control: an echo that says nothing is not believed.
    noise = fit_echo(fitted_on, detector.probes, read=silent, **options)
    assert noise.training["fired_on_false"] < 0.4


def test_the_questions_of_the_echo(fitted_on):
    chosen = evenly_chosen(fitted_on, 20)
    assert len(chosen) == 20
    labels = fitted_on.labels[chosen]
    assert labels.tolist() == [1, 0] * 10
    subjects = [fitted_on.questions[index].question.subject for index in chosen]
    assert subjects[::2] == subjects[1::2]
    assert len(evenly_chosen(fitted_on, 10**6)) == len(fitted_on.questions)


def test_all_the_way_on_a_random_model(tiny_llama, tmp_path):
    premises = load_premises("capitals", limit=12).split(seed=0).search
    found = train_detector(
        tiny_llama, [premises], known=False, layers=[1], heads=HEADS, progress=False
    )
    assert isinstance(found, EchoDetector)
    assert found.training["questions"] > 0
    found.detect(tiny_llama, TEXTS, progress=False)


def test_a_kept_echo_is_the_model_s_own(tiny_llama, detector, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.detector.train.train_detector", lambda model, **_: detector)
    detector_for(tiny_llama, cache_dir=tmp_path, progress=False)
    again = detector_for(tiny_llama, cache_dir=tmp_path, progress=False)
    assert isinstance(again, EchoDetector)
