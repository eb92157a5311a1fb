"""The detector: from hand-made weights to detections, its file, whose it is, and its training."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import interp.models
import probes.detector.train
from interp.errors import UserError
from interp.premises import Premises, load_premises
from probes import (
    Calibration,
    PremiseDetector,
    detector_for,
    read_activations,
    score_detector,
    train_detector,
)
from probes.detector.dataset import Folds
from probes.detector.detect import detect
from probes.detector.detections import Detector
from probes.detector.fit import (
    covers,
)
from probes.detector.questions import tokenize_question
from probes.detector.train import candidate_layers, collect_material, labelled_questions

QUESTION = "Why is Paris the capital of Germany?"


def made_for(model: Any, question: str, word: str) -> PremiseDetector:
    """Weights that give +5 at the word's last token of this question and −5 at all others."""
    asked = tokenize_question(model.tokenizer, question)
    (chunk,) = read_activations(model, [asked.to_read], layers=[1], progress=False)
    values = chunk.values["resid_post"][:, 0].double()
    wanted = torch.full((len(values),), -5.0, dtype=torch.float64)
    index = question.index(word)
    last = asked.tokens_at((index, index + len(word)))[1] - 1 - asked.span[0]
    wanted[last] = 5.0
    padded = torch.cat([values, torch.ones(len(values), 1)], dim=1)
    solution = torch.linalg.lstsq(padded, wanted, driver="gelsd").solution
    weight = torch.stack([solution[:-1], solution[:-1]])
    return PremiseDetector(
        weight=weight.double(),
        bias=(float(solution[-1]), float(solution[-1])),
        layer=1,
        calibration=Calibration("platt"),
        threshold=0.9,
        fingerprint=interp.models.fingerprint(model),
    )


@pytest.fixture(scope="module")
def detector(tiny_llama) -> PremiseDetector:
    return made_for(tiny_llama, QUESTION, "Germany")


def test_it_fires_where_it_was_made_to(detector, tiny_llama):
    (found,) = detector.detect(tiny_llama, [QUESTION], progress=False)
    assert found.fired
    assert found.probability == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-3)
    assert found.char_span is not None
    assert QUESTION[slice(*found.char_span)] == "Germany"
    asked = tokenize_question(tiny_llama.tokenizer, QUESTION)
    assert found.token_span is not None
    tokens = asked.tokens[slice(*found.token_span)]
    assert tiny_llama.tokenizer.decode(tokens).strip() == "Germany"
    assert isinstance(detector, Detector)


def test_batches_and_neighbours_do_not_matter(detector, tiny_llama):
    questions = [QUESTION, "Who?", "Why is Rome the capital of Italy, and what is it famous for?"]
    together = detector.detect(tiny_llama, questions, progress=False)
    alone = [detector.detect(tiny_llama, [one], progress=False)[0] for one in questions]
    for one, other in zip(together, alone, strict=True):
        assert (one.fired, one.char_span, one.token_span) == (
            other.fired,
            other.char_span,
            other.token_span,
        )
        assert one.probability == pytest.approx(other.probability, abs=1e-3)
    assert detector.detect(tiny_llama, [], progress=False) == ()


def test_a_system_prompt_moves_the_tokens_only(detector, tiny_llama):
    asked = tokenize_question(tiny_llama.tokenizer, QUESTION, system="Be brief. Be very brief.")
    plain = tokenize_question(tiny_llama.tokenizer, QUESTION)
    assert asked.offsets == plain.offsets
    assert asked.span[0] != plain.span[0]
    (found,) = detector.detect(
        tiny_llama, [QUESTION], system="Be brief. Be very brief.", progress=False
    )
    assert 0 <= found.probability <= 1


def test_below_its_threshold_it_says_nothing(detector, tiny_llama):
    shy = replace(detector, threshold=0.999)
    (found,) = shy.detect(tiny_llama, [QUESTION], progress=False)
    assert not found.fired
    assert found.char_span is None
    assert found.token_span is None


