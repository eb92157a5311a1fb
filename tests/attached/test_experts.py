"""Experts of a PEFT model that is not hooked, under the constraints of the hooked one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import interp
from interp.attached import attach
from interp.errors import UserError
from interp.interventions import ExpertConstraint, Intervention
from interp.moelora import hooked
from probes.detector.detections import Detection
from probes.detector.questions import tokenize_question
from tests.attached.test_equality import CLOSE, SPANS, greedy, part, real_logits
from tests.attached.test_generation import QUESTIONS
from tests.interventions.conftest import make_adapted

pytestmark = pytest.mark.bridge_only

INTERVENTIONS = {
    "all": Intervention.of(ExpertConstraint([(0, "attn.q", 1), (1, "mlp.out", 0)])),
    "spans": Intervention.of(
        ExpertConstraint([(0, "attn.v", 1), (0, "mlp.out", 2)], "force", place="spans")
    ),
    "two on one": Intervention.of(ExpertConstraint([(0, "attn.v", 1)], "scale", 3.0))
    | ExpertConstraint([(0, "attn.v", 0)], "off", place="spans"),
    "beside heads": Intervention.of(part("attention"))
    | ExpertConstraint([(1, "mlp.out", 0)], "off_renormalised"),
}


@pytest.fixture(scope="module")
def pair(hf_factory: Callable[..., Any], chat_tokenizer: Any) -> tuple[Any, Any]:
    adapted = make_adapted(hf_factory, chat_tokenizer)
    return adapted, hooked(make_adapted(hf_factory, chat_tokenizer), chat_tokenizer)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_they_equal_the_hooked_model(name: str, pair: tuple[Any, Any], chat_tokenizer: Any) -> None:
    (adapted, model), under = pair, INTERVENTIONS[name]
    free = real_logits(adapted)
    at = SPANS if under.needs_positions else None
    with interp.constrain(model, under, at=at):
        expected, said = real_logits(model.original_model), greedy(model.original_model)
    with attach(adapted, chat_tokenizer, under, at=at):
        torch.testing.assert_close(real_logits(adapted), expected, **CLOSE)
        assert torch.equal(greedy(adapted), said)
    assert float((expected - free).abs().max()) > 1e-2
    assert torch.equal(real_logits(adapted), free)
    assert all(layer.hooks is None for layer in adapted.modules() if hasattr(layer, "moelora_A"))


def test_where_a_detector_fires(pair: tuple[Any, Any], chat_tokenizer: Any) -> None:
    """Experts at every token of the question about Germany, and of no other."""
    adapted, under = pair[0], INTERVENTIONS["all"]
    asked = [tokenize_question(chat_tokenizer, text) for text in QUESTIONS]

    class Fires:
        def detect(self, model: Any, questions: Any, **_: Any) -> list[Detection]:
            span = (24, 31)
            return [
                Detection(True, 0.9, span, asked[0].tokens_at(span))
                if "Germany" in question
                else Detection(False, 0.1)
                for question in questions
            ]

    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    prompts = [torch.tensor([list(of.tokens)]) for of in asked]
    free = [adapted.generate(input_ids=prompt, **options) for prompt in prompts]
    with attach(adapted, chat_tokenizer, under):
        everywhere = [adapted.generate(input_ids=prompt, **options) for prompt in prompts]
    with attach(adapted, chat_tokenizer, under, gate="probe", detector=Fires()):
        found = [adapted.generate(input_ids=prompt, **options) for prompt in prompts]
    assert torch.equal(found[0], everywhere[0])
    assert not torch.equal(found[0], free[0])
    assert torch.equal(found[1], free[1])


def test_experts_that_are_not_there(pair: tuple[Any, Any], chat_tokenizer: Any) -> None:
    for name, message in (
        ((0, "attn.q", 9), "expert 9 of .*q_proj does not exist"),
        ((0, "attn.o", 0), "no adapted projection 'blocks.0.attn.o'"),
    ):
        with pytest.raises(UserError, match=message):
            attach(pair[0], chat_tokenizer, ExpertConstraint([name]))
