"""The gate ``probe``: what was found is acted on, and where nothing was found nothing changes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import peft
import pytest
import torch

import interp
from interp.errors import UserError
from interp.evaluation import ask_all, evaluate
from interp.evaluation.preference import preference_under
from interp.forward.generate import generate_tokens
from interp.heads import HeadSet
from interp.interventions import Constraint, Detection, ExpertConstraint, Intervention
from interp.interventions.gate import cloze_spans
from interp.interventions.random_controls import random_interventions
from interp.models import HookedModel
from interp.models.quiet import quiet_libraries
from interp.moelora import MoELoRAConfig, hooked
from interp.patching import LogitDifference, last_logits
from interp.premises import Premises
from interp.premises.encode import encode_premises, encode_question, token_span, tokenize
from interp.premises.questions import QuestionKind
from probes.detector.detect import detect_premises
from probes.detector.detections import PremiseDetections

OPTIONS: dict[str, Any] = {"random_sets": 0, "progress": False}


class Stub:
    """Finds ``land…`` in the questions that it is told to fire on."""

    def __init__(self, model: Any, fires: Callable[[int, str], bool]) -> None:
        self.model, self.fires = model, fires
        self.asked: list[tuple[str, ...]] = []

    def detect(
        self,
        model: Any,
        questions: Sequence[str],
        *,
        system: str | None = None,
        progress: bool = True,
    ) -> tuple[Detection, ...]:
        assert model is self.model
        self.asked.append(tuple(questions))
        return tuple(self._one(i, text, system) for i, text in enumerate(questions))

    def _one(self, index: int, question: str, system: str | None) -> Detection:
        if not self.fires(index, question):
            return Detection(False, 0.1)
        start = question.index("land")
        end = start + len(question[start:].split()[0].rstrip("?,"))
        rendered = interp.models.render_chat(self.model.tokenizer, question, system=system)
        encoding = tokenize(self.model.tokenizer, rendered)
        begin = rendered.question_start
        span = token_span(encoding["offset_mapping"], rendered.text, (begin + start, begin + end))
        return Detection(True, 0.95, (start, end), span)


@pytest.fixture(scope="module")
def premises(planted_premises: Premises) -> Premises:
    return planted_premises.split(seed=0).held_out.first(4)


def is_false(index: int, question: str) -> bool:
    city, land = (
        next(word.strip("?,") for word in question.split() if word.startswith(kind))
        for kind in ("city", "land")
    )
    return city.removeprefix("city") != land.removeprefix("land")


@pytest.mark.parametrize(
    ("site", "mode"), [("attention", "zero"), ("output", "zero"), ("output", "resample")]
)
def test_a_perfect_detector_gives_the_oracles_gain_at_no_cost(
    planted: HookedModel,
    premises: Premises,
    planted_heads: dict[str, tuple[int, int]],
    site: Any,
    mode: Any,
) -> None:
    heads = Constraint(HeadSet((planted_heads[site],), site), mode)
    stub = Stub(planted, is_false)
    # Answers are the slow part: at one site only.
    answers = site == "attention"
    gated = evaluate(
        planted, premises, heads=heads, gate="probe", detector=stub, answers=answers, **OPTIONS
    )
    oracle = evaluate(planted, premises, heads=heads, answers=False, **OPTIONS)
    n = len(premises)
    assert [len(asked) for asked in stub.asked] == [2 * n]
    np.testing.assert_allclose(
        gated.false.logit_difference, oracle.false.logit_difference, atol=5e-5
    )
    assert gated.gain == oracle.gain == 1.0
    # Where it did not fire: the very same numbers and texts.
    assert np.array_equal(gated.twin.logit_difference[:, 1], gated.twin.logit_difference[:, 0])
    assert np.array_equal(gated.twin.p_true[:, 1], gated.twin.p_true[:, 0])
    assert gated.cost == 0.0
    by_kind = {
        kind: [p for p in gated.answers if p.kind == kind]
        for kind in ("false_premise", "true_premise")
    }
    assert len(gated.answers) == (2 * n if answers else 0)
    assert all(p.constrained == p.baseline for p in by_kind["true_premise"])
    assert all(p.constrained_names_true for p in by_kind["false_premise"])
    written = gated.to_dict()
    assert written["gate"] == "probe"
    assert written["detection"] == {
        "n": n,
        "fired_on_false": [1.0, 1.0, 1.0],
        "fired_on_twins": [0.0, 0.0, 0.0],
        "span_covers_object": [1.0, 1.0, 1.0],
    }
    assert "detection" not in oracle.to_dict()


def test_a_detector_that_never_fires_runs_nothing_again(
    planted: HookedModel, premises: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ask_all(planted, premises, progress=False)
    generated: list[int] = []
    monkeypatch.setattr(
        "interp.evaluation.jobs.greedy_answers",
        lambda model, tokenizer, prompts, **options: generated.append(len(prompts)) or [],
    )
    result = evaluate(
        planted,
        premises,
        heads=[(1, 2)],
        site="attention",
        gate="probe",
        detector=Stub(planted, lambda i, text: False),
        random_sets=20,
        answers=asked,
        progress=False,
    )
    assert sum(generated) == 0
    for values in (result.false.logit_difference, result.false.p_true, result.false.p_false):
        assert values.shape[1] == 22
        assert (values == values[:, :1]).all()
    assert all(pair.constrained == pair.baseline for pair in result.answers)
    detection = result.to_dict()["detection"]
    assert detection["fired_on_false"] == [0.0, 0.0, 0.0]
    assert detection["span_covers_object"] is None


def test_false_alarms_and_misses_by_hand(planted: HookedModel, premises: Premises) -> None:
    """It fires on the first question of each kind and on no other."""
    n = len(premises)
    result = evaluate(
        planted,
        premises,
        heads=[(1, 2)],
        site="attention",
        gate="probe",
        answers=False,
        detector=Stub(planted, lambda i, text: i % n == 0),
        **OPTIONS,
    )
    everywhere = evaluate(
        planted, premises, heads=[(1, 2)], site="attention", answers=False, **OPTIONS
    )
    for gated, oracle in ((result.false, everywhere.false), (result.twin, everywhere.twin)):
        changed = gated.logit_difference[:, 1] != gated.logit_difference[:, 0]
        assert changed.tolist() == [True] + [False] * (n - 1)
        np.testing.assert_allclose(gated.logit_difference[0], oracle.logit_difference[0], atol=5e-5)
    assert result.gain == pytest.approx(1 / n)
    detection = result.to_dict()["detection"]
    assert detection["fired_on_twins"][0] == pytest.approx(1 / n)


def test_what_was_detected_once_serves_several_evaluations(
    planted: HookedModel, premises: Premises
) -> None:
    found = detect_premises(planted, premises, detector=Stub(planted, is_false), progress=False)
    settings: dict[str, Any] = {
        "heads": [(1, 2)],
        "site": "attention",
        "gate": "probe",
        "random_sets": 0,
        "answers": False,
        "progress": False,
    }
    asked = evaluate(planted, premises, detector=Stub(planted, is_false), **settings)
    again = evaluate(planted, premises, detector=found, **settings)
    assert again.to_dict() == asked.to_dict()
    with pytest.raises(UserError, match="of other premises"):
        evaluate(planted, premises.first(2), detector=found, **settings)


def test_a_span_that_the_scored_prompt_does_not_have_is_told(
    planted: HookedModel, premises: Premises
) -> None:
    encoded = encode_premises(planted.tokenizer, premises)
    length = len(
        encode_question(planted.tokenizer, premises.fill(premises.questions()[0], "false")).tokens
    )

    def spans_with(span: tuple[int, int]) -> Any:
        first, quiet = Detection(True, 0.9, (0, 1), span), Detection(False, 0.0)
        found = (first, *[quiet] * (len(premises) - 1))
        detections = PremiseDetections(found, found, ((0, 1),) * len(found), encoded.subjects)
        return cloze_spans(planted, premises, encoded, kind="false", detections=detections)

    assert spans_with((0, 2))[0] == (0, 2)
    with pytest.raises(UserError, match="is not in the prompt with the opening of an answer"):
        spans_with((length, length + 1))


def test_generate_asks_the_detector(
    planted: HookedModel, premises: Premises, planted_heads: dict[str, tuple[int, int]]
) -> None:
    question = premises.questions()[0]
    heads = HeadSet((planted_heads["attention"],), "attention")
    options: dict[str, Any] = {"max_new_tokens": 1}
    stub = Stub(planted, is_false)
    kinds: tuple[QuestionKind, ...] = ("false", "twin")
    for kind in kinds:
        text = premises.fill(question, kind).text
        free = interp.generate(planted, text, **options)
        said = interp.generate(planted, text, heads=heads, gate="probe", detector=stub, **options)
        assert said == question.true_object
        assert (said == free) == (kind == "twin")
    false = premises.fill(question, "false").text
    oracle = interp.generate(
        planted, false, heads=heads, false_object=question.false_object, **options
    )
    assert oracle == question.true_object
    with pytest.raises(UserError, match="finds the false object itself: leave it out"):
        interp.generate(planted, false, heads=heads, gate="probe", false_object="x")
    with pytest.raises(UserError, match=r"give the words that may be false .* \(gate='probe'\)"):
        interp.generate(planted, false, heads=heads)
    with pytest.raises(UserError, match="'nowhere' is not found in the question"):
        interp.generate(planted, false, heads=heads, false_object="nowhere")
    with pytest.raises(UserError, match="unknown gate 'guess'"):
        evaluate(planted, premises, heads=heads, gate="guess")


@pytest.fixture(scope="module")
def with_experts(hf_factory: Callable[..., Any], word_tokenizer: Any) -> HookedModel:
    torch.manual_seed(0)
    config = MoELoRAConfig(
        r=2, num_experts=4, top_k=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    with quiet_libraries():
        adapted = peft.get_peft_model(hf_factory("llama", word_tokenizer), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "moelora_B" in name:
                parameter.normal_(std=0.3)
    return hooked(adapted.eval(), word_tokenizer)


@torch.no_grad()
def test_experts_are_evaluated_and_have_a_null(
    with_experts: HookedModel, premises: Premises
) -> None:
    """Against hooks written out by hand."""
    one = ExpertConstraint([(1, "attn.v", 0), (2, "attn.q", 3)])
    result = evaluate(
        with_experts, premises, heads=one, random_sets=20, answers=False, progress=False
    )
    encoded = encode_premises(with_experts.tokenizer, premises)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)

    def without(expert: int) -> Callable[[torch.Tensor, Any], torch.Tensor]:
        def write(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[..., expert] = 0
            return value

        return write

    hooks = [
        ("blocks.1.attn.v.moelora.hook_gate", without(0)),
        ("blocks.2.attn.q.moelora.hook_gate", without(3)),
    ]
    for kind, values in (("false", result.false), ("twin", result.twin)):
        batch = encoded.batch(kind)  # type: ignore[arg-type]
        free = metric(last_logits(with_experts, batch)[:, -1])
        with with_experts.hooks(fwd_hooks=hooks):
            held = metric(last_logits(with_experts, batch)[:, -1])
        np.testing.assert_allclose(values.logit_difference[:, 0], free, atol=5e-5)
        np.testing.assert_allclose(values.logit_difference[:, 1], held, atol=5e-5)
        assert float((held - free).abs().max()) > 1e-3
    written = result.to_dict()
    assert (written["site"], written["mode"], written["n_heads"]) == ("experts", "off", 0)
    assert written["experts"][0]["experts"] == [["blocks.1.attn.v", 0], ["blocks.2.attn.q", 3]]
    assert written["random_null"]["n_sets"] == 20
    assert len(result.null_dataframe()) == 20


@torch.no_grad()
def test_heads_and_experts_together_under_the_gate(
    with_experts: HookedModel, premises: Premises
) -> None:
    """Experts act on every token of a prompt in which something was found, and on no other."""
    what = Intervention.of([(0, 1)], gate="probe") | ExpertConstraint([(0, "attn.v", 1)], "force")
    result = evaluate(
        with_experts,
        premises,
        heads=what,
        answers=False,
        detector=Stub(with_experts, is_false),
        **OPTIONS,
    )
    encoded = encode_premises(with_experts.tokenizer, premises)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)
    with interp.constrain(with_experts, what, premises=encoded):
        held = metric(last_logits(with_experts, encoded.batch("false"))[:, -1])
    np.testing.assert_allclose(result.false.logit_difference[:, 1], held, atol=5e-5)
    assert np.array_equal(result.twin.logit_difference[:, 1], result.twin.logit_difference[:, 0])
    assert (result.to_dict()["gate"], result.to_dict()["site"]) == ("probe", "output + experts")


def test_experts_everywhere_need_no_false_object(with_experts: HookedModel) -> None:
    one = ExpertConstraint([(0, "attn.v", 1), (2, "attn.q", 0)], "force")
    question = "Why is city1 the capital of land2 ?"
    said = interp.generate(with_experts, question, heads=one, max_new_tokens=4)
    tokens = tokenize(
        with_experts.tokenizer, interp.models.render_chat(with_experts.tokenizer, question)
    )["input_ids"]
    with interp.constrain(with_experts, one):
        expected = generate_tokens(with_experts, [tokens], max_new_tokens=4, progress=False)[0]
    assert said == expected


def test_random_interventions_match_and_never_draw_what_was_chosen(
    with_experts: HookedModel,
) -> None:
    what = (
        Intervention.of([(0, 1), (0, 2), (2, 0)])
        | Constraint(HeadSet(((1, 1),)), "scale", -1.0)
        | ExpertConstraint([(0, "attn.v", 1), (1, "attn.q", 0)])
        | ExpertConstraint([(0, "attn.v", 2)], "scale", 2.0)
    ).check(with_experts)
    drawn = random_interventions(with_experts, what, 30, seed=1)
    assert drawn == random_interventions(with_experts, what, 30, seed=1)
    assert drawn != random_interventions(with_experts, what, 30, seed=2)
    assert len(set(drawn)) > 10
    chosen_heads = {head for part in what.heads for head in part.heads}
    chosen = {pair for part in what.experts for pair in part.pairs}
    for one in drawn:
        assert [(p.site, p.mode, len(p.heads)) for p in one.heads] == [
            ("output", "zero", 3),
            ("output", "scale", 1),
        ]
        heads = [head for part in one.heads for head in part.heads]
        assert sorted(layer for layer, _ in heads) == [0, 0, 1, 2]
        assert not chosen_heads & set(heads)
        pairs = [pair for part in one.experts for pair in part.pairs]
        assert sorted(name for name, _ in pairs) == sorted(name for name, _ in chosen)
        assert not chosen & set(pairs)
    many = ExpertConstraint([(0, "attn.v", expert) for expert in range(3)])
    with pytest.raises(UserError, match="no random experts can match 3 of 4 of"):
        random_interventions(with_experts, Intervention.of(many).check(with_experts), 20)


@pytest.mark.parametrize("site", ["attention", "output"])
def test_the_soft_gate_is_as_strong_as_the_detector_is_sure(
    planted: HookedModel, premises: Premises, planted_heads: dict[str, Any], site: Any
) -> None:
    """Probability 0.95 leaves a twentieth of what the head reads, or writes; else nothing runs."""
    heads = HeadSet((planted_heads[site],), site)
    stub = Stub(planted, is_false)
    answers = site == "attention"
    soft = evaluate(
        planted, premises, heads=heads, gate="soft", detector=stub, answers=answers, **OPTIONS
    )
    softer = Constraint(heads, "scale", 0.05)
    told = evaluate(planted, premises, heads=softer, answers=answers, **OPTIONS)
    np.testing.assert_allclose(soft.false.logit_difference, told.false.logit_difference, atol=5e-4)
    assert np.array_equal(soft.twin.logit_difference[:, 1], soft.twin.logit_difference[:, 0])
    full = evaluate(planted, premises, heads=heads, answers=False, **OPTIONS)
    assert np.abs(soft.false.logit_difference - full.false.logit_difference)[:, 1].min() > 1e-2
    assert soft.to_dict()["gate"] == "soft"
    for pair, other in zip(soft.answers, told.answers, strict=True):
        false = pair.kind == "false_premise"
        assert pair.constrained == (other.constrained if false else pair.baseline)
        assert bool(pair.acted_on) == false
    if answers:
        text = soft.answers[0].question
        said = interp.generate(planted, text, heads=heads, gate="soft", detector=stub)
        assert said == soft.answers[0].constrained


def test_every_question_has_its_own_strength(
    planted: HookedModel, premises: Premises, planted_heads: dict[str, Any]
) -> None:
    heads = HeadSet((planted_heads["attention"],), "attention")
    encoded = encode_premises(planted.tokenizer, premises)
    spans: list[Any] = [item.false.object for item in encoded.items]
    spans[0] = None
    strengths = [0.2 + 0.7 * row / len(spans) for row in range(len(spans))]

    def differences(constraint: Constraint, **options: Any) -> np.ndarray:
        under = [Intervention.of(constraint)]
        values = preference_under(
            planted, encoded, "false", interventions=under, progress=False, **options
        )
        return values.logit_difference

    soft = differences(Constraint(heads), spans=spans, strengths=strengths)
    assert soft[0, 1] == soft[0, 0]
    for row, strength in list(enumerate(strengths))[1:]:
        told = differences(Constraint(heads, "scale", 1 - strength))
        np.testing.assert_allclose(soft[row, 1], told[row, 1], atol=5e-4)
    assert len(set(soft[1:, 1].round(2))) > 1
