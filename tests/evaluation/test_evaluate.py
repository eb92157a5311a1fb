"""One evaluation: the contract's schema, and figures that are known beforehand."""

import json
from typing import Any

import numpy as np
import pytest

from interp.errors import UserError
from interp.evaluation import Evaluation, evaluate
from interp.evaluation.evaluate import setting_of
from interp.heads import HeadSet
from interp.interventions import Constraint, Intervention
from interp.models import HookedModel
from interp.premises import Premises, load_premises

MEASURES = {
    "n",
    "preference_accuracy",
    "p_true_object",
    "p_false_object",
    "logit_difference",
    "true_object_mention_rate",
    "false_object_mention_rate",
}


@pytest.fixture(scope="module")
def held_out(planted_premises: Premises) -> Premises:
    return planted_premises.split(seed=0).held_out


@pytest.fixture(scope="module")
def result(
    planted: HookedModel, held_out: Premises, planted_heads: dict[str, tuple[int, int]]
) -> Evaluation:
    heads = HeadSet((planted_heads["attention"],), "attention", "by planting")
    return evaluate(planted, held_out, heads=heads, seed=3, progress=False)


def test_the_schema_is_the_contracts(result: Evaluation, held_out: Premises) -> None:
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(written) >= {
        *("model", "n_heads", "head_fraction", "heads", "site", "mode", "gate"),
        *("splits", "random_null", "side_effects"),
    }
    assert (written["model"], written["site"], written["mode"]) == ("planted", "attention", "zero")
    assert (written["n_heads"], written["head_fraction"]) == (1, 1 / 12)
    assert written["heads"] == [[1, 2]]
    assert written["gate"] == "oracle"
    assert set(written["splits"]) == {"held_out"}
    split = written["splits"]["held_out"]
    assert set(split) == {"false_premise", "true_premise", "templates"}
    assert tuple(split["templates"]) == held_out.templates
    for part in (split, *split["templates"].values()):
        for kind in ("false_premise", "true_premise"):
            assert set(part[kind]) == {"baseline", "constrained"}
            for measures in part[kind].values():
                assert set(measures) == MEASURES
                assert isinstance(measures["n"], int)
                for name in MEASURES - {"n"}:
                    value, low, high = measures[name]
                    assert low <= value <= high
    assert set(written["random_null"]) == {
        "n_sets",
        "preference_accuracy",
        "percentile_of_selected",
    }
    assert set(written["random_null"]["preference_accuracy"]) == {"mean", "p95"}
    assert set(written["side_effects"]) >= {"neutral_kl", "neutral_perplexity_ratio"}


def test_the_figures_are_those_that_were_planted(result: Evaluation) -> None:
    written = result.to_dict()
    split = written["splits"]["held_out"]
    false, true = split["false_premise"], split["true_premise"]
    assert false["baseline"]["n"] == 8 * 2
    assert false["baseline"]["preference_accuracy"] == [0.0, 0.0, 0.0]
    assert false["constrained"]["preference_accuracy"] == [1.0, 1.0, 1.0]
    assert false["baseline"]["true_object_mention_rate"][0] == 0.0
    assert false["constrained"]["true_object_mention_rate"][0] == 1.0
    assert false["baseline"]["false_object_mention_rate"][0] == 1.0
    assert true["baseline"]["preference_accuracy"][0] == 1.0
    assert true["constrained"]["preference_accuracy"][0] == 1.0
    for part in split["templates"].values():
        assert part["false_premise"]["constrained"]["n"] == 8
    null = written["random_null"]
    assert null["n_sets"] == 20
    assert null["preference_accuracy"] == {"mean": 0.0, "p95": 0.0}
    assert null["percentile_of_selected"] == 100.0
    assert result.gain == 1.0
    assert result.cost == pytest.approx(
        true["baseline"]["p_true_object"][0] - true["constrained"]["p_true_object"][0]
    )
    assert result.cost > 0.05


def test_the_null_is_a_table_of_its_own(result: Evaluation) -> None:
    table = result.null_dataframe()
    assert len(table) == 20
    assert set(table["site"]) == {"attention"}
    assert (table["preference_accuracy"] == 0).all()


