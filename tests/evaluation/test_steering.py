"""Steering: what is added where, in sweeps, in forward passes and while decoding."""

from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.evaluation.baselines.method_score import score
from interp.evaluation.baselines.steering import (
    Steering,
    steer,
    steered_positions,
    steered_preference,
)
from interp.forward.generate import generate_tokens
from interp.models import HookedModel
from interp.patching import TokenBatch, hooked, last_logits
from interp.premises import Premises, load_premises
from interp.premises.encode import EncodedPrompt, encode_premises, encode_questions

PLACES = ("object", "all", "answer")
COMPONENTS = ("resid_post", "z")


@pytest.fixture(scope="module")
def premises() -> Premises:
    return load_premises("capitals", limit=3).with_templates(["why", "famous"])


def steering_of(model: HookedModel, component: Any, place: Any) -> Steering:
    cfg = model.cfg
    shape = (cfg.n_layers, 1, cfg.d_model)
    if component == "z":
        shape = (cfg.n_layers, cfg.n_heads, cfg.d_head)
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    units = ((0, 0),) if component == "resid_post" else ((0, 1), (1, 0), (1, 3))
    return Steering(vectors, units, component, place, strength=0.7)


def bare_prompts(model: HookedModel, premises: Premises) -> tuple[EncodedPrompt, ...]:
    return encode_questions(model.tokenizer, premises, "false")


def test_columns_by_hand() -> None:
    """Two prompts of 3 and 5 tokens, whose bare questions have 2 and 4."""
    batch = TokenBatch.from_lists([[1, 2, 3], [1, 2, 3, 4, 5]])
    columns = [
        steered_positions(place, batch, [(0, 1), (1, 3)], lengths=[2, 4]).int().tolist()  # type: ignore[arg-type]
        for place in PLACES
    ]
    assert columns == [
        [[0, 0, 1, 0, 0], [0, 1, 1, 0, 0]],
        [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
        [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]],
    ]


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_sweep_is_whole_runs_with_the_vectors_added(
    tiny_llama: HookedModel, premises: Premises, component: Any, place: Any
) -> None:
    steering = steering_of(tiny_llama, component, place)
    encoded = encode_premises(tiny_llama.tokenizer, premises)
    found = steered_preference(tiny_llama, premises, steering, kind="false", progress=False)
    lengths = [len(one.tokens) for one in bare_prompts(tiny_llama, premises)]
    for index, item in enumerate(encoded.items):
        start, end = {
            "object": item.false.object,
            "all": (0, len(item.false.tokens)),
            "answer": (lengths[index] - 1, len(item.false.tokens)),
        }[place]

        def add(value: torch.Tensor, hook: Any, start: int = start, end: int = end) -> torch.Tensor:
            layer = int(hook.name.split(".")[1])
            value = value.clone()
            if component == "resid_post":
                value[0, start:end] += 0.7 * steering.vectors[layer, 0]
            else:
                for _, head in [unit for unit in steering.units if unit[0] == layer]:
                    value[0, start:end, head] += 0.7 * steering.vectors[layer, head]
            return value

        name = "hook_resid_post" if component == "resid_post" else "attn.hook_z"
        layers = sorted({layer for layer, _ in steering.units})
        hooks = [(f"blocks.{layer}.{name}", add) for layer in layers]
        with torch.no_grad(), hooked(tiny_llama, hooks):
            logits = last_logits(tiny_llama, TokenBatch.from_lists([item.false.tokens]))[0, -1]
        difference = logits[item.true_token] - logits[item.false_token]
        assert found.logit_difference[index, 0] == pytest.approx(float(difference), abs=1e-4)
    plain = steered_preference(
        tiny_llama, premises, steering.with_strength(0.0), kind="false", progress=False
    )
    assert np.abs(found.logit_difference - plain.logit_difference).max() > 0.05


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("place", PLACES)
def test_decoding_is_steered_as_whole_runs_are(
    tiny_llama: HookedModel, premises: Premises, component: Any, place: Any
) -> None:
    """Token by token without a cache, each time the whole text under ``steer``."""
    steering = steering_of(tiny_llama, component, place).with_strength(2.0)
    premises = premises.first(2)
    prompts = bare_prompts(tiny_llama, premises)
    scored = score(
        tiny_llama,
        premises,
        steering,
        name="s",
        answers=("false",),
        max_new_tokens=3,
        progress=False,
    )
    texts = scored.answers["false"]
    assert scored.seconds["false"] > 0
    for prompt, text in zip(prompts, texts, strict=True):
        ids = list(prompt.tokens)
        for _ in range(3):
            batch = TokenBatch.from_lists([ids])
            at = steered_positions(place, batch, [prompt.object], lengths=[len(prompt.tokens)])
            with torch.no_grad(), steer(tiny_llama, steering, at):
                ids.append(int(last_logits(tiny_llama, batch)[0, -1].argmax()))
        new = tiny_llama.tokenizer.decode(ids[len(prompt.tokens) :], skip_special_tokens=True)
        assert text == new.strip()
    plain = generate_tokens(
        tiny_llama, [one.tokens for one in prompts], max_new_tokens=3, progress=False
    )
    assert tuple(plain) != texts


def test_nothing_stays_behind(tiny_llama: HookedModel) -> None:
    batch = TokenBatch.from_lists([[5, 6, 7]])
    steering = steering_of(tiny_llama, "resid_post", "all")
    with torch.no_grad():
        before = last_logits(tiny_llama, batch)
        with steer(tiny_llama, steering, batch.mask):
            assert not torch.equal(before, last_logits(tiny_llama, batch))
            with pytest.raises(UserError, match="made for 1 prompts of 3 tokens, but 1 of 2 run"):
                last_logits(tiny_llama, TokenBatch.from_lists([[5, 6]]))
        assert torch.equal(before, last_logits(tiny_llama, batch))


def test_bad_input(tiny_llama: HookedModel) -> None:
    vectors = torch.zeros(2, 1, 4)
    with pytest.raises(UserError, match=r"there is no vector for \(2, 0\)"):
        Steering(vectors, ((2, 0),))
    with pytest.raises(UserError, match="must be finite"):
        Steering(vectors / 0, ((1, 0),))
    at = torch.ones(1, 3, dtype=torch.bool)
    wide = Steering(torch.zeros(9, 1, 32), ((8, 0),))
    with (
        pytest.raises(UserError, match=r"unit \(8, 0\) does not exist"),
        steer(tiny_llama, wide, at),
    ):
        pass
