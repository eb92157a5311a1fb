"""Evidence and its combination by hand, discriminants, folds by relation, files, and rates."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.premises import load_premises
from probes import Calibration, PremiseDetector
from probes.activation_reader import read_activations
from probes.detector.balance import balanced_questions
from probes.detector.dataset import Folds
from probes.detector.discriminant import Moments, fit_discriminant, pooled
from probes.detector.evidence import Combination, fit_combination, token_evidence
from probes.detector.questions import label_questions, tokenize_question
from probes.detector.rates import at_rates
from probes.detector.train import _taking_turns, premises_beside

QUESTION = "Why is Paris the capital of Germany?"


def test_evidence_by_hand():
    probes = np.array([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])
    # Log-probability of the token, highest log-probability, entropy; the last surprise is capped.
    predictions = np.array([[-4.0, -1.0, 0.5], [-2.0, -2.0, 0.1], [-30.0, -1.0, 0.2]])
    found = token_evidence(probes, predictions, [2, 1])
    assert {name: values.tolist() for name, values in found.items()} == {
        "falsity": [1, 2, 3],
        "mention": [-1, -2, -3],
        "surprise": [3, 0, 10],
        "recent_surprise": [3, 3, 10],  # a question does not look back into the one before
        "entropy": [0.5, 0.1, 0.2],
    }
    assert set(token_evidence(probes, None, [3])) == {"falsity", "mention"}


def test_a_recent_surprise_is_three_tokens_back():
    surprises = np.array([5.0, 0, 0, 0, 0])
    predictions = np.stack([-surprises, np.zeros(5), np.zeros(5)], axis=1)
    found = token_evidence(np.zeros((5, 2)), predictions, [5])
    assert found["recent_surprise"].tolist() == [5, 5, 5, 5, 0]


def test_a_combination_by_hand():
    combined = Combination(("falsity", "surprise"), (2.0, 0.5), -1.0)
    evidence = {"falsity": np.array([1.0, 0.0]), "surprise": np.array([4.0, 2.0])}
    assert combined(evidence).tolist() == [2 + 2 - 1, 0 + 1 - 1]
    assert combined.uses_predictions
    assert not Combination(("falsity",), (1.0,), 0.0).uses_predictions
    assert Combination.from_dict(json.loads(json.dumps(combined.to_dict()))) == combined
    for names, weights, fault in (
        (("guess",), (1.0,), "guess"),
        (("falsity",), (1.0, 2.0), "one weight for each"),
        (("falsity",), (math.nan,), "not finite"),
    ):
        with pytest.raises(UserError, match=fault):
            Combination(names, weights, 0.0)


def test_what_tells_nothing_gets_little_weight():
    generator = np.random.default_rng(0)
    labels = generator.random(2000) < 0.5
    evidence = {
        "falsity": labels + generator.normal(size=2000),
        "entropy": generator.normal(size=2000),
    }
    found = fit_combination(evidence, labels, np.ones(2000))
    telling, silent = found.weights
    assert 0.7 < telling < 1.3  # the log-odds of two normals one apart have slope one
    assert abs(silent) < 0.15
    shuffled = fit_combination(evidence, generator.permutation(labels), np.ones(2000))
    assert max(map(abs, shuffled.weights)) < 0.15
    with pytest.raises(UserError, match="one class only"):
        fit_combination(evidence, np.ones(2000, dtype=bool), np.ones(2000))


def test_a_discriminant_by_hand():
    # Means (±1, 0); within each class both axes vary by 1 and independently.
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    shift = torch.tensor([1.0, 0.0])
    high, low = (Moments.of(corners + sign * shift, torch.ones(4)) for sign in (1, -1))
    weight, bias = fit_discriminant(high, low, shrinkage=0.0)
    torch.testing.assert_close(weight, torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert bias == pytest.approx(0.0)
    torch.testing.assert_close(fit_discriminant(high, low, shrinkage=1.0)[0], weight / 2)


def test_moments_add_up():
    values = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    parts = Moments.of(values[:4], torch.ones(4)) + Moments.of(values[4:], torch.ones(5))
    whole = Moments.of(values, torch.ones(9))
    torch.testing.assert_close(parts.second, whole.second)
    twice = Moments.of(values[:2], torch.tensor([2.0, 1.0]))
    repeated = Moments.of(values[[0, 0, 1]], torch.ones(3))
    torch.testing.assert_close(twice.second, repeated.second)
    # Pooled parts weigh the same, however many vectors they have.
    mean = pooled([Moments.of(values[:1], torch.ones(1)), Moments.of(values[1:], torch.ones(8))])
    torch.testing.assert_close(mean.first.float(), (values[0] + values[1:].mean(dim=0)) / 2)


def test_what_never_varies_gets_no_weight():
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    values[:, 2] = 0.0
    parts = (Moments.of(values[half::2], torch.ones(10)) for half in (0, 1))
    assert fit_discriminant(*parts)[0][2] == 0


def test_folds_leave_relations_out(tiny_llama):
    names = ("capitals", "languages", "landmarks", "products", "headquarters")
    questions = []
    for name in names:
        premises = load_premises(name, limit=6)
        found = label_questions(tiny_llama.tokenizer, premises, balanced_questions(premises))
        questions += [replace(one, counts=name != "headquarters") for one in found]
    folds = Folds.suited_to(questions)
    assert (folds.by_relation, folds.n_folds) == (True, 4)
    assert not Folds.suited_to(
        [one for one in questions if one.question.relation < "l"]
    ).by_relation
    relations = np.array([one.question.relation for one in questions])
    seen = np.zeros(len(questions), dtype=int)
    for fitted, scored in folds.pairs(questions):
        seen += scored
        assert not set(relations[fitted]) & set(relations[scored])
        assert fitted[relations == "headquarters"].all()
    assert seen.tolist() == [int(one.counts) for one in questions]


def test_what_stands_beside_does_not_tell_the_answers():
    capitals = load_premises("capitals", limit=20)
    beside = premises_beside([capitals], facts=30)
    subjects = {fact.subject for fact in capitals.relation.facts}
    assert beside
    for other in beside:
        assert other.relation.name != "capitals"
        assert not subjects & set(other.subjects)


def test_facts_take_turns_at_the_templates():
    premises = load_premises("capitals", limit=8)
    kept = _taking_turns(premises, premises.questions(), 1)
    assert [one.subject for one in kept] == list(premises.subjects)
    assert [one.template for one in kept] == list(premises.templates) * 2
    assert len(_taking_turns(premises, premises.questions(), 9)) == len(premises)


@pytest.fixture(scope="module")
def combined_detector(tiny_llama) -> PremiseDetector:
    generator = torch.Generator().manual_seed(0)
    return PremiseDetector(
        weight=torch.randn(4, tiny_llama.cfg.d_model, generator=generator),
        bias=(0.5, -0.5),
        layer=2,
        layers=(0, 2),
        combination=Combination(("falsity", "recent_surprise", "entropy"), (0.3, 0.7, -0.2), 0.1),
        calibration=Calibration("platt"),
        threshold=0.0,
        fingerprint=interp.models.fingerprint(tiny_llama),
    )


def test_scores_are_what_the_combination_says(combined_detector, tiny_llama):
    """The reference computes each number on its own."""
    asked = tokenize_question(tiny_llama.tokenizer, QUESTION)
    (found,) = combined_detector.token_scores(tiny_llama, [asked], progress=False)
    (chunk,) = read_activations(
        tiny_llama, [asked.to_read], layers=[0, 2], predictions=True, progress=False
    )
    values, weight = chunk.values["resid_post"].double(), combined_detector.weight.double()
    falsity = (values[:, 0] @ weight[0] + values[:, 1] @ weight[1]) / 2 + 0.5
    mention = (values[:, 0] @ weight[2] + values[:, 1] @ weight[3]) / 2 - 0.5
    assert chunk.predictions is not None
    surprise = (chunk.predictions[:, 1] - chunk.predictions[:, 0]).clamp(max=10)
    recent = torch.stack([surprise[max(0, at - 3) : at + 1].max() for at in range(len(surprise))])
    expected = 0.3 * falsity + 0.7 * recent - 0.2 * chunk.predictions[:, 2] + 0.1
    torch.testing.assert_close(torch.from_numpy(found.falsity), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.from_numpy(found.mention), mention)


def test_a_combined_detector_is_read_back(combined_detector, tiny_llama, tmp_path):
    folder = combined_detector.save(tmp_path)
    assert json.loads((folder / "detector.json").read_text())["format"] == 2
    again = PremiseDetector.load(folder, model=tiny_llama)
    assert (again.layers, again.combination) == ((0, 2), combined_detector.combination)
    expected = combined_detector.detect(tiny_llama, [QUESTION], progress=False)
    assert again.detect(tiny_llama, [QUESTION], progress=False) == expected
    settings = json.loads((folder / "detector.json").read_text())
    for change in ({"layers": [0, 1, 2]}, {"combination": {}}, {"format": 3}):
        (folder / "detector.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(UserError, match="is damaged"):
            PremiseDetector.load(folder)
    for change in ({"layers": (2, 0)}, {"layers": (0, 1)}, {"combination": None}):
        with pytest.raises(UserError, match="layers"):
            replace(combined_detector, **change)


def test_rates_by_hand():
    table = at_rates(0.5, 0.01, rates=(0.0, 0.1), gain=0.8, loss=0.5)
    # Of 100 false premises 50 are caught; of 900 other questions 9 are alarms.
    never, tenth = table.table.to_dict("records")
    assert (never["caught"], never["alarms"], never["precision"]) == (0, 10, 0)
    assert tenth["precision"] == pytest.approx(50 / 59)
    assert (tenth["gained"], tenth["lost"]) == pytest.approx((40, 4.5))
    assert tenth["change"] == pytest.approx(35.5)
    assert math.isnan(at_rates(0.0, 0.0).table.precision[0])
    (bars,) = table.plot().to_dict()["data"]
    assert list(bars["y"]) == pytest.approx([-5.0, 35.5])
    with pytest.raises(UserError, match="recall lies between 0 and 1"):
        at_rates(1.5, 0.0)
