"""Token saliency: a planted answer by hand, finite differences, and a model without the effect."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.evaluation import TokenSaliency, token_saliency
from interp.inspection.saliency import check_saliency_method
from interp.models import HookedModel
from interp.premises import Premises

QUESTION = "Why is Paris the capital of Germany?"


def planted_saliency(model: HookedModel, premises: Premises, method: str) -> TokenSaliency:
    question = premises.questions()[0]
    return token_saliency(
        model,
        premises.fill(question, "false"),
        opening=premises.cloze(question),
        toward=question.true_object,
        against=question.false_object,
        method=method,  # type: ignore[arg-type]
    )


def of(found: TokenSaliency, name: str) -> float:
    start, end = found.spans[name]
    return float(found.values[start:end].sum())


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_the_false_object_speaks_against_the_true_one(
    planted: HookedModel, honest: HookedModel, planted_premises: Premises, method: str
) -> None:
    found = planted_saliency(planted, planted_premises, method)
    # READER adds 10 to the false object's logit, and it reads it from the object's token.
    assert of(found, "object") == pytest.approx(-10, abs=1.5)
    control = planted_saliency(honest, planted_premises, method)
    assert abs(of(control, "object")) < 1.0


def test_the_metric_is_the_logit_difference(
    planted: HookedModel, planted_premises: Premises
) -> None:
    found = planted_saliency(planted, planted_premises, "occlusion")
    # KNOWER adds 6 to the true object's logit, READER 10 to the false one's.
    assert found.value == pytest.approx(6 - 10, abs=0.5)
    assert found.unit == "logits"


def test_gradients_are_the_slope_of_scaling_a_token(tiny_llama: HookedModel) -> None:
    found = token_saliency(tiny_llama, QUESTION, toward="Berlin", against="Rome", method="gradient")
    place = 5

    def metric(scale: float) -> float:
        def scaled(value: torch.Tensor, hook: object) -> torch.Tensor:
            value = value.clone()
            value[:, place] *= scale
            return value

        with tiny_llama.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", scaled)]):
            return token_saliency(tiny_llama, QUESTION, toward="Berlin", against="Rome").value

    slope = (metric(1.01) - metric(0.99)) / 0.02
    assert float(found.values[place]) == pytest.approx(slope, rel=0.03, abs=0.02)


def test_occlusion_is_the_fall_when_a_token_is_replaced(tiny_gpt2: HookedModel) -> None:
    text = "Berlin is the capital of"
    found = token_saliency(tiny_gpt2, text, chat=False)
    tokenizer = tiny_gpt2.tokenizer
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    own = tiny_gpt2(ids)[0, -1].log_softmax(-1)
    answer = int(own.argmax())
    for place in range(ids.shape[1]):
        changed = ids.clone()
        changed[0, place] = tokenizer.pad_token_id
        other = tiny_gpt2(changed)[0, -1].log_softmax(-1)
        expected = float(own[answer] - other[answer])
        assert float(found.values[place]) == pytest.approx(expected, abs=1e-4)
    assert found.value == pytest.approx(float(own[answer]), abs=1e-4)
    assert found.unit == "nats"


def test_the_table_names_tokens_and_spans(tiny_llama: HookedModel) -> None:
    found = token_saliency(tiny_llama, QUESTION, false_object="Germany")
    table = found.to_dataframe()
    marked = table.loc[table["span"] == "object", "token"]
    assert "".join(marked).strip() == "Germany"
    assert table["saliency"].tolist() == pytest.approx(found.values.tolist())


def test_mistakes_are_said(tiny_llama: HookedModel) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"against": "Rome"}, "against needs toward"),
        ({"toward": "Rome", "against": "Rome"}, "same tokens"),
    )
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            token_saliency(tiny_llama, QUESTION, **options)
    with pytest.raises(UserError, match="known: gradient, occlusion"):
        check_saliency_method("magic")
    with pytest.raises(UserError, match="2 tokens but 1 values"):
        TokenSaliency(("a", "b"), torch.zeros(1), "m", "nats", 0.0)