def test_answers_come_in_the_order_of_the_questions(result: Evaluation, held_out: Premises) -> None:
    kinds = [pair.kind for pair in result.answers]
    assert kinds == ["false_premise"] * 16 + ["true_premise"] * 16
    expected = [question.subject for question in held_out.questions()]
    assert [pair.subject for pair in result.answers] == expected * 2


def test_heads_that_do_nothing_lie_inside_the_null(
    planted: HookedModel, held_out: Premises
) -> None:
    """The negative control: a head of noise is no better than other heads of noise."""
    result = evaluate(
        planted, held_out, heads=[(2, 1)], site="output", answers=False, progress=False
    )
    written = result.to_dict()
    assert result.gain == 0.0
    assert abs(result.cost) < 0.01
    assert written["random_null"]["percentile_of_selected"] == 0.0
    baseline = written["splits"]["held_out"]["false_premise"]["baseline"]
    assert baseline["true_object_mention_rate"] is None


def test_a_constraint_or_its_parts_say_the_same(planted: HookedModel, held_out: Premises) -> None:
    options: dict[str, Any] = {"answers": False, "random_sets": 0, "progress": False}
    heads = ((0, 1), (1, 0))
    parts = evaluate(planted, held_out, heads=heads, mode="scale", factor=0.5, **options)
    whole = evaluate(planted, held_out, heads=Constraint(HeadSet(heads), "scale", 0.5), **options)
    assert parts.to_dict() == whole.to_dict()
    assert parts.to_dict()["mode"] == "scale"
    assert parts.to_dict()["random_null"] == {"n_sets": 0}


def test_the_mean_comes_from_the_reference(
    planted: HookedModel, planted_premises: Premises
) -> None:
    split = planted_premises.split(seed=0)
    options: dict[str, Any] = {"answers": False, "random_sets": 0, "progress": False}
    own, other = (
        evaluate(planted, split.held_out, heads=[(0, 1)], mode="mean", reference=given, **options)
        for given in (None, split.search)
    )
    # The writer's mean note over the search part names no held-out object, so what is left is the
    # knowledge, 6; the mean over the held-out part names some of them.
    np.testing.assert_allclose(other.false.logit_difference[:, 1], 6, atol=0.2)
    assert float(np.abs(own.false.logit_difference[:, 1] - 6).max()) > 2


def test_the_seed_decides_the_null(tiny_llama: HookedModel) -> None:
    premises = load_premises("capitals", limit=5).with_templates(["why"])
    options: dict[str, Any] = {"answers": False, "progress": False}
    first, same, other = (
        evaluate(tiny_llama, premises, heads=[(0, 0), (1, 1)], seed=seed, **options)
        for seed in (0, 0, 1)
    )
    differences = [one.false.logit_difference[:, 2:] for one in (first, same, other)]
    assert (differences[0] == differences[1]).all()
    assert not np.allclose(differences[0], differences[2])


def test_decoding_steps_are_written_if_they_are_given() -> None:
    always = setting_of(Intervention.of([(0, 0)], "attention"), 12)
    assert "decoding_steps" not in always
    ended = setting_of(Intervention.of([(0, 0)], "attention", decoding_steps=0), 12)
    assert ended == always | {"decoding_steps": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "guess"}, "unknown gate 'guess'; known: oracle, probe, soft"),
        ({"random_sets": 5}, "random_sets is 5: give 20 or more, or 0"),
        ({"heads": [(9, 9)]}, r"head \(9, 9\) does not exist"),
        ({"heads": HeadSet(((0, 0),), "attention"), "site": "output"}, "chosen for site"),
        (
            {"heads": [(layer, head) for layer in (0, 1) for head in range(4)]},
            "no random set can match 8 of 12 heads",
        ),
    ],
)
def test_mistakes_are_told(
    planted: HookedModel, held_out: Premises, options: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"heads": [(0, 0)], "answers": False, "progress": False} | options
    with pytest.raises(UserError, match=message):
        evaluate(planted, held_out, **given)
