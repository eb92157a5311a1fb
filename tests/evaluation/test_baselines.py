"""Methods scored in one way, and the table that sets them side by side."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import interp.evaluation.baselines.table
from interp.errors import UserError
from interp.evaluation import Preference
from interp.evaluation.baselines.method_score import MethodScore, score
from interp.evaluation.baselines.methods import Gated, NoIntervention, RandomHeads, SystemPrompt
from interp.evaluation.baselines.table import method_table, pool, ratio_interval
from interp.figures.evaluation import gain_against_cost
from interp.heads import HeadSet
from interp.interventions import Constraint
from interp.models import HookedModel, render_chat
from interp.patching import TokenBatch, last_logits
from interp.premises import Premises
from interp.premises.encode import encode_premises, encode_question
from probes.detector.detections import Detection

ANSWERS: dict[str, Any] = {"answers": ("false", "twin"), "max_new_tokens": 2, "progress": False}


class Reader:
    """A detector that knows the places in some questions, and fires on the false ones it is to."""

    def __init__(self, model: Any, premises: Premises, fires_on: Sequence[str]) -> None:
        self.found: dict[str, Detection] = {}
        self.asked = 0
        for kind in ("false", "twin"):
            for question in premises.questions():
                filled = premises.fill(question, kind)
                span = encode_question(model.tokenizer, filled).object
                fired = kind in fires_on
                self.found[filled.text] = Detection(fired, 0.9 * fired, filled.object, span)

    def detect(
        self, model: Any, questions: Sequence[str], *, system: Any = None, progress: bool = True
    ) -> list[Detection]:
        self.asked += len(questions)
        return [self.found[question] for question in questions]


@pytest.fixture(scope="module")
def some(planted_premises: Premises) -> Premises:
    return planted_premises.first(6).with_templates(["when", "famous"])


@pytest.fixture(scope="module")
def baseline(planted: HookedModel, some: Premises) -> MethodScore:
    return score(planted, some, NoIntervention(), name="nothing", **ANSWERS)


@pytest.fixture(scope="module")
def constraint(planted_heads: dict[str, tuple[int, int]]) -> Constraint:
    return Constraint(HeadSet((planted_heads["attention"],), "attention"))


@pytest.fixture(scope="module")
def oracle(planted: HookedModel, some: Premises, constraint: Constraint) -> MethodScore:
    return score(planted, some, constraint, name="oracle", **ANSWERS)


def same(a: Preference, b: Preference) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("logit_difference", "p_true", "p_false")
    )


def test_no_intervention_is_the_model_as_it_is(
    planted: HookedModel, some: Premises, baseline: MethodScore
) -> None:
    encoded = encode_premises(planted.tokenizer, some)
    rows = torch.arange(len(encoded))
    for kind in ("false", "twin"):
        with torch.no_grad():
            logits = last_logits(planted, encoded.batch(kind))[:, -1]
        true, false = logits[rows, encoded.true_tokens], logits[rows, encoded.false_tokens]
        found, p_true = baseline.of(kind), logits.softmax(dim=-1)[rows, encoded.true_tokens]
        for values, expected in ((found.logit_difference, true - false), (found.p_true, p_true)):
            np.testing.assert_allclose(values[:, 0], expected, atol=5e-5, rtol=0)
    assert baseline.false.accuracy.tolist() == [0.0]
    assert baseline.twin.accuracy.tolist() == [1.0]
    assert set(baseline.answers) == set(baseline.seconds) == {"false", "twin"}
    assert min(baseline.seconds.values()) > 0


def test_a_constraint_mends_what_random_heads_do_not(
    planted: HookedModel, some: Premises, constraint: Constraint, oracle: MethodScore
) -> None:
    assert oracle.false.accuracy.tolist() == [1.0]
    assert all(
        answer.startswith(question.true_object)
        for answer, question in zip(oracle.answers["false"], some.questions(), strict=True)
    )
    random = score(planted, some, RandomHeads(constraint, n_sets=3), name="random", progress=False)
    # The other three heads of layer 1; KNOWER is one of them, but looks at the city.
    assert random.false.logit_difference.shape == (12, 3)
    assert random.false.accuracy.tolist() == [0.0, 0.0, 0.0]
    assert random.answers == {}


def test_a_system_prompt_stands_before_the_question(tiny_llama: HookedModel) -> None:
    from interp.premises import load_premises

    premises = load_premises("capitals", limit=2).with_templates(["why"])
    found = score(tiny_llama, premises, SystemPrompt("Check."), name="system", progress=False)
    plain = score(tiny_llama, premises, NoIntervention(), name="nothing", progress=False)
    assert np.abs(found.false.logit_difference - plain.false.logit_difference).min() > 1e-3
    for index, question in enumerate(premises.questions()):
        text = premises.fill(question, "false").text
        rendered = render_chat(
            tiny_llama.tokenizer, text, premises.cloze(question), system="Check."
        )
        encode = tiny_llama.tokenizer
        true, false = (
            encode(f"{rendered.text} {name}.", add_special_tokens=False)["input_ids"]
            for name in (question.true_object, question.false_object)
        )
        shared = next(i for i, (a, b) in enumerate(zip(true, false, strict=False)) if a != b)
        with torch.no_grad():
            logits = last_logits(tiny_llama, TokenBatch.from_lists([true[:shared]]))[0, -1]
        expected = float(logits[true[shared]] - logits[false[shared]])
        assert found.false.logit_difference[index, 0] == pytest.approx(expected, abs=1e-4)


def test_a_gate_that_never_fires_changes_nothing(
    planted: HookedModel, some: Premises, baseline: MethodScore, constraint: Constraint
) -> None:
    detector = Reader(planted, some, fires_on=())
    gated = score(
        planted, some, Gated(constraint, detector), name="gated", baseline=baseline, **ANSWERS
    )
    assert same(gated.false, baseline.false)
    assert same(gated.twin, baseline.twin)
    assert gated.answers == baseline.answers
    assert detector.asked == 24
    assert all(gated.seconds[kind] >= baseline.seconds[kind] for kind in ("false", "twin"))


def test_a_perfect_gate_is_the_oracle_on_false_premises_alone(
    planted: HookedModel,
    some: Premises,
    baseline: MethodScore,
    oracle: MethodScore,
    constraint: Constraint,
) -> None:
    method = Gated(constraint, Reader(planted, some, fires_on=("false",)))
    gated = score(planted, some, method, name="gated", baseline=baseline, **ANSWERS)
    assert same(gated.false, oracle.false)
    assert same(gated.twin, baseline.twin)
    assert gated.answers == {"false": oracle.answers["false"], "twin": baseline.answers["twin"]}
    table = method_table([baseline, oracle, gated], baseline="nothing", oracle="oracle").set_index(
        "treatment"
    )
    assert table.loc["gated", ["gain", "share", "cost", "cost_p_true"]].tolist() == [1, 1, 0, 0]
    assert table.loc["oracle", "cost_p_true"] > 0.01  # acting on honest questions has its price
    assert table.loc["gated", "unchanged"] == 1


def test_a_gate_acts_on_the_span_it_found(
    planted: HookedModel, some: Premises, baseline: MethodScore, constraint: Constraint
) -> None:
    """Elsewhere than the object there is nothing to cut."""
    detector = Reader(planted, some, fires_on=("false",))
    detector.found = {text: replace(one, token_span=(0, 1)) for text, one in detector.found.items()}
    method = Gated(constraint, detector)
    gated = score(planted, some, method, name="g", baseline=baseline, progress=False)
    assert gated.false.accuracy.tolist() == [0.0]
    assert not same(gated.false, baseline.false)
    # Without the baseline score, the gate makes its own.
    again = score(planted, some, method, name="g", progress=False)
    assert same(gated.false, again.false)


def by_hand(name: str, false: list[float], twin: list[float], p_true: list[float]) -> Any:
    def of(values: list[float], p: list[float]) -> Preference:
        column = np.array(values, dtype=float)[:, None]
        subjects, templates = ("a", "a", "b", "b"), ("x", "y", "x", "y")
        return Preference(column, np.array(p)[:, None], column, subjects, templates)

    return MethodScore(name, of(false, [0.0] * 4), of(twin, p_true))


def test_the_table_by_hand() -> None:
    base = by_hand("base", [-1, -1, 1, -1], [1, 1, 1, 1], [0.8, 0.8, 0.8, 0.8])
    oracle = by_hand("oracle", [1, 1, 1, 1], [1, 1, -1, 1], [0.8, 0.6, 0.4, 0.6])
    half = by_hand("half", [1, -1, 1, -1], [1, 1, 1, 1], [0.8, 0.8, 0.8, 0.4])
    base = replace(base, answers={"twin": ("p", "q", "r", "s")}, seconds={"twin": 0.5})
    half = replace(half, answers={"twin": ("p", "q", "r", "t")}, seconds={"twin": 0.75})
    table = method_table([base, oracle, half], baseline="base", oracle="oracle")
    rows = table.set_index("treatment")
    assert rows["gain"].tolist() == [0.0, 0.75, 0.25]
    assert rows.loc["half", ["gain_low", "gain_high"]].tolist() == [0.0, 0.5]
    assert rows["share"].tolist() == pytest.approx([0.0, 1.0, 1 / 3])
    # Subject a alone: 1 of 2; subject b alone: 0 of 1.
    assert rows.loc["half", ["share_low", "share_high"]].tolist() == [0.0, 0.5]
    assert rows["cost"].tolist() == [0.0, 0.25, 0.0]
    assert rows["cost_p_true"].tolist() == pytest.approx([0.0, 0.2, 0.1])
    assert rows["unchanged"].fillna(-1).tolist() == [1.0, -1.0, 0.75]
    assert rows["seconds"].fillna(-1).tolist() == [0.5, -1.0, 0.75]
    points = gain_against_cost(table).to_plotly_json()["data"]
    assert [(list(p["x"]), list(p["y"])) for p in points][2] == ([pytest.approx(0.1)], [0.25])


def test_pooling_puts_prompts_one_after_another() -> None:
    first = by_hand("one", [1, 2, 3, 4], [1, 1, 1, 1], [0.1] * 4)
    first = replace(first, answers={"twin": ("a",) * 4}, seconds={"twin": 1.0})
    second = replace(first, answers={"twin": ("b",) * 4}, seconds={"twin": 2.0})
    both = pool([first, second])
    assert both.false.logit_difference[:, 0].tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert both.answers == {"twin": ("a",) * 4 + ("b",) * 4}
    assert both.seconds == {"twin": 1.5}
    # The same subject in two seeds is one subject: the interval is as wide as with one.
    assert both.false.subjects == first.false.subjects * 2


def test_a_ratio_to_nothing_is_nothing() -> None:
    part, whole = np.array([1.0, 0.0]), np.zeros(2)
    assert np.isnan(ratio_interval(part, whole, ["a", "b"])).all()
    assert ratio_interval(part, np.ones(2), ["a", "a"]) == (0.5, 0.5, 0.5)


def test_bad_input(
    planted: HookedModel, some: Premises, baseline: MethodScore, constraint: Constraint
) -> None:
    gated = Gated(constraint, Reader(planted, some, ()))
    with pytest.raises(UserError, match="`baseline` was scored on other premises"):
        score(planted, some.first(2), gated, name="g", baseline=baseline, progress=False)
    unanswered = replace(baseline, answers={}, seconds={})
    with pytest.raises(UserError, match="`baseline` has no answers to 'false' questions"):
        score(planted, some, gated, name="g", baseline=unanswered, **ANSWERS)
    with pytest.raises(UserError, match="no score named 'x'; there are: nothing"):
        method_table([baseline], baseline="x", oracle="nothing")
    other = replace(baseline, name="b", false=replace(baseline.false, subjects=("q",) * 12))
    with pytest.raises(UserError, match="scored on different prompts"):
        method_table([baseline, other], baseline="nothing", oracle="b")
    with pytest.raises(UserError, match="only scores of one method can be pooled"):
        pool([baseline, other])


def test_old_names_of_the_table_and_its_arguments_still_work() -> None:
    scores = [by_hand(name, [-1, 1, 1, 1], [1] * 4, [0.5] * 4) for name in ("base", "oracle")]
    table: Any = method_table  # the old arguments are unknown to type checkers
    with pytest.warns(DeprecationWarning, match="untreated of method_table is now baseline"):
        old = table(scores, untreated="base", oracle="oracle")
    assert old.equals(method_table(scores, baseline="base", oracle="oracle"))
    with pytest.raises(TypeError, match="untreated"):
        table(scores, baseline="base", untreated="base", oracle="oracle")
    with pytest.warns(DeprecationWarning, match=r"table\.method_table; the old name goes"):
        assert interp.evaluation.baselines.table.treatment_table is method_table
