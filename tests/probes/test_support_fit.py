"""The fit of a support test: what is tested, what is weighed, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from interp.premises import load_premises
from probes import PremiseDetector, SupportDetector
from probes.detector.balance import balanced_questions
from probes.detector.dataset import DetectorDataset
from probes.detector.evidence import Combination
from probes.detector.fit import CombinedScores
from probes.detector.questions import AskedQuestion, label_questions
from probes.detector.scored import TokenScores
from probes.detector.support import Contrast
from probes.detector.support_fit import SURENESS, NothingToTest, evenly_chosen, fit_support
from probes.detector.train import train_detector
from tests.premise_pairs import TEXTS, probes_of


@pytest.fixture(scope="module")
def probes(tiny_llama) -> PremiseDetector:
    return probes_of(tiny_llama)


class NoStore:
    """Activations that nobody reads."""

    layers = (1,)
    predictions = True

    def __init__(self, sizes: list[int]) -> None:
        self.prompt = torch.repeat_interleave(torch.tensor(sizes))

    def read_predictions(self, rows: torch.Tensor) -> torch.Tensor:
        """Every token has log-probability −2."""
        return torch.tensor([-2.0, -1.0, 1.0]).expand(len(rows), 3)


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
    entity = 10.0 * material.entities - 5
    combination = Combination(("falsity", "entropy"), (1.0, 0.0), 0.0)
    return CombinedScores(tokens, tokens, entity, np.zeros(0), combination)


def asked_and_scores(material: DetectorDataset) -> tuple[list[AskedQuestion], list[TokenScores]]:
    """What `fit_support` sees of the questions."""
    planted = planted_scores(material)
    columns = torch.stack([planted.tokens, planted.mention, planted.entity], dim=1)
    predictions = torch.from_numpy(material.read_predictions())
    scores = TokenScores.of_questions(columns, predictions, material.sizes)
    return [question.asked for question in material.questions], scores


@pytest.mark.parametrize("planted", ["without", "best"])
def test_a_planted_support_is_weighed(fitted_on, probes, planted):
    labels = {q.asked.tokens: q.label for q in fitted_on.questions}

    def read(asked: Any, pairs: Any) -> Contrast:
        """If the premise is false, the later words are likelier without the earlier ones, or the
        earlier ones speak for something."""
        without = -2.0 * np.array([pair.later[1] - pair.later[0] for pair in pairs])
        told = np.array([2.0 if labels[question.tokens] else -2.0 for question in asked])
        if planted == "without":
            return Contrast(without + told, np.ones(len(asked)))
        return Contrast(without, 2.0 + told)

    options: Any = {"scores": planted_scores(fitted_on)}
    found = fit_support(fitted_on, probes, read=read, **options)
    training = found.training
    assert training["fired_on_false"] > 0.9
    assert training["fired_on_twins"] == 0
    of_support, of_best = found.weights[1:]
    # A supported premise is true; where the earlier words speak for something, it may be false.
    assert of_support < 0 if planted == "without" else of_best > 0
    everything = replace(found, floor=-1e9, sureness=0.0).suspects(*asked_and_scores(fitted_on))
    false = [part for part, label in zip(everything, fitted_on.labels, strict=True) if label]
    distances = [part.sureness for part in false if part.pair is not None]
    assert found.sureness == pytest.approx(SURENESS * np.median(distances))

    def silent(asked: Any, pairs: Any) -> Contrast:
        noise = np.random.default_rng(0).normal(size=(2, len(asked)))
        return Contrast(noise[0] - 2, noise[1])

    # Negative control: a support that says nothing is not believed.
    noise = fit_support(fitted_on, probes, read=silent, **options)
    assert noise.training["fired_on_false"] < 0.4


def test_probes_without_a_fault_decide_alone(tiny_llama, monkeypatch):
    """They suspect no twin: the detector is one of probes."""
    premises = load_premises("capitals", limit=12).split(seed=0).search

    def refuse(*_: Any, **__: Any) -> None:
        raise NothingToTest("one class only")

    monkeypatch.setattr("probes.detector.train.fit_support", refuse)
    found = train_detector(tiny_llama, [premises], known=False, layers=[1], progress=False)
    assert isinstance(found, PremiseDetector)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, False),
        ({"beside": ["languages"]}, True),
        ({"beside": ["languages"], "new_relations": True}, False),
    ],
)
def test_whether_new_relations_will_be_asked_about(tiny_llama, monkeypatch, options, seen) -> None:
    asked = []

    def refuse(*_: Any, seen: bool, **__: Any) -> None:
        asked.append(seen)
        raise NothingToTest("only asked")

    monkeypatch.setattr("probes.detector.train.fit_support", refuse)
    premises = load_premises("capitals", limit=12).split(seed=0).search
    beside = [load_premises(name, limit=8) for name in options.get("beside", ())]
    train_detector(
        tiny_llama,
        [premises],
        **{**options, "beside": beside},
        known=False,
        layers=[1],
        progress=False,
    )
    assert asked == [seen]


@pytest.mark.parametrize(("seen", "share"), [(False, 0.005), (True, 0.0125)])
def test_relations_that_were_trained_on_may_have_more_false_alarms(
    fitted_on, probes, monkeypatch, seen, share
) -> None:
    monkeypatch.setattr("probes.detector.fit.ALARMS", 0)

    def read(asked: Any, pairs: Any) -> Contrast:
        return Contrast(*np.zeros((2, len(asked))))

    scores = planted_scores(fitted_on)
    found = fit_support(fitted_on, probes, scores=scores, read=read, seen=seen)
    assert found.training["false_alarms_allowed"] == share


def test_a_test_of_one_class_is_refused(fitted_on, probes):
    scores = planted_scores(fitted_on)
    false = torch.from_numpy(fitted_on.labels == 1)[fitted_on.question_of]
    clear = replace(scores, tokens=torch.where(false, 50.0, -50.0))

    def read(asked: Any, pairs: Any) -> Contrast:
        return Contrast(*np.zeros((2, len(asked))))

    with pytest.raises(NothingToTest, match="one class only"):
        fit_support(fitted_on, probes, scores=clear, read=read)


def test_the_questions_that_are_tested(fitted_on):
    chosen = evenly_chosen(fitted_on, 20)
    assert len(chosen) == 20
    labels = fitted_on.labels[chosen]
    assert labels.tolist() == [1, 0] * 10
    subjects = [fitted_on.questions[index].question.subject for index in chosen]
    assert subjects[::2] == subjects[1::2]
    assert len(evenly_chosen(fitted_on, 10**6)) == len(fitted_on.questions)


def test_all_the_way_on_a_random_model(tiny_llama, tmp_path):
    premises = load_premises("capitals", limit=12).split(seed=0).search
    found = train_detector(tiny_llama, [premises], known=False, layers=[1], progress=False)
    assert isinstance(found, SupportDetector)
    assert found.training["questions"] > 0
    found.detect(tiny_llama, TEXTS, progress=False)
    plain = train_detector(
        tiny_llama, [premises], known=False, layers=[1], support=False, progress=False
    )
    assert isinstance(plain, PremiseDetector)
