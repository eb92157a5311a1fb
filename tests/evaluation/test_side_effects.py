"""The cost on neutral text: none without heads, as computed literally with them."""

from importlib import import_module
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.evaluation import neutral_sentences, side_effects
from interp.evaluation.side_effects import content_span
from interp.heads import HeadSet
from interp.interventions import Constraint, constrain
from interp.models import HookedModel

SENTENCES = (
    "Rain fell on the mountains all through the night.",
    "A short one.",
    "The old baker opened his shop early, and the smell of bread filled the narrow street.",
)


def many(model: Any, site: Any) -> HeadSet:
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    return HeadSet(tuple((layer, head) for layer in layers for head in heads), site)


@pytest.mark.parametrize("site", ["output", "attention"])
def test_no_heads_cost_nothing(tiny_llama: HookedModel, site: Any) -> None:
    cost = side_effects(tiny_llama, Constraint(HeadSet((), site)), sentences=SENTENCES)
    assert cost.to_dict() == {"neutral_kl": 0.0, "neutral_perplexity_ratio": 1.0, "n": 3}


@pytest.mark.parametrize(("site", "mode"), [("output", "zero"), ("attention", "zero")])
@torch.no_grad()
def test_the_cost_equals_the_literal_computation(
    tiny_llama: HookedModel, site: Any, mode: Any
) -> None:
    constraint = Constraint(many(tiny_llama, site), mode)
    cost = side_effects(tiny_llama, constraint, sentences=SENTENCES)
    divergences, surprisals = [], ([], [])
    for sentence in SENTENCES:
        encoding = tiny_llama.tokenizer(sentence, return_offsets_mapping=True)
        start, end = content_span(sentence)
        held = [
            index
            for index, (left, right) in enumerate(encoding["offset_mapping"])
            if left < end and right > start and sentence[left:right].strip()
        ]
        ids = torch.tensor([encoding["input_ids"]])
        free = tiny_llama(ids)[0].log_softmax(-1)
        with constrain(tiny_llama, constraint, at=[(held[0], held[-1] + 1)]):
            bound = tiny_llama(ids)[0].log_softmax(-1)
        for position in range(held[-1] + 1, ids.shape[1] - 1):
            p, q = free[position], bound[position]
            divergences.append(float((p.exp() * (p - q)).sum()))
            for run, found in zip((free, bound), surprisals, strict=True):
                found.append(-float(run[position, ids[0, position + 1]]))
    assert cost.neutral_kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    assert cost.neutral_kl > 1e-3
    mean = [sum(found) / len(found) for found in surprisals]
    expected = torch.tensor(mean[1] - mean[0]).exp().item()
    assert cost.neutral_perplexity_ratio == pytest.approx(expected, rel=1e-3)


def test_the_cost_does_not_depend_on_the_parts(
    tiny_llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraint = Constraint(many(tiny_llama, "output"))
    whole = side_effects(tiny_llama, constraint, sentences=SENTENCES)
    monkeypatch.setattr(import_module("interp.evaluation.side_effects"), "PART_LOGITS", 1)
    by_one = side_effects(tiny_llama, constraint, sentences=SENTENCES)
    assert by_one.neutral_kl == pytest.approx(whole.neutral_kl, rel=1e-5)
    assert by_one.neutral_perplexity_ratio == pytest.approx(
        whole.neutral_perplexity_ratio, rel=1e-5
    )


def test_the_word_is_the_longest_of_the_first_half() -> None:
    sentence = "The mountain rises above an extraordinarily green valley."
    assert sentence[slice(*content_span(sentence))] == "mountain"
    assert content_span("Hello") == (0, 5)


def test_the_shipped_text_is_there_and_its_words_are_found(tiny_llama: HookedModel) -> None:
    sentences = neutral_sentences()
    assert len(sentences) >= 20
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        start, end = content_span(sentence)
        assert sentence[start:end].isalpha()
        assert end < len(sentence) * 0.75
    assert side_effects(tiny_llama, Constraint(many(tiny_llama, "output"))).neutral_kl > 0


def test_sentences_with_nothing_to_compare_do_not_count(tiny_llama: HookedModel) -> None:
    constraint = Constraint(many(tiny_llama, "attention"), "zero")
    some = side_effects(tiny_llama, constraint, sentences=SENTENCES)
    more = side_effects(tiny_llama, constraint, sentences=(*SENTENCES, "Rome"))
    assert more.n == some.n == len(SENTENCES)
    assert more.neutral_kl == pytest.approx(some.neutral_kl, rel=1e-4)
    with pytest.raises(UserError, match="no neutral sentence has two tokens behind"):
        side_effects(tiny_llama, constraint, sentences=("Rome",))
