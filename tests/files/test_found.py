"""What the fuzzers found, as examples: each was another exception once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from interp.commands.report import report_run
from interp.errors import UserError
from interp.interventions import Intervention
from interp.models import render_chat
from interp.moelora.data.reading import read_examples
from interp.patching import PatchEffects
from tests.fuzz import run_seeds, seeds
from tests.fuzz.mutations import mutate

DIGITS = "9" * 5000


def test_a_layer_of_five_thousand_digits(tmp_path: Path) -> None:
    part = {"mode": "off", "experts": [[f"blocks.{DIGITS}.attn.q", 0], ["attn.q", 1]]}
    path = tmp_path / "it.json"
    path.write_text(json.dumps({"version": 1, "experts": [part]}))
    assert len(Intervention.load(path)) == 2  # a name that no model has, which is told later


def test_a_negative_seed(tmp_path: Path) -> None:
    seeds.patching_result(tmp_path)
    result = PatchEffects.load(tmp_path / "effects.safetensors")
    with pytest.raises(UserError, match="a seed is zero or more, not -1"):
        replace(result, seed=-1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Question": f"number{DIGITS}"}, ""),
        ({"Numbers": DIGITS}, ""),
        ({"Equation": "+ " * 5000}, "at most 200 are read"),
    ],
)
def test_problems_of_absurd_size(change: dict[str, str], said: str, tmp_path: Path) -> None:
    problem = {"Question": "number0?", "Numbers": "3", "Equation": "number0", "Answer": "3"}
    path = tmp_path / "data.json"
    path.write_text(json.dumps([problem | change]))
    if said:
        with pytest.raises(UserError, match=said):
            read_examples(path)
    else:
        assert len(read_examples(path)) == 1


@pytest.mark.parametrize(
    "template", ["{{ 1 // 0 }}", "{{ 10 ** 5000 }}", "{{ x.y.z }}", "{{ [][1] + 1 }}"]
)
def test_a_chat_template_that_raises(template: str) -> None:
    tokenizer = seeds.tokenizers()[0]
    before = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        with pytest.raises(UserError, match="chat template refuses the question"):
            render_chat(tokenizer, "Why?")
    finally:
        tokenizer.chat_template = before


def test_half_a_surrogate_pair_in_a_question() -> None:
    for tokenizer in seeds.tokenizers():
        with pytest.raises(UserError, match="surrogate"):
            render_chat(tokenizer, "Why \ud800?")


@pytest.mark.parametrize("change", [{"site": [1]}, {"alternatives": [{"site": ["a", "b"]}]}])
def test_an_evaluation_whose_site_is_a_list(change: dict[str, object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run_seeds.evaluated_run(run)
    path = run / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"evaluation\.json: .*site must be text"):
        report_run(run)


def test_mutations_are_the_same_again() -> None:
    import random

    draws = [mutate(b'{"a": [1, 2]}', "json", random.Random(3)) for _ in range(2)]
    assert draws[0] == draws[1]
