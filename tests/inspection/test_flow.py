"""Information flow: by hand, by finite differences, and where it is planted."""

from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.inspection.flow import (
    PARTS,
    InformationFlow,
    information_flow,
    last_row_saliency,
    part_means,
)
from interp.models import HookedModel
from interp.patching import TokenBatch, hooked, last_logits
from interp.premises import Premises, load_premises
from interp.premises.encode import encode_premises

STEP = 1e-2


def last_log_probs(
    model: Any, tokens: list[int], layer: int, changes: torch.Tensor
) -> torch.Tensor:
    """Of every next token, with each change added to the last row of one layer's pattern.

    ``changes`` is Float[change head key]; each is a prompt of its own.
    """

    def add(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        pattern = pattern.clone()
        pattern[:, :, -1] += changes
        return pattern

    with torch.no_grad(), hooked(model, [(f"blocks.{layer}.attn.hook_pattern", add)]):
        logits = last_logits(model, TokenBatch.from_lists([tokens] * len(changes)))[:, -1]
    return logits.double().log_softmax(-1)


def by_finite_differences(model: Any, tokens: list[int], answer: int) -> torch.Tensor:
    """|Σ_h A ⊙ ∂L/∂A| of the last row, every weight moved by hand: [layer pos]."""
    patterns: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def read(pattern: torch.Tensor, hook: object) -> None:
            patterns[layer] = pattern[0, :, -1].clone()

        return f"blocks.{layer}.attn.hook_pattern", read

    with torch.no_grad(), hooked(model, [keep(layer) for layer in range(model.cfg.n_layers)]):
        last_logits(model, TokenBatch.from_lists([tokens]))
    found = torch.zeros(model.cfg.n_layers, len(tokens), dtype=torch.float64)
    for layer, pattern in patterns.items():
        steps = STEP * torch.eye(pattern.numel()).view(-1, *pattern.shape)
        moved = last_log_probs(model, tokens, layer, torch.cat([steps, -steps]))
        up, down = (-moved[:, answer]).chunk(2)
        slopes = ((up - down) / (2 * STEP)).view_as(pattern)
        found[layer] = (pattern * slopes).sum(dim=0)
    return found.abs()


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_the_saliency_is_that_of_finite_differences(
    family: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    tokens = model.tokenizer("Why is Paris?")["input_ids"]
    batch = TokenBatch.from_lists([tokens[1:], tokens])
    answers = torch.tensor([300, 301])
    found = last_row_saliency(model, batch, answers, progress=False)
    expected = by_finite_differences(model, list(tokens), 301)
    np.testing.assert_allclose(found[1].numpy(), expected.numpy(), rtol=2e-2, atol=2e-5)
    assert expected.max() > 1e-3
    # Padding is drawn on by nothing, and moves nothing.
    assert (found[0, :, 0] == 0).all()
    alone = last_row_saliency(
        model, TokenBatch.from_lists([tokens[1:]]), answers[:1], progress=False
    )
    np.testing.assert_allclose(found[:1, :, 1:].numpy(), alone.numpy(), atol=5e-5)


def test_means_over_parts_by_hand() -> None:
    saliency = torch.tensor([[[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 4.0, 8.0]]])
    parts = torch.tensor([[[0, 0, 1, 0]], [[0, 1, 0, 0]], [[1, 0, 0, 1]]]).bool()
    assert part_means(saliency, parts).tolist() == [[[3.0, 2.0, 3.5], [4.0, 0.0, 4.0]]]


def test_batches_of_any_size_give_the_same(tiny_llama: HookedModel) -> None:
    premises = load_premises("capitals", limit=3)
    encoded = encode_premises(tiny_llama.tokenizer, premises)
    whole = information_flow(tiny_llama, encoded, progress=False)
    pieces = information_flow(tiny_llama, encoded, batch_tokens=1, progress=False)
    np.testing.assert_allclose(whole.values.numpy(), pieces.values.numpy(), atol=5e-5)
    assert whole.values.shape == (12, 3, 3)
    assert (whole.values >= 0).all()


def test_the_planted_reader_shows_as_flow_from_the_object(
    planted: HookedModel, honest: HookedModel, planted_premises: Premises
) -> None:
    """READER copies the false object in layer 1; in the honest model nothing draws on it."""
    some = planted_premises.first(8)
    table = information_flow(planted, some, progress=False).to_dataframe()
    of_object = table[table["part"] == "object"].set_index("layer")["saliency"]
    assert of_object.idxmax() == 1
    assert of_object[1] > 0.5
    control = information_flow(honest, some, progress=False).to_dataframe()
    assert control[control["part"] == "object"]["saliency"].max() < 0.05


def test_table_and_figure_by_hand() -> None:
    values = torch.tensor([[[1.0, 2.0, 3.0]], [[3.0, 4.0, 5.0]]])
    flow = InformationFlow(values, ("a", "b"), ("why", "why"))
    table = flow.to_dataframe()
    assert table["part"].tolist() == list(PARTS)
    assert table["saliency"].tolist() == [2.0, 3.0, 4.0]
    assert table["ci_low"].tolist() == [1.0, 2.0, 3.0]
    assert table["ci_high"].tolist() == [3.0, 4.0, 5.0]
    lines = flow.plot().to_plotly_json()["data"]
    assert [line["name"] for line in lines] == ["subject", "false object", "other tokens"]
    assert [list(line["y"]) for line in lines] == [[2.0], [3.0], [4.0]]
    assert "saliency" in flow._repr_html_()


def test_bad_input(tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError, match="2 prompts but 1 subjects"):
        InformationFlow(torch.zeros(2, 1, 3), ("a",), ("why", "why"))
    with pytest.raises(UserError, match="1 prompts but 2 answers"):
        last_row_saliency(tiny_llama, TokenBatch.from_lists([[1, 2]]), torch.tensor([3, 4]))