def test_a_caller_may_say_from_which_probability_it_fires(detector, tiny_llama):
    shy = replace(detector, threshold=0.999)
    options = {"detector": shy, "progress": False}
    (found,) = detect(tiny_llama, [QUESTION], least=0.9, **options)
    assert found == detector.detect(tiny_llama, [QUESTION], progress=False)[0]
    assert not detect(tiny_llama, [QUESTION], **options)[0].fired


def test_marks_alone_cannot_be_false(detector, tiny_llama):
    eager = replace(detector, threshold=0.0)
    (found,) = eager.detect(tiny_llama, ["?!"], progress=False)
    assert not found.fired


def test_an_empty_question(detector, tiny_llama):
    with pytest.raises(UserError, match="the question is empty"):
        detector.detect(tiny_llama, [QUESTION, " "], progress=False)


def test_save_and_load(detector, tiny_llama, tiny_gpt2, tmp_path):
    folder = detector.save(tmp_path / "detector")
    assert sorted(path.name for path in folder.iterdir()) == [
        "detector.json",
        "detector.safetensors",
    ]
    again = PremiseDetector.load(folder, model=tiny_llama)
    assert torch.equal(again.weight, detector.weight)
    assert (again.bias, again.layer, again.threshold, again.calibration) == (
        detector.bias,
        detector.layer,
        detector.threshold,
        detector.calibration,
    )
    expected = detector.detect(tiny_llama, [QUESTION], progress=False)
    assert again.detect(tiny_llama, [QUESTION], progress=False) == expected
    for use in (
        lambda: PremiseDetector.load(folder, model=tiny_gpt2),
        lambda: detector.detect(tiny_gpt2, [QUESTION], progress=False),
    ):
        with pytest.raises(UserError, match=r"the detector was fitted on model .* fit one on this"):
            use()


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("detector.json", b"{", "not valid JSON"),
        ("detector.json", b"{}", "is damaged"),
        ("detector.safetensors", b"12", "is damaged"),
        ("detector.json", None, "has no detector.json"),
    ],
)
def test_damaged_files(detector, tmp_path, name, content, fault):
    folder = detector.save(tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=fault):
        PremiseDetector.load(folder)


def test_bad_settings(detector):
    for change, fault in (
        ({"layer": -1}, "counted from zero"),
        ({"threshold": 1.5}, "a threshold is a probability"),
        ({"bias": (0.0, float("nan"))}, "must be finite"),
    ):
        with pytest.raises(UserError, match=fault):
            replace(detector, **change)


def test_covering():
    assert covers((2, 9), (3, 9))
    assert not covers((4, 9), (3, 9))


def test_all_the_way_on_a_random_model(tiny_llama, tmp_path):
    """Nothing to find: it is trained, fires on next to nothing, and is scored."""
    premises = load_premises("capitals", limit=12)
    split = premises.split(seed=0)
    gathered = collect_material(
        tiny_llama, [split.search], tmp_path, known=False, layers=[0, 1], progress=False
    )
    assert gathered.of_relations(["capitals"]).sizes == gathered.sizes
    assert len(gathered.background) > len(split.search.facts)
    found = train_detector(
        tiny_llama,
        [split.search],
        known=False,
        layers=[0, 1],
        activations=tmp_path,
        calibration="isotonic",
        progress=False,
    )
    score = score_detector(tiny_llama, split.held_out, found, progress=False).to_dict()
    assert score["n"] == len(split.held_out)
    assert score["auc"][1] < 0.8
    json.dumps(score)


@pytest.mark.parametrize("n_beside", [2, 3])
def test_relations_beside_count_where_there_are_enough(
    tiny_llama, tmp_path, monkeypatch, n_beside
) -> None:
    """With four relations in all, what is chosen is chosen across them; with three, in one."""

    def known(_: Any, premises: Any, **__: Any) -> tuple[Premises, ...]:
        return tuple(premises)

    monkeypatch.setattr(probes.detector.train, "known_premises", known)
    split = load_premises("capitals", limit=12).split(seed=0)
    names = ("languages", "currencies", "landmarks")[:n_beside]
    material = collect_material(
        tiny_llama,
        [split.search],
        tmp_path,
        known=False,
        beside=[load_premises(name, limit=8) for name in names],
        layers=[0],
        n_questions=64,
        progress=False,
    )
    counted = {part.question.relation for part in material.questions if part.counts}
    assert counted == ({"capitals", *names} if n_beside == 3 else {"capitals"})
    assert Folds.suited_to(material.questions).by_relation == (n_beside == 3)
    kinds = {part.question.template for part in material.questions if not part.counts}
    assert "frame-two_entities" in kinds  # of any relation, nothing is chosen by these


