"""What is attached to a plain model does what ``constrain`` does on the hooked one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

import interp
import interp.models
from interp.attached import attach
from interp.attached.head_mask import causal_mask, cut_pairs, mask_by_head
from interp.heads import HeadSet
from interp.interventions import Constraint, Intervention
from interp.models import HookedModel
from tests.attached.architectures import SPECIES, make

PROMPTS = [[5, 9, 7, 8, 30, 31, 32, 12, 14], [20, 21, 22, 23], [40, 41, 42, 43, 44, 45]]
SPANS = [(4, 6), None, (0, 2)]
HEADS = ((0, 1), (0, 3), (1, 0))
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-4}


def part(site: Any, mode: Any = "zero", factor: float = 0.0, heads: Any = HEADS) -> Constraint:
    return Constraint(HeadSet(heads, site), mode, factor)


UNDER = Intervention(
    (
        part("output", heads=((0, 2),)),
        part("output", "scale", -1.0, heads=((1, 1),)),
        part("attention", heads=((0, 1), (1, 0))),
        part("attention", "scale", 0.2, heads=((0, 3),)),
    )
)
"""Both sites and both modes; in layer 1 all masks are of True and False."""


class Pair(NamedTuple):
    plain: Any
    hooked: HookedModel


def padded(side: str) -> dict[str, torch.Tensor]:
    """The prompts as a batch, with padding on one side."""
    width = max(map(len, PROMPTS))
    rows, masks = [], []
    for ids in PROMPTS:
        fill = width - len(ids)
        left = fill if side == "left" else 0
        rows.append([3] * left + ids + [3] * (fill - left))
        masks.append([0] * left + [1] * len(ids) + [0] * (fill - left))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


@torch.no_grad()
def real_logits(hf_model: Any, side: str = "left") -> torch.Tensor:
    """The logits at all real tokens, one behind the other."""
    batch = padded(side)
    mask = batch["attention_mask"]
    places = {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
    if type(hf_model).__name__ == "OPTForCausalLM":
        places = {}  # it counts by the mask
    return hf_model(**batch, **places).logits[mask.bool()]


@torch.no_grad()
def greedy(hf_model: Any, **more: Any) -> torch.Tensor:
    return hf_model.generate(
        **padded("left"), max_new_tokens=6, do_sample=False, pad_token_id=3, **more
    )


@pytest.fixture(scope="module", params=SPECIES)
def pair(request: pytest.FixtureRequest, plain_tokenizer: Any) -> Pair:
    plain = make(request.param, plain_tokenizer)
    hooked = interp.models.from_hf(make(request.param, plain_tokenizer), plain_tokenizer)
    return Pair(plain, hooked)


def test_it_equals_the_hooked_model(pair: Pair, plain_tokenizer: Any) -> None:
    free = real_logits(pair.plain)
    with interp.constrain(pair.hooked, UNDER, at=SPANS):
        expected = real_logits(pair.hooked.original_model)
        said = greedy(pair.hooked.original_model)
    with attach(pair.plain, plain_tokenizer, UNDER, at=SPANS) as model:
        assert model is pair.plain
        found = real_logits(model)
        right = real_logits(model, "right")
        answers = greedy(model)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(right, found, **CLOSE)
    assert torch.equal(answers, said)
    lengths = [len(ids) for ids in PROMPTS]
    moved = [float(one.abs().max()) for one in (found - free).split(lengths)]
    assert min(moved[0], moved[2]) > 1e-2
    assert moved[1] < 1e-4  # not constrained
    assert torch.equal(real_logits(pair.plain), free)


@pytest.mark.parametrize("site", ["output", "attention"])
def test_each_site_alone_equals_the_hooked_model(
    tiny_llama: HookedModel, hf_factory: Callable[..., Any], chat_tokenizer: Any, site: str
) -> None:
    under = part(site)
    with interp.constrain(tiny_llama, under, at=SPANS):
        expected = real_logits(tiny_llama.original_model)
    with attach(hf_factory("llama", chat_tokenizer), chat_tokenizer, under, at=SPANS) as model:
        torch.testing.assert_close(real_logits(model), expected, **CLOSE)


def test_eager_attention_gives_the_same(plain_tokenizer: Any) -> None:
    found = []
    for name in ("sdpa", "eager"):
        hf_model = make("mistral", plain_tokenizer, attn_implementation=name)
        with attach(hf_model, plain_tokenizer, UNDER, at=SPANS) as model:
            found.append(real_logits(model))
    torch.testing.assert_close(*found, **CLOSE)


def test_heads_of_another_layer_do_something_else(plain_tokenizer: Any) -> None:
    hf_model = make("llama", plain_tokenizer)
    found = []
    for layer in (0, 1):
        one = part("attention", heads=((layer, 2),))
        with attach(hf_model, plain_tokenizer, one, at=SPANS) as model:
            found.append(real_logits(model))
    assert float((found[0] - found[1]).abs().max()) > 1e-2


def test_the_pairs_that_are_cut() -> None:
    """Key 1 of four is cut for the queries behind it; the second prompt has none."""
    at = torch.tensor([[False, True, False], [False, False, False]])
    pairs = cut_pairs(at, first_query=0, n_queries=4, first_key=0, n_keys=4)
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, 2:, 1] = True
    assert torch.equal(pairs, expected)
    # A window that has dropped key 0, then one that has dropped key 1 too.
    for first_key, cut in ((1, [True, False, False]), (2, [False, False, False])):
        step = cut_pairs(at, first_query=4, n_queries=1, first_key=first_key, n_keys=3)
        assert step[0, 0].tolist() == cut
        assert not step[1].any()


def test_the_mask_of_two_heads() -> None:
    causal = causal_mask(
        first_query=0, n_queries=2, first_key=0, n_keys=2, device=torch.device("cpu")
    )
    assert causal[0, 0].tolist() == [[True, False], [True, True]]
    pairs = torch.tensor([[[False, False], [True, False]]])
    heads = torch.tensor([False, True])
    cut = mask_by_head(causal, pairs, heads, factor=0.0, dtype=torch.float32)
    assert cut[0, 0].tolist() == [[True, False], [True, True]]
    assert cut[0, 1].tolist() == [[True, False], [False, True]]
    weaker = mask_by_head(causal, pairs, heads, factor=0.5, dtype=torch.float32)
    lowest = torch.finfo(torch.float32).min
    expected = torch.tensor([[0.0, lowest], [float(torch.tensor(0.5).log()), 0.0]])
    torch.testing.assert_close(weaker[0, 1], expected)
    torch.testing.assert_close(weaker[0, 0], torch.tensor([[0.0, lowest], [0.0, 0.0]]))


@pytest.mark.parametrize("steps", [0, 2])
def test_a_constraint_that_ends(
    tiny_llama: HookedModel, hf_factory: Callable[..., Any], chat_tokenizer: Any, steps: int
) -> None:
    """Without a cache the slow reference runs the whole text again for every token."""
    heads = HeadSet(tuple((layer, head) for layer in range(2) for head in range(4)), "attention")
    under = Constraint(heads, "scale", 0.1, decoding_steps=steps)
    with interp.constrain(tiny_llama, under, at=SPANS):
        expected = scores_of(tiny_llama.original_model)
    hf_model = hf_factory("llama", chat_tokenizer)
    with attach(hf_model, chat_tokenizer, under, at=SPANS):
        found, slow = scores_of(hf_model), scores_of(hf_model, use_cache=False)
    with attach(hf_model, chat_tokenizer, Constraint(heads, "scale", 0.1), at=SPANS):
        always = scores_of(hf_model)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(slow, found, **CLOSE)
    torch.testing.assert_close(found[:, : steps + 1], always[:, : steps + 1], **CLOSE)
    assert float((found - always)[:, steps + 1].abs().max()) > 1e-3


@torch.no_grad()
def scores_of(hf_model: Any, **more: Any) -> torch.Tensor:
    """Logits [prompt step d_vocab] of five tokens that are always the same."""

    def always(batch: int, ids: torch.Tensor) -> list[int]:
        return [60 + ids.shape[0]]

    out = hf_model.generate(
        **padded("left"),
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=3,
        prefix_allowed_tokens_fn=always,
        output_logits=True,
        return_dict_in_generate=True,
        **more,
    )
    return torch.stack(out.logits, dim=1)


def test_strengths_by_hand() -> None:
    """Strength 1 cuts, 0.5 halves the weight, and 0 does nothing."""
    causal = causal_mask(
        first_query=1, n_queries=1, first_key=0, n_keys=2, device=torch.device("cpu")
    )
    pairs = torch.tensor([True, False]).expand(3, 1, 2)
    factor = 1 - torch.tensor([1.0, 0.5, 0.0])
    mask = mask_by_head(causal, pairs, torch.tensor([True]), factor=factor, dtype=torch.float32)
    torch.testing.assert_close(
        mask.softmax(dim=-1)[:, 0, 0], torch.tensor([[0.0, 1.0], [1 / 3, 2 / 3], [0.5, 0.5]])
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_modes_with_values_of_other_prompts_equal_the_hooked_model(
    name: str, plain_tokenizer: Any
) -> None:
    plain = make(name, plain_tokenizer)
    hooked = interp.models.from_hf(make(name, plain_tokenizer), plain_tokenizer)
    free, found = real_logits(plain), {}
    d_head = hooked.cfg.d_head
    mean = torch.randn(len(hooked.blocks), 4, d_head, generator=torch.Generator().manual_seed(0))
    ways: dict[str, dict[str, Any]] = {"mean": {"mean": mean}, "resample": {"neutral": "Spain"}}
    for mode, more in ways.items():
        under = part("output", mode)
        with interp.constrain(hooked, under, at=SPANS, **more):
            expected, said = real_logits(hooked.original_model), greedy(hooked.original_model)
        with attach(plain, plain_tokenizer, under, at=SPANS, **more):
            found[mode] = real_logits(plain)
            right = real_logits(plain, "right")
            answers = greedy(plain)
        torch.testing.assert_close(found[mode], expected, **CLOSE)
        torch.testing.assert_close(right, expected, **CLOSE)
        torch.testing.assert_close(answers, said)
        assert float((found[mode] - free).abs().max()) > 1e-2
    with attach(plain, plain_tokenizer, part("output", "resample"), at=SPANS, neutral="Paris"):
        other = real_logits(plain)
    assert float((other - found["resample"]).abs().max()) > 1e-3  # another word
    torch.testing.assert_close(real_logits(plain), free)
