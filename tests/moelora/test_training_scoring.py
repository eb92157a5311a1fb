"""Scoring: what counts as right, greedy answers with padding, accuracy with intervals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from interp.errors import UserError
from interp.forward.generate import greedy_answers
from interp.moelora.data.encoding import encode_example, encode_prompt
from interp.moelora.data.examples import Example
from interp.moelora.data.numbers import numbers_in
from interp.moelora.training.scoring import (
    MEAN,
    ScoredAnswer,
    accuracies,
    answer_losses,
    asserts,
    extract_number,
    extract_option,
    is_right,
    mean_by_task,
    score,
)

LETTERS = ("A", "B", "C", "D")


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("12 + 5 = 17. 17 - 3 = 14. The answer is 14.", 14),
        ("The answer is 14. That is 2 more than 12.", 14),
        ("He has 5.\n#### 1,250", 1250),
        ("12 + 5 = 17", 17),
        ("It is -3 degrees", -3),
        ("20-5=15", 15),
        ("She pays $7.50", 7.5),
        ("The answer is unknown, perhaps 8", 8),
        ("The answer is not 5 but 7.", 7),
        ("It is 7, not 5.", 7),
        ("There are 12 rather than 1,300 of them", 12),
        ("It isn't 5", None),
        ("The answer is 5 - 8 = - 3", -3),
        ("The answer is negative 3.", -3),
        ("a knot 5 m long", 5),
        ("no idea", None),
        ("", None),
    ],
)
def test_numbers(said: str, number: float | None) -> None:
    assert extract_number(said) == number


@pytest.mark.parametrize(
    ("said", "options", "option"),
    [
        ("B) Rome", LETTERS, "B"),
        ("B", LETTERS, "B"),
        ("(C) is right", LETTERS, "C"),
        ("The answer is D.", LETTERS, "D"),
        ("It must be option A", LETTERS, "A"),
        ("Bern is a city", LETTERS, None),
        ("I think that a cat", LETTERS, None),
        ("the correct answer is answer2", ("answer1", "answer2"), "answer2"),
        ("answer20", ("answer1", "answer2"), None),
        ("False, not true", ("true", "false"), "false"),
        ("Yes.", ("yes", "no"), "yes"),
        ("I do not know", ("yes", "no"), None),
    ],
)
def test_options(said: str, options: tuple[str, ...], option: str | None) -> None:
    assert extract_option(said, options) == option


@pytest.mark.parametrize(
    ("said", "name", "asserted"),
    [
        ("Paris is not the capital of Germany; it is the capital of France.", "Germany", False),
        ("Paris is not the capital of Germany; it is the capital of France.", "France", True),
        ("Paris is the capital of Germany.", "Germany", True),
        ("It isn't in Germany but in France", "Germany", False),
        ("It isn't in Germany but in France", "France", True),
        ("It is France, not Germany", "France", True),
        ("It is France, not Germany", "Germany", False),
        ("He never saw Rome. Rome is in Italy.", "Rome", True),
        ("germany", "Germany", True),
        ("Germanys", "Germany", False),
        ("Norway is cold", "no", False),
        ("It belongs to the U.S. now", "U.S.", True),
        ("not in the U.S. at all", "U.S.", False),
        ("\0\x01", "France", False),
    ],
)
def test_assertion(said: str, name: str, asserted: bool) -> None:
    assert asserts(said, name) is asserted


def test_correction_is_right_and_going_along_is_wrong() -> None:
    question = Example(
        "false_premise",
        "Why is Paris the capital of Germany?",
        "France",
        also_true=("French Republic",),
        false_object="Germany",
    )
    assert is_right(question, "Paris is not the capital of Germany; it is the capital of France.")
    assert is_right(question, "It is the capital of the French Republic.")
    assert not is_right(question, "Paris became the capital of Germany in 1871.")
    assert not is_right(question, "Paris, once of France, is the capital of Germany.")
    assert not is_right(question, "That is not so.")


def test_numbers_are_right_within_rounding() -> None:
    question = Example("sums", "1/3?", "0.33333")
    assert is_right(question, "0.333333")
    assert not is_right(question, "0.34")
    assert is_right(Example("sums", "?", "1,200"), "1200.0")


@pytest.fixture(scope="module")
def model(hf_factory: Callable[..., Any], chat_tokenizer: Any) -> Any:
    return hf_factory("llama", chat_tokenizer)


PROMPTS = ["Why is Paris the capital of Germany?", "Rome?", "Which country is Tokyo in? Say."]


def test_batched_answers_are_those_of_each_prompt_alone(model: Any, chat_tokenizer: Any) -> None:
    prompts = [encode_prompt(chat_tokenizer, prompt) for prompt in PROMPTS]
    settings: dict[str, Any] = {"max_new_tokens": 8, "progress": False}
    together = greedy_answers(model, chat_tokenizer, prompts, **settings)
    alone = [greedy_answers(model, chat_tokenizer, [one], **settings)[0] for one in prompts]
    assert together == alone
    assert len(set(together)) > 1
    small = greedy_answers(model, chat_tokenizer, prompts, batch_prompts=2, **settings)
    assert small == together


def test_answers_are_greedy_without_a_cache(model: Any, chat_tokenizer: Any) -> None:
    """The slow way: the whole prompt again for every token."""
    ids = list(encode_prompt(chat_tokenizer, PROMPTS[0]))
    n_prompt = len(ids)
    with torch.no_grad():
        for _ in range(6):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == chat_tokenizer.eos_token_id:
                break
            ids.append(token)
    said = greedy_answers(
        model, chat_tokenizer, [ids[:n_prompt]], max_new_tokens=6, progress=False
    )[0]
    assert said == chat_tokenizer.decode(ids[n_prompt:], skip_special_tokens=True).strip()


def test_the_model_stays_in_its_mode(model: Any, chat_tokenizer: Any) -> None:
    model.train()
    examples = [Example("t", prompt, "x") for prompt in PROMPTS]
    score(model, chat_tokenizer, examples, max_new_tokens=2, progress=False)
    assert model.training
    model.eval()


def test_scores_keep_the_order_of_the_examples(model: Any, chat_tokenizer: Any) -> None:
    examples = [Example("t", prompt, "x") for prompt in PROMPTS]
    answers = score(model, chat_tokenizer, examples, max_new_tokens=4, progress=False)
    assert [one.prompt for one in answers] == PROMPTS
    told = Example("t", PROMPTS[1], answers[1].prediction or "x", kind="name")
    again = score(model, chat_tokenizer, [told], max_new_tokens=4, progress=False)
    assert again[0].right is bool(answers[1].prediction)


def test_answer_loss_of_each_example_alone(model: Any, chat_tokenizer: Any) -> None:
    examples = [
        encode_example(chat_tokenizer, Example("t", prompt, answer))
        for prompt, answer in zip(PROMPTS, ("France", "Italy it is", "Japan"), strict=True)
    ]
    expected = []
    for one in examples:
        with torch.no_grad():
            logits = model(torch.tensor([one.tokens])).logits[0]
        targets = torch.tensor(one.tokens[one.n_prompt :])
        expected.append(float(F.cross_entropy(logits[one.n_prompt - 1 : -1], targets)))
    assert answer_losses(model, examples, batch=2) == pytest.approx(expected, abs=1e-5)


def answer(task: str, subject: str, right: bool) -> ScoredAnswer:
    return ScoredAnswer(task, subject, f"{subject}?", "x", "x", right)


def test_accuracy_by_hand() -> None:
    answers = [answer("a", f"s{i}", i < 3) for i in range(4)]
    answers += [answer("b", f"t{i}", False) for i in range(8)]
    a, b, mean = accuracies(answers)
    assert (a.task, a.n, a.value) == ("a", 4, 0.75)
    assert a.ci_low < 0.75 <= a.ci_high
    assert (b.value, b.ci_low, b.ci_high) == (0, 0, 0)
    # Each task weighs the same, not each question.
    assert (mean.task, mean.n, mean.value) == (MEAN, 12, pytest.approx(0.375))


def test_one_task_has_no_mean() -> None:
    assert [one.task for one in accuracies([answer("a", "s", True)])] == ["a"]


def test_repeated_questions_of_a_subject_do_not_narrow_the_interval() -> None:
    values = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    subjects = [f"s{i}" for i in range(6)]
    once = mean_by_task(values, ["a"] * 6, subjects)[0]
    often = mean_by_task(values * 5, ["a"] * 30, subjects * 5)[0]
    assert often.value == once.value
    assert often.ci_high - often.ci_low == pytest.approx(once.ci_high - once.ci_low, abs=0.05)


def test_the_old_name_of_a_prediction_warns_and_its_column_stays() -> None:
    scored = answer("t", "Paris", True)
    with pytest.warns(DeprecationWarning, match=r"\.said is now \.prediction"):
        assert scored.said == scored.prediction
    assert list(scored.to_row()) == ["task", "subject", "prompt", "answer", "said", "right"]


def test_white_space_around_an_answer_does_not_count() -> None:
    example = Example(task="t", prompt="The capital of France?", answer=" Paris ", kind="name")
    assert example.answer == "Paris"
    assert is_right(example, "The capital is Paris.")
    option = Example(task="t", prompt="Which?", answer="B ", options=("A ", "B "))
    assert is_right(option, "The answer is B.")


@pytest.mark.parametrize("name", ["all", "mean"])
def test_the_names_of_all_tasks_are_reserved(name: str) -> None:
    with pytest.raises(UserError, match=f"cannot be called {name!r}"):
        Example(task=name, prompt="p", answer="a")


def test_a_right_name_may_hold_the_false_one() -> None:
    guinea = Example(
        task="t", prompt="p", answer="Equatorial Guinea", false_object="Guinea", kind="name"
    )
    assert is_right(guinea, "Malabo is the capital of Equatorial Guinea.")
    assert not is_right(guinea, "Malabo is the capital of Guinea, not of Equatorial Guinea.")


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert asserts("It is Sa\u0303o Paulo.", "S\xe3o Paulo")
    assert asserts("It is S\xe3o Paulo.", "Sa\u0303o Paulo")


@pytest.mark.parametrize(
    ("text", "number"),
    [("It is –3.", -3), ("It is ‑3.", -3), ("from 8–9", 9), ("a–3", 3), ("5 –3", 3)],
)
def test_other_dashes_are_a_minus_in_front_of_a_number(text: str, number: int) -> None:
    assert numbers_in(text)[-1] == number