def test_the_model_s_own_is_trained_once(tiny_llama, detector, tmp_path, monkeypatch):
    calls = []

    def train(model: Any, **options: Any) -> PremiseDetector:
        calls.append(model)
        return detector

    monkeypatch.setattr(probes.detector.train, "train_detector", train)
    first = detector_for(tiny_llama, cache_dir=tmp_path, progress=False)
    again = detector_for(tiny_llama, cache_dir=tmp_path, progress=False)
    assert len(calls) == 1
    assert isinstance(first, PremiseDetector)
    assert isinstance(again, PremiseDetector)
    assert torch.equal(first.weight, again.weight)
    (settings,) = tmp_path.glob("detectors/*/detector.json")
    settings.write_text("{}")
    detector_for(tiny_llama, cache_dir=tmp_path, progress=False)
    assert len(calls) == 2


def test_a_kept_detector_is_read_where_nothing_can_be_written(
    tiny_llama, detector, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(probes.detector.train, "train_detector", lambda *_, **__: detector)
    detector_for(tiny_llama, cache_dir=tmp_path, progress=False)

    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("filelock.FileLock.__init__", refuse)
    again = detector_for(tiny_llama, cache_dir=tmp_path, progress=False)
    assert isinstance(again, PremiseDetector)


def test_questions_come_from_a_generator_too(tiny_llama, detector) -> None:
    texts = ["Why is Paris the capital of Germany?", "When was Rome built?"]
    assert len(detect(tiny_llama, (text for text in texts), detector=detector)) == 2
    with pytest.raises(UserError, match="questions is a list of questions"):
        detect(tiny_llama, texts[0], detector=detector)


def test_too_few_known_facts(tiny_llama):
    with pytest.raises(UserError, match="knows fewer than 8 facts of every relation"):
        train_detector(tiny_llama, [load_premises("capitals", limit=5)], progress=False)


def test_candidates_lie_in_the_middle(smollm, tiny_gpt2):
    assert candidate_layers(smollm) == (12, 14, 16, 18)
    assert candidate_layers(tiny_gpt2) == (1,)


def test_every_question_has_both_premises(tiny_llama):
    premises = load_premises("languages", limit=10)
    labelled = labelled_questions(tiny_llama, [premises])
    counted = [one for one in labelled if one.counts]
    assert sum(one.label for one in counted) * 2 == len(counted)
    for one in labelled:
        name = one.question.false_object if one.label else one.question.true_object
        assert one.asked.text[slice(*one.object)] == name
        first, last = one.object_tokens
        begin, end = one.asked.offsets[first][0], one.asked.offsets[last - 1][1]
        assert one.asked.text[begin:end].strip() == name
        assert one.completion >= last - 1
        start, stop = one.subject_tokens
        begin, end = one.asked.offsets[start][0], one.asked.offsets[stop - 1][1]
        assert one.asked.text[begin:end].strip() == one.question.subject


@pytest.mark.parametrize("question", ["Paris is in Germany, why?", "  Why? Rome  "])
def test_words_at_the_edges_of_a_question(plain_tokenizer, question) -> None:
    """Without a template the first token holds the space in front of the question, too."""
    asked = tokenize_question(plain_tokenizer, question)
    first, last = asked.span
    found = [asked.text[slice(*asked.chars_at((at, at + 1)))] for at in range(first, last)]
    assert "".join(found) == "".join(asked.text.split())
    start, end = asked.chars_at(asked.span)
    assert asked.text[start:end] == asked.text.strip()
