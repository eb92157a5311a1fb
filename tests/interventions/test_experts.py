"""Experts under a constraint: gates by hand, and models whose weights say the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import UserError
from interp.interventions import ExpertConstraint, constrain, edit_gates, projections_of
from interp.interventions.expert_constraint import check_expert_mode, check_place
from interp.models import HookedModel
from interp.moelora import hooked
from interp.moelora.layer import MoELoRALinear
from interp.patching import LogitDifference, TokenBatch, last_logits, patch_heads

CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 5e-5}
PROMPTS = [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22, 23], [40, 41, 42, 43, 44, 45]]
NAME, MODULE = "blocks.1.attn.q", "model.layers.1.self_attn.q_proj"


# Two tokens and four experts; the second token is not routed to expert 1.
GATES = torch.tensor([[0.0, 0.25, 0.75, 0.0], [0.5, 0.0, 0.0, 0.5]])


@pytest.mark.parametrize(
    ("mode", "experts", "factor", "expected"),
    [
        ("off", [1], 0.0, [[0.0, 0.0, 0.75, 0.0], [0.5, 0.0, 0.0, 0.5]]),
        ("off_renormalised", [1], 0.0, [[0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.0, 0.5]]),
        ("off_renormalised", [1, 2], 0.0, [[0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]]),
        ("force", [1], 0.0, [[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]),
        ("swap", [1, 3], 0.0, [[0.0, 0.0, 0.75, 0.25], [0.5, 0.5, 0.0, 0.0]]),
        ("scale", [1, 3], -2.0, [[0.0, -0.5, 0.75, 0.0], [0.5, 0.0, 0.0, -1.0]]),
    ],
)
def test_gates_by_hand(mode: Any, experts: list[int], factor: float, expected: Any) -> None:
    before = GATES.clone()
    assert edit_gates(GATES, experts, mode, factor=factor).tolist() == expected
    assert torch.equal(GATES, before)


@pytest.mark.parametrize(
    ("experts", "mode", "said"),
    [
        ([4], "off", "there is no expert 4: the gates have 4"),
        ([-1], "off", "an expert"),
        ([1, 2], "force", "takes one expert of each projection"),
    ],
)
def test_wrong_experts_are_told(experts: Any, mode: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        edit_gates(GATES, experts, mode)


def test_only_a_hooked_model_has_projections() -> None:
    with pytest.raises(UserError, match=r"hook the adapted model with interp\.moelora\.hooked"):
        projections_of("smollm2-135m")


def test_unnormalised_gates_that_lose_an_expert_sum_to_one() -> None:
    gates = torch.tensor([[0.2, 0.3, 0.1], [0.0, 0.3, 0.1]])
    new = edit_gates(gates, [0], "off_renormalised")
    torch.testing.assert_close(new, torch.tensor([[0.0, 0.75, 0.25], [0.0, 0.3, 0.1]]))


@given(
    st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_gates_obey_their_laws(values: list[float], one: int, other: int) -> None:
    gates = torch.tensor([values])
    a, b = one % len(values), other % len(values)
    off = edit_gates(gates, [a], "off")
    assert torch.equal(edit_gates(off, [a], "off"), off)
    assert torch.equal(edit_gates(gates, [a], "scale", factor=1.0), gates)
    assert torch.equal(edit_gates(gates, [a], "scale", factor=0.0), off)
    assert edit_gates(gates, [a], "force").sum() == 1
    if a != b:
        assert torch.equal(edit_gates(edit_gates(gates, [a, b], "swap"), [a, b], "swap"), gates)


def layer_of(adapted: Any, module: str = MODULE) -> MoELoRALinear:
    found = adapted.base_model.model.get_submodule(module)
    assert isinstance(found, MoELoRALinear)
    return found


def scaled(factor: float) -> Callable[[MoELoRALinear], None]:
    def change(layer: MoELoRALinear) -> None:
        layer.moelora_B["default"][:, 2:4] *= factor

    return change


def merge_expert_1(layer: MoELoRALinear) -> None:
    """The projection with expert 1 in its weight, and nothing routed."""
    down, up = layer.moelora_A["default"], layer.moelora_B["default"]
    base: Any = layer.get_base_layer()
    base.weight += 2.0 * up[:, 2:4] @ down[2:4]  # lora_alpha / r = 4 / 2
    up.zero_()


def exchange_1_and_3(layer: MoELoRALinear) -> None:
    """The experts change places and the router does not know."""
    down, up = layer.moelora_A["default"], layer.moelora_B["default"]
    for weight in (down, up.T):
        kept = weight[2:4].clone()
        weight[2:4] = weight[6:8]
        weight[6:8] = kept


WEIGHTS: list[tuple[ExpertConstraint, Callable[[MoELoRALinear], None]]] = [
    (ExpertConstraint([(NAME, 1)]), scaled(0.0)),
    (ExpertConstraint([(NAME, 1)], "scale", -1.5), scaled(-1.5)),
    (ExpertConstraint([(NAME, 1)], "force"), merge_expert_1),
    (ExpertConstraint([(NAME, 1), (NAME, 3)], "swap"), exchange_1_and_3),
]


@pytest.mark.parametrize(("one", "change"), WEIGHTS, ids=[one.mode for one, _ in WEIGHTS])
@torch.no_grad()
def test_a_constraint_equals_other_weights(
    experts_model: HookedModel,
    adapted: Any,
    chat_tokenizer: Any,
    one: ExpertConstraint,
    change: Callable[[MoELoRALinear], None],
) -> None:
    """In forward passes, in generation with the cache, and in patching sweeps."""
    batch = TokenBatch.from_lists(PROMPTS)
    change(layer_of(adapted))
    other = hooked(adapted, chat_tokenizer)
    free, expected = last_logits(experts_model, batch), last_logits(other, batch)
    spoken = generate(other, batch)
    metric = LogitDifference(torch.tensor([3]), torch.tensor([4]))
    clean, corrupted = torch.tensor([PROMPTS[0]]), torch.tensor([PROMPTS[0][::-1]])
    swept = patch_heads(other, clean, corrupted, metric, progress=False)
    with constrain(experts_model, one):
        torch.testing.assert_close(last_logits(experts_model, batch), expected, **CLOSE)
        assert torch.equal(generate(experts_model, batch), spoken)
        held = patch_heads(experts_model, clean, corrupted, metric, progress=False)
    torch.testing.assert_close(held, swept, **CLOSE)
    assert float((expected - free).abs().max()) > 1e-3
    assert torch.equal(last_logits(experts_model, batch), free)


@torch.no_grad()
def generate(model: Any, batch: TokenBatch) -> Tensor:
    return model.original_model.generate(
        input_ids=batch.tokens,
        attention_mask=batch.mask.long(),
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
    )[:, batch.width :]


@torch.no_grad()
def test_renormalised_equals_a_loop_over_tokens_and_experts(
    experts_model: HookedModel, adapted: Any, chat_tokenizer: Any, monkeypatch: Any
) -> None:
    layer = layer_of(adapted)
    down, up, router = (
        weights["default"] for weights in (layer.moelora_A, layer.moelora_B, layer.moelora_router)
    )

    def literal(x: Tensor, *args: Any) -> Tensor:
        out = layer.base_layer(x)
        for row in range(x.shape[0]):
            for pos in range(x.shape[1]):
                chances = (router @ x[row, pos]).softmax(dim=0)
                chosen = [int(one) for one in chances.topk(2).indices]
                left = [one for one in chosen if one != 1]
                total = sum(float(chances[one]) for one in left)
                for one in left:
                    rank = slice(2 * one, 2 * one + 2)
                    gate = float(chances[one]) / total
                    out[row, pos] += 2.0 * gate * (up[:, rank] @ (down[rank] @ x[row, pos]))
        return out

    monkeypatch.setattr(layer, "forward", literal)
    tokens = torch.tensor([PROMPTS[0]])
    expected = adapted(input_ids=tokens).logits
    with constrain(experts_model, ExpertConstraint([(NAME, 1)], "off_renormalised")):
        held = experts_model.original_model(input_ids=tokens).logits
    torch.testing.assert_close(held, expected, **CLOSE)


@torch.no_grad()
def test_at_spans_only_the_gates_there_change(experts_model: HookedModel) -> None:
    batch = TokenBatch.from_lists(PROMPTS)
    spans = [(5, 7), None, (0, 3)]
    seen: list[Tensor] = []

    def see(value: Tensor, hook: Any) -> None:
        seen.append(value.clone())

    # Both runs are seen in the first layer, where the tokens alone decide.
    point = "blocks.0.attn.q.moelora.hook_gate"
    with experts_model.hooks(fwd_hooks=[(point, see)]):
        free = last_logits(experts_model, batch)
    one = ExpertConstraint([(0, "attn.q", 2)], "force", place="spans")
    with constrain(experts_model, one, at=spans):
        with experts_model.hooks(fwd_hooks=[(point, see)]):
            held = last_logits(experts_model, batch)
        generate(experts_model, batch)
    at = torch.zeros_like(batch.mask)
    at[0, 5:7], at[2, 2:5] = True, True
    expected = torch.where(at[..., None], torch.tensor([0.0, 0.0, 1.0, 0.0]), seen[0])
    assert torch.equal(seen[1], expected)
    torch.testing.assert_close(held[1], free[1], rtol=0, atol=1e-5)
    assert float((held[0] - free[0]).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "named",
    [
        (NAME, 2),
        (MODULE, 2),
        (1, "attn.q", 2),
        (1, "q", 2),
        (1, "q_proj", 2),
        (1, "self_attn.q_proj", 2),
    ],
)
def test_a_projection_has_several_names(experts_model: HookedModel, named: Any) -> None:
    assert ExpertConstraint([named]).on(experts_model).pairs == ((NAME, 2),)


def test_the_adapted_projections_are_listed(experts_model: HookedModel) -> None:
    listed = projections_of(experts_model)
    assert [one.name for one in listed] == [
        f"blocks.{layer}.{target}"
        for layer in range(3)
        for target in ("attn.q", "attn.v", "mlp.out")
    ]
    assert {one.n_experts for one in listed} == {4}
    assert (listed[-1].layer, listed[-1].target) == (2, "mlp.out")
    assert listed[-1].module == "model.layers.2.mlp.down_proj"


def test_the_same_number_in_several_layers() -> None:
    one = ExpertConstraint.across(3, [0, 10, 2], ["attn.q", "attn.v"])
    assert [name for name, _ in one.pairs] == [
        f"blocks.{layer}.attn.{part}" for layer in (0, 2, 10) for part in "qv"
    ]
    assert {expert for _, expert in one.pairs} == {3}
    assert one.name == "experts, off, 6 experts"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([(NAME, 1)], "off", 0.5), "a factor is for mode 'scale', not 'off'"),
        (([(NAME, 1), (1, "attn.q", 1)],), "an expert is named twice"),
        (([(NAME, -1)],), "counted from zero"),
        (([(-1, "attn.q", 1)],), "counted from zero"),
        (([(NAME, 0), (NAME, 1)], "force"), "mode 'force' takes one expert of each projection"),
        (([(NAME, 0)], "swap"), "mode 'swap' takes two of each projection, but blocks.1.attn.q"),
    ],
)
def test_a_faulty_constraint_is_told(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExpertConstraint(*given)


def test_an_unknown_mode_or_place_lists_the_known() -> None:
    with pytest.raises(UserError, match="unknown expert mode 'melt'; known: off, off_renorm"):
        check_expert_mode("melt")
    with pytest.raises(UserError, match="unknown place 'here'; known: all, spans"):
        check_place("here")


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([(NAME, 4)], "expert 4 of blocks.1.attn.q does not exist: it has experts 0 to 3"),
        ([(3, "attn.q", 0)], "no adapted projection 'blocks.3.attn.q'; adapted are attn.q, attn.v"),
        ([(1, "attn.k", 0)], r"no adapted projection 'blocks.1.attn.k'.* in layers 0 to 2"),
        ([(1, "q", 0), (NAME, 0)], "an expert is named twice"),
    ],
)
def test_experts_that_the_model_does_not_have_are_told(
    experts_model: HookedModel, experts: Any, message: str
) -> None:
    with (
        pytest.raises(UserError, match=message),
        constrain(experts_model, ExpertConstraint(experts)),
    ):
        raise AssertionError("the constrain must not be entered")


def test_a_model_without_experts_is_told(tiny_llama: HookedModel) -> None:
    with (
        pytest.raises(UserError, match=r"no MoELoRA experts: hook .* interp.moelora.hooked"),
        constrain(tiny_llama, ExpertConstraint([(NAME, 0)])),
    ):
        raise AssertionError("the constrain must not be entered")
