"""The learning rate of each method: chosen by validation loss, on questions that are not tested."""

import json
import math
from pathlib import Path

import pytest

from interp.errors import UserError
from interp.moelora.data.sources import load_split, load_validation_split
from interp.moelora.training.rates import ChosenRate, TriedRate, choose_rates


def tried(method: str, rate: float, *losses: float) -> TriedRate:
    return TriedRate(method, rate, {str(task): loss for task, loss in enumerate(losses)})


def test_choice_by_hand() -> None:
    """Tasks weigh the same: 0.5 and 0.1 are better than 0.4 and 0.3."""
    chosen = choose_rates(
        [
            tried("lora", 1e-2, 0.4, 0.3),
            tried("lora", 1e-3, 0.5, 0.1),
            tried("lora", 1e-4, 0.9, 0.9),
            tried("moe", 1e-3, 0.2),
            tried("moe", 1e-2, 0.1),
        ]
    )
    assert chosen["lora"].rate == 1e-3
    assert not chosen["lora"].at_edge
    assert list(chosen["lora"].losses) == [1e-4, 1e-3, 1e-2]
    assert chosen["lora"].losses[1e-3] == pytest.approx(0.3)
    assert (chosen["moe"].rate, chosen["moe"].at_edge) == (1e-2, True)


def test_equal_losses_take_the_smaller_rate() -> None:
    assert choose_rates([tried("moe", 2e-3, 0.1), tried("moe", 1e-3, 0.1)])["moe"].rate == 1e-3


def test_a_run_that_diverged_is_never_chosen() -> None:
    chosen = choose_rates([tried("moe", 1.0), tried("moe", 2.0, math.nan), tried("moe", 0.1, 5.0)])
    assert chosen["moe"].rate == 0.1
    written = json.loads(json.dumps(chosen["moe"].to_json(), allow_nan=False))
    assert [trial["loss"] for trial in written["tried"]] == [5.0, None, None]
    with pytest.raises(UserError, match="moe diverged at every learning rate"):
        choose_rates([tried("moe", 1.0)])


def test_one_rate_has_no_edge_and_a_rate_is_tried_once() -> None:
    assert not ChosenRate(1.0, {1.0: 0.5}).at_edge
    with pytest.raises(UserError, match=r"lora was tried twice at the learning rate 0\.1"):
        choose_rates([tried("lora", 0.1, 1.0), tried("lora", 0.1, 2.0)])


def test_validation_questions_are_neither_trained_on_nor_tested(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": f"{i} + {j}?", "answer": str(i + j), "subject": f"{i}"}
        for i in range(300)
        for j in (1, 2)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    whole, divided = load_split(path), load_validation_split(path)
    assert {*divided.train, *divided.test} == set(whole.train)
    subjects = [{example.subject for example in part} for part in (divided.train, divided.test)]
    assert not subjects[0] & subjects[1]
    assert not subjects[1] & {example.subject for example in whole.test}
    assert 0.05 < len(divided.test) / len(whole.train) < 0.15
    assert load_validation_split(path) == divided


def test_too_few_to_set_apart(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="too few training examples to set some apart"):
        load_validation_split(path, share=1e-9)
