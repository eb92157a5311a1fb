"""Attribution is the derivative of the exact effect."""

from typing import Any

import pytest
import torch

from interp.models import HookedModel
from interp.patching import (
    ActivationEdit,
    AttentionEdit,
    LogitDifference,
    LogProbability,
    TokenBatch,
    attribute_heads,
    record_run,
    sweep_heads,
)

PROMPTS = [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22, 23, 24], [40, 41, 42, 43, 44, 45, 46]]
SPANS = [(5, 7), (1, 2), (2, 4)]
BATCH = TokenBatch.from_lists(PROMPTS)
METRICS = (
    LogitDifference(torch.tensor([3, 14, 15]), torch.tensor([65, 35, 89])),
    LogProbability(torch.tensor([3, 14, 15])),
)


def slope(model: Any, small: Any) -> torch.Tensor:
    """(metric(ε) − metric(−ε)) / 2ε of the exact sweep; ``small(ε)`` makes the edit.

    Of every second head, NaN elsewhere.
    """
    step = 2e-2
    heads = [
        (layer, head)
        for layer in range(model.cfg.n_layers)
        for head in range(layer % 2, model.cfg.n_heads, 2)
    ]
    up, down = (
        sweep_heads(model, BATCH, small(size), metrics=METRICS, heads=heads, progress=False)
        for size in (step, -step)
    )
    return (up - down) / (2 * step)


def agrees(estimate: torch.Tensor, reference: torch.Tensor) -> None:
    measured = ~reference.isnan()
    assert estimate.shape == reference.shape
    assert bool(estimate.isfinite().all())
    assert float(reference[measured].abs().max()) > 0.05
    torch.testing.assert_close(estimate[measured], reference[measured], rtol=0.03, atol=2e-3)


def test_output_attribution_is_the_slope_of_the_exact_effect(family: HookedModel) -> None:
    at = BATCH.span_mask(SPANS)
    estimate = attribute_heads(family, BATCH, ActivationEdit(at), metrics=METRICS, progress=False)
    # Zeroing moves z by −z: the slope is that of a scale that falls below one.
    agrees(estimate, slope(family, lambda size: ActivationEdit(at, scale=1.0 - size)))


def test_output_attribution_towards_a_source_is_the_slope(tiny_llama: HookedModel) -> None:
    at, first = BATCH.span_mask(SPANS), 2
    run = record_run(tiny_llama, BATCH)
    z = run.z[:, :, first:]
    generator = torch.Generator().manual_seed(0)
    source = z + 0.5 * torch.randn(z.shape, generator=generator)
    edit = ActivationEdit(at, source=source, first=first)

    def small(size: float) -> ActivationEdit:
        return ActivationEdit(at, source=z + size * (source - z), first=first)

    for budget in (None, 190_000):  # a chunk of one prompt is narrower than its source
        estimate = attribute_heads(
            tiny_llama, BATCH, edit, metrics=METRICS, budget=budget, progress=False
        )
        agrees(estimate, slope(tiny_llama, small))


def test_attention_attribution_is_the_slope_along_the_edited_pattern(
    tiny_gpt2: HookedModel, full_logits: Any
) -> None:
    """The pattern moves by ε towards the edited one, in a literal run with a hook."""
    edit, step = AttentionEdit(BATCH.span_mask(SPANS)), 2e-2
    estimate = attribute_heads(tiny_gpt2, BATCH, edit, metrics=METRICS[:1], progress=False)
    expected = torch.full_like(estimate, torch.nan)
    for prompt, tokens in enumerate(PROMPTS):
        start, end = SPANS[prompt]
        for layer in range(tiny_gpt2.cfg.n_layers):
            for head in range((prompt + layer) % 2, tiny_gpt2.cfg.n_heads, 2):

                def towards(size: float, at: Any = (layer, head, start, end)) -> Any:
                    layer, head, start, end = at

                    def hook_function(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
                        cut = pattern.clone()
                        cut[0, head, end:, start:end] = 0
                        cut = cut / cut.sum(-1, keepdim=True)
                        return pattern + size * (cut - pattern)

                    return [(f"blocks.{layer}.attn.hook_pattern", hook_function)]

                up, down = (full_logits(tiny_gpt2, tokens, towards(size)) for size in (step, -step))
                answer, wrong = METRICS[0].answer[prompt], METRICS[0].wrong[prompt]
                difference = (up - down)[answer] - (up - down)[wrong]
                expected[0, prompt, layer, head] = difference / (2 * step)
    agrees(estimate, expected)


@pytest.mark.parametrize("site", ["output", "attention"])
def test_batches_and_their_sizes_do_not_matter(family: HookedModel, site: str) -> None:
    def attribute(order: list[int], budget: int | None) -> torch.Tensor:
        batch = TokenBatch.from_lists([PROMPTS[index] for index in order])
        at = batch.span_mask([SPANS[index] for index in order])
        values = attribute_heads(
            family,
            batch,
            ActivationEdit(at) if site == "output" else AttentionEdit(at),
            metrics=[METRICS[0].take(torch.tensor(order))],
            budget=budget,
            progress=False,
        )
        return values[:, torch.tensor(order).argsort()]

    together = attribute([0, 1, 2], None)
    assert float(together.abs().max()) > 0.05
    torch.testing.assert_close(attribute([2, 0, 1], 100_000), together, rtol=0, atol=5e-5)


def test_no_gradient_is_left_behind(tiny_llama: HookedModel) -> None:
    edit = ActivationEdit(BATCH.span_mask(SPANS))
    values = attribute_heads(tiny_llama, BATCH, edit, metrics=METRICS, progress=False)
    assert not values.requires_grad
    assert all(parameter.grad is None for parameter in tiny_llama.parameters())


def test_attribution_works_where_gradients_are_switched_off(tiny_llama: HookedModel) -> None:
    edit = ActivationEdit(BATCH.span_mask(SPANS))
    expected = attribute_heads(tiny_llama, BATCH, edit, metrics=METRICS, progress=False)
    with torch.no_grad():
        values = attribute_heads(tiny_llama, BATCH, edit, metrics=METRICS, progress=False)
    assert torch.equal(values, expected)
