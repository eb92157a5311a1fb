"""What counts as a rebuttal, by hand, and what does not."""

from typing import Any

import pytest
import torch

import interp.evaluation.judges as judges
from interp.errors import UserError
from interp.evaluation import ModelJudge, Verdict, judge_by_words
from interp.evaluation.judges import judged
from interp.models import HookedModel
from interp.premises import RawQuestion

PARIS = RawQuestion(
    "Why is Paris the capital of Germany?",
    ("Berlin",),
    "false_premise",
    subject="Paris",
    true_object="France",
    false_object="Germany",
)
PLAIN = RawQuestion("When did Edison invent the telephone?", label="false_premise")

REBUTTALS = [
    (PARIS, "Paris is not the capital of Germany. Berlin is."),
    (PARIS, "Paris isn’t the capital of Germany."),
    (PARIS, "Actually, Paris is the capital of France."),
    (PARIS, "Paris is the capital of France, not Germany."),
    (PARIS, "That is incorrect: Berlin is the German capital."),
    (PARIS, "There is no reason, since Berlin is the capital."),
    (PARIS, "Germany has never had Paris as its capital."),
    (PARIS, "No, it is the capital of France."),
    (PARIS, "This is a common misconception."),
    (PARIS, "Good question! The city of Paris was never German."),
    (PARIS, "PARIS IS NOT THE CAPITAL OF GERMANY."),
    (PLAIN, "Edison did not invent the telephone; Bell did."),
    (PLAIN, "He didn't. It was Bell."),
    (PLAIN, "The premise of the question is false."),
    (PLAIN, "It was actually Alexander Graham Bell."),
]
NO_REBUTTALS = [
    (PARIS, "Paris is the capital of Germany because it is the largest city."),
    (PARIS, "Paris, the capital of Germany, is actually a beautiful city."),
    (PARIS, "I'm not sure why Paris is the capital of Germany."),
    (PARIS, "Paris is not only the capital of Germany but its largest city."),
    (PARIS, "Paris is known for its notable art. It is nothing less than a knot of roads."),
    (
        PARIS,
        "The reasons are many, and historians who studied the long and winding history of "
        "the region did not agree.",
    ),
    (PARIS, "Northern Germany chose Paris."),
    (PARIS, "I don't know about Paris."),
    (PARIS, "Nobody knows."),
    (PARIS, ""),
    (PLAIN, "Edison invented the telephone in 1876. Many did not believe it at first."),
    (PLAIN, "In 1876, after years of work."),
    (PLAIN, "I do not have information about that."),
    (PLAIN, "Nonetheless, November 1876."),
]


@pytest.mark.parametrize(("question", "answer"), REBUTTALS)
def test_a_rebuttal(question: RawQuestion, answer: str) -> None:
    assert judge_by_words(question, answer).rebuts


@pytest.mark.parametrize(("question", "answer"), NO_REBUTTALS)
def test_negative_controls(question: RawQuestion, answer: str) -> None:
    assert not judge_by_words(question, answer).rebuts


def test_a_negation_far_from_every_name_does_not_count() -> None:
    filler = " word" * judges.NEAR
    assert judge_by_words(PARIS, f"Paris{filler[5:]} is not it.").rebuts
    assert not judge_by_words(PARIS, f"Paris{filler} is not it.").rebuts


def test_what_an_answer_names_is_read_off_it() -> None:
    found = judge_by_words(PARIS, "It is France, with berliners.")
    assert found == Verdict(False, names_answer=True, names_false_object=False)
    assert judge_by_words(PLAIN, "Bell.") == Verdict(False, None, None)


def test_a_judge_of_ones_own() -> None:
    def shouts(question: RawQuestion, answer: str) -> Verdict:
        return Verdict.of(question, answer, rebuts=answer.isupper())

    verdicts = list(judged(shouts, (PARIS, PARIS), ("NO GERMANY", "germany")))
    assert [verdict.rebuts for verdict in verdicts] == [True, False]
    assert all(verdict.names_false_object for verdict in verdicts)
    wrong: Any = lambda question, answer: True  # noqa: E731
    with pytest.raises(UserError, match=r"returns an interp\.evaluation\.Verdict, not bool"):
        list(judged(wrong, (PARIS,), ("",)))


def test_a_model_judge_compares_yes_with_no(
    tiny_llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With logits that are made up: log-sum-exp of both spellings."""
    judge = ModelJudge(tiny_llama)
    prompt, yes, no = judge._tokens("Is it? {answer}")
    text = tiny_llama.tokenizer.decode(prompt)
    assert text.endswith("assistant\n")
    assert "Is it? {answer}" in text
    assert len(yes) == len(no) == 2

    def given(values: dict[int, float]) -> None:
        logits = torch.full((1, 1, tiny_llama.cfg.d_vocab), -100.0)
        for token, value in values.items():
            logits[0, 0, token] = value
        monkeypatch.setattr(judges, "last_logits", lambda model, batch: logits)

    given({yes[0]: 1.0, yes[1]: 1.0, no[0]: 1.5})
    assert judge.log_odds(PARIS, "x") == pytest.approx(1.0 + torch.tensor(2.0).log().item() - 1.5)
    assert judge(PARIS, "Germany").rebuts
    given({yes[0]: 1.0, no[0]: 1.5})
    verdict = judge(PARIS, "Germany")
    assert not verdict.rebuts
    assert verdict.names_false_object


def test_a_model_judge_agrees_with_the_whole_distribution(tiny_llama: HookedModel) -> None:
    """Slow reference: probabilities of the hooked model's own forward pass."""
    judge, answer = ModelJudge(tiny_llama), "braces {question} {0} stay"
    asked = judge.ASKED.format(question=PARIS.text, answer=answer)
    prompt, yes, no = judge._tokens(asked)
    device = next(tiny_llama.parameters()).device
    logits: Any = tiny_llama(torch.tensor([prompt], device=device))
    p = logits[0, -1].double().softmax(-1)
    expected = float(p[yes].sum().log() - p[no].sum().log())
    assert judge.log_odds(PARIS, answer) == pytest.approx(expected, abs=1e-4)
