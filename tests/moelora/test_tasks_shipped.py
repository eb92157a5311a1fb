"""The task sets that ship: right answers, splits that share nothing, and a generator that fits."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from interp.moelora.data.examples import Example
from interp.moelora.data.sources import list_tasks, load_split
from interp.moelora.training.scoring import is_right
from interp.premises import Fact, load_premises
from interp.premises.registry import data_dir
from interp.premises.relation import names
from interp.whole_words import mentions

SETS = ("arithmetic", "facts", "false_premise")
FACT_SETS = ("facts", "false_premise")
OPERATIONS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x // y,
}


def rows_of(name: str, split: str) -> list[dict[str, Any]]:
    path = data_dir() / "tasks" / name / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def every_row(name: str) -> list[dict[str, Any]]:
    return rows_of(name, "train") + rows_of(name, "test")


def every_example(name: str) -> tuple[Example, ...]:
    split = load_split(name)
    return split.train + split.test


def choices(row: dict[str, Any]) -> dict[str, str]:
    """The options of a question with letters."""
    return dict(re.findall(r"^([A-D])\) (.+)$", row["prompt"], flags=re.MULTILINE))


def entities(rows: list[dict[str, Any]]) -> set[str]:
    """Subjects, objects, false objects and options of fact questions."""
    found = set()
    for row in rows:
        found |= {row["subject"], row.get("false_object", ""), *choices(row).values()}
        if row["task"] not in ("facts_choice", "facts_yes_no"):
            found.add(row["answer"])
    return found - {""}


@pytest.fixture(scope="module")
def facts() -> dict[tuple[str, str], Fact]:
    """Every fact of the relations, by relation and subject."""
    relations = {row["relation"] for name in FACT_SETS for row in every_row(name)}
    return {(name, fact.subject): fact for name in relations for fact in load_premises(name).facts}


def test_the_shipped_sets_are_listed() -> None:
    assert list_tasks() == SETS


def test_generator_gives_the_shipped_files(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "build_tasks.py"
    spec = importlib.util.spec_from_file_location("build_tasks", script)
    assert spec
    assert spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    build.main(out=tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.glob("*/*.jsonl")}
    assert len(made) == 2 * len(SETS)
    for name, content in made.items():
        assert content == (data_dir() / "tasks" / name).read_bytes()


def test_the_sets_are_small_and_large_enough() -> None:
    files = list((data_dir() / "tasks").glob("*/*.jsonl"))
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for name in SETS:
        assert 800 <= len(rows_of(name, "train")) <= 2000
        assert 200 <= len(rows_of(name, "test")) <= 500


@pytest.mark.parametrize("name", SETS)
def test_no_question_is_asked_twice(name: str) -> None:
    prompts = [row["prompt"] for row in every_row(name)]
    assert len(prompts) == len(set(prompts))


def test_worked_steps_are_right_and_lead_to_the_answer() -> None:
    n_steps = set()
    for row in every_row("arithmetic"):
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", row["response"])
        assert steps
        for left, operator, right, result in steps:
            assert OPERATIONS[operator](int(left), int(right)) == int(result)
            assert operator != "/" or int(left) % int(right) == 0
        assert row["answer"] == steps[-1][3]
        assert row["response"].endswith(f"The answer is {row['answer']}.")
        n_steps.add(len(steps))
    assert n_steps == {1, 2, 3}


def test_every_number_of_a_problem_is_used() -> None:
    for row in every_row("arithmetic"):
        used = re.findall(r"\d+", row["response"])
        assert all(number in used for number in re.findall(r"\d+", row["prompt"]))


def test_word_problems_share_no_person_and_no_thing() -> None:
    words = {
        split: {word for row in rows_of("arithmetic", split) for word in row["subject"].split(", ")}
        for split in ("train", "test")
    }
    assert not words["train"] & words["test"]
    train_text = " ".join(row["prompt"] for row in rows_of("arithmetic", "train"))
    assert not [word for word in words["test"] if names(train_text, word)]
    assert all(
        names(row["prompt"], word)
        for row in rows_of("arithmetic", "test")
        for word in row["subject"].split(", ")
    )


@pytest.mark.parametrize("name", FACT_SETS)
@pytest.mark.parametrize("other", FACT_SETS)
def test_no_entity_of_the_test_is_named_in_training(name: str, other: str) -> None:
    """Within a set and across the two, so that they can be mixed."""
    text = "\n".join(f"{row['prompt']}\n{row['response']}" for row in rows_of(name, "train"))
    tested = entities(rows_of(other, "test"))
    assert len(tested) > 100
    # As written: San José of Costa Rica is another town than San Jose in California.
    found = [word for word in tested if mentions(text, word.removeprefix("the "), exact=True)]
    assert not found


def test_fact_questions_agree_with_the_tables(facts: dict[tuple[str, str], Fact]) -> None:
    kinds = set()
    for row in every_row("facts"):
        fact = facts[row["relation"], row["subject"]]
        kinds.add(row["task"])
        if row["task"] == "facts_open":
            assert row["answer"] == fact.object
            assert row.get("also_true", []) == list(fact.also_true)
        elif row["task"] == "facts_choice":
            right = [letter for letter, name in choices(row).items() if name in fact.true_names]
            assert right == [row["answer"]]
        else:
            rest = re.sub(rf"\b{re.escape(row['subject'])}\b", "", row["prompt"])
            true = names(rest, fact.object)
            assert row["answer"] == ("yes" if true else "no")
    assert kinds == {"facts_open", "facts_choice", "facts_yes_no"}


def test_premises_agree_with_the_tables(facts: dict[tuple[str, str], Fact]) -> None:
    for row in every_row("false_premise"):
        fact = facts[row["relation"], row["subject"]]
        assert row["answer"] == fact.object
        presupposed = row.get("false_object") or fact.object
        assert names(row["prompt"], presupposed)
        assert names(row["prompt"], row["subject"])
        assert presupposed not in fact.true_names or row["task"] == "true_premise"


def test_premises_of_the_test_have_templates_of_their_own() -> None:
    seen = {
        split: {(row["relation"], row["template"]) for row in rows_of("false_premise", split)}
        for split in ("train", "test")
    }
    assert not seen["train"] & seen["test"]


def test_false_and_true_premises_are_as_many() -> None:
    for split in ("train", "test"):
        tasks = [row["task"] for row in rows_of("false_premise", split)]
        n_false = tasks.count("false_premise")
        assert abs(n_false - tasks.count("true_premise")) <= 0.02 * len(tasks)


@pytest.mark.parametrize("name", SETS)
def test_every_response_is_scored_as_right(name: str) -> None:
    assert all(is_right(example, example.response) for example in every_example(name))


def test_going_along_with_a_false_premise_is_scored_as_wrong() -> None:
    asked = [one for one in every_example("false_premise") if one.false_object]
    assert len(asked) > 400
    for one in asked:
        assert not is_right(one, f"{one.subject} is of {one.false_object}.")
        assert not is_right(one, f"It is {one.false_object}, and also {one.answer}.")


def test_denying_a_true_premise_is_scored_as_wrong() -> None:
    asked = [one for one in every_example("false_premise") if not one.false_object]
    assert not any(is_right(one, f"That is not {one.answer}; no.") for one in asked)
