"""Uncertainty scores: by hand, against a run of whole sequences, and what they do not know."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.inspection.uncertainty import (
    NameClusters,
    Uncertainty,
    cluster_entropy,
    scored_answers,
    uncertainty,
    word_clusters,
)
from interp.models import HookedModel
from interp.premises import Premises, load_premises

QUESTION = "Why is Paris the capital of Germany?"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([1, 1, 2, 2], math.log(2)), ([3, 3, 3], 0.0), ([0, 1, 1, 1], 0.5623351446188083)],
)
def test_entropy_by_hand(labels: list[int], expected: float) -> None:
    assert cluster_entropy(labels) == pytest.approx(expected)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_entropy_depends_on_the_shares_only(labels: list[int]) -> None:
    value = cluster_entropy(labels)
    assert 0 <= value <= math.log(len(set(labels))) + 1e-12
    assert value == pytest.approx(cluster_entropy([9 - label for label in reversed(labels)]))


def test_answers_that_share_their_words_are_one_cluster() -> None:
    answers = [
        "Paris is the capital of Germany because of a treaty",
        "Because of a treaty, Paris is the capital of Germany.",
        "Paris is the capital of France, not of Germany.",
        "PARIS IS THE CAPITAL OF FRANCE, NOT GERMANY",
        "Paris is the capital of Germany.",
    ]
    a, b, c, d, e = word_clusters(answers, QUESTION)
    assert a == b
    assert c == d
    assert len({a, c, e}) == 3
    # The words of the question count for nothing: these two share six of eight words.
    assert len(set(word_clusters([f"{answers[4]} Berlin", f"{answers[4]} Rome"], QUESTION))) == 2
    assert len(set(word_clusters([answers[4], "", "?"], QUESTION))) == 1
    assert word_clusters(["Rome"], QUESTION) == (1,)


@given(st.lists(st.text("ab c", max_size=6), max_size=8))
def test_every_answer_has_a_cluster_and_equal_answers_the_same(answers: list[str]) -> None:
    found = word_clusters(answers, "d")
    assert len(found) == len(answers)
    for answer, label in zip(answers, found, strict=True):
        assert label == found[answers.index(answer)]


def test_clusters_by_the_names_in_an_answer() -> None:
    clusters = NameClusters(("France", "Germany"))
    answers = ["It is in France.", "France!", "Germany, not France", "I do not know", "Frances"]
    assert clusters(answers, QUESTION) == (0, 0, 1, 2, 2)


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_the_surprisal_is_that_of_a_run_over_the_answer(
    family: str, temperature: float | None, request: pytest.FixtureRequest
) -> None:
    """Whatever the temperature of sampling, −log p is that of the model itself."""
    model = request.getfixturevalue(family)
    prompts = [model.tokenizer(text)["input_ids"] for text in ("Why is Paris", "Rome?")]
    kept: list[torch.Tensor] = []
    generate = model.original_model.generate

    def keeping(*args: Any, **kwargs: Any) -> torch.Tensor:
        kept.append(generate(*args, **kwargs))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.original_model, "generate", keeping)
        texts, surprisal = scored_answers(
            model,
            prompts,
            temperature=temperature,
            max_new_tokens=6,
            batch_prompts=1,
            progress=False,
        )
    # Shorter prompts are answered first.
    for index, ids in zip(sorted(range(2), key=lambda one: len(prompts[one])), kept, strict=True):
        with torch.no_grad():
            odds = model.original_model(ids).logits[0].double().log_softmax(-1)
        length = len(prompts[index])
        chosen = [-float(odds[at - 1, ids[0, at]]) for at in range(length, ids.shape[1])]
        assert surprisal[index] == pytest.approx(np.mean(chosen), abs=1e-4)
        answer = model.tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()
        assert texts[index] == answer


def test_tokens_after_the_end_do_not_count(tiny_llama: HookedModel) -> None:
    """The end token itself counts; what a batch pads with after it does not."""
    from interp.inspection.uncertainty import _ChosenSurprisal

    chosen = _ChosenSurprisal(width=1, end_tokens=[0])
    odds = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]).log()
    chosen(torch.tensor([[7], [7]]), odds)
    chosen(torch.tensor([[7, 0], [7, 1]]), odds)
    chosen(torch.tensor([[7, 0, 0], [7, 1, 2]]), odds)
    chosen.account(torch.tensor([[7, 0, 0, 0], [7, 1, 2, 0]]))
    expected = [math.log(2), 2 * math.log(4) + math.log(2)]
    np.testing.assert_allclose(chosen.total.numpy(), expected, rtol=1e-6)
    assert chosen.count.tolist() == [1, 3]


def test_samples_depend_on_the_seed_alone(tiny_llama: HookedModel) -> None:
    premises = load_premises("capitals", limit=2).with_templates(["why"])
    options: dict[str, Any] = {"n_samples": 3, "max_new_tokens": 4, "progress": False}
    before = torch.random.get_rng_state()
    first, again, other = (
        uncertainty(tiny_llama, premises, seed=seed, **options) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.samples == again.samples != other.samples
    assert first.answers == other.answers
    assert [len(of_question) for of_question in first.samples] == [3, 3]
    # A random model says something else each time.
    assert first.cluster_entropy.tolist() == pytest.approx([math.log(3)] * 2)
    assert (first.sampled_surprisal > first.surprisal).all()
    table = first.to_dataframe()
    assert table["subject"].tolist() == list(premises.subjects)


def test_a_sure_model_is_sure_of_false_premises(
    planted: HookedModel, planted_premises: Premises
) -> None:
    """The planted model says the false object with certainty: no score can see that it is wrong."""
    some = planted_premises.first(4).with_templates(["famous"])
    options: dict[str, Any] = {"n_samples": 4, "max_new_tokens": 1, "progress": False}
    false, twin = (uncertainty(planted, some, kind=kind, **options) for kind in ("false", "twin"))
    assert (false.surprisal < 0.05).all()
    assert (twin.surprisal < 0.05).all()
    assert false.cluster_entropy.mean() < 0.2


def by_hand(surprisal: list[float]) -> Uncertainty:
    n = len(surprisal)
    same = np.ones(n)
    return Uncertainty(
        np.array(surprisal),
        same,
        np.arange(n, dtype=float),
        ("",) * n,
        (("",),) * n,
        tuple("abcd"[:n]),
        ("why",) * n,
    )


def test_auc_by_hand() -> None:
    scores = by_hand([3.0, 1.0, 2.0, 0.0])
    hallucinated = [True, False, True, False]
    auc = scores.auc(hallucinated).set_index("score")["auc"]
    assert auc["surprisal"] == 1.0  # the two hallucinated answers have the largest
    assert auc["sampled_surprisal"] == 0.5  # all the same: says nothing
    assert auc["cluster_entropy"] == 0.25  # 0 and 2 against 1 and 3: one pair of four in order
    figure = scores.plot(hallucinated).to_plotly_json()
    boxes = figure["data"]
    assert [list(box["y"]) for box in boxes[:2]] == [[1.0, 0.0], [3.0, 2.0]]
    assert figure["layout"]["annotations"][1]["text"].startswith("AUC 0.50")


def test_bad_input(tiny_llama: HookedModel) -> None:
    premises = load_premises("capitals", limit=2)
    with pytest.raises(UserError, match="at least 2 sampled answers, not 1"):
        uncertainty(tiny_llama, premises, n_samples=1, progress=False)
    with pytest.raises(UserError, match="temperature must be above zero, not 0"):
        scored_answers(tiny_llama, [[1]], temperature=0.0, progress=False)
    with pytest.raises(UserError, match="no answers"):
        cluster_entropy([])
    with pytest.raises(UserError, match="similarity must be above 0"):
        word_clusters(["a", "b"], "c", similarity=0.0)
    with pytest.raises(UserError, match="only label 1 occurs"):
        by_hand([1.0, 2.0]).auc([True, True])
    with pytest.raises(UserError, match="differ in number"):
        Uncertainty(np.zeros(2), np.zeros(2), np.zeros(2), ("",) * 2, ((),) * 2, ("a",) * 2, ("",))
