import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.moelora.routing import (
    choose_experts,
    gates_of_logits,
    gates_of_probabilities,
    per_rank,
)


def test_gates_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]]).log()  # probabilities 3/6, 1/6, 2/6
    chosen = choose_experts(logits, 2)
    assert sorted(chosen[0].tolist()) == [0, 2]
    torch.testing.assert_close(
        gates_of_logits(logits, chosen, renormalize=True), torch.tensor([[3 / 5, 0, 2 / 5]])
    )
    torch.testing.assert_close(
        gates_of_logits(logits, chosen, renormalize=False), torch.tensor([[3 / 6, 0, 2 / 6]])
    )


def test_ties_do_not_give_a_token_more_experts() -> None:
    gates = gates_of_logits(
        torch.zeros(5, 4), choose_experts(torch.zeros(5, 4), 2), renormalize=True
    )
    assert (gates > 0).sum(dim=-1).tolist() == [2] * 5


@given(
    seed=st.integers(0, 10_000),
    experts=st.integers(1, 6),
    data=st.data(),
    renormalize=st.booleans(),
)
def test_probabilities_lead_to_the_same_gates(
    seed: int, experts: int, data: st.DataObject, renormalize: bool
) -> None:
    top_k = data.draw(st.integers(1, experts))
    logits = torch.randn(7, experts, generator=torch.Generator().manual_seed(seed))
    gates = gates_of_logits(logits, choose_experts(logits, top_k), renormalize=renormalize)
    other = gates_of_probabilities(logits.softmax(dim=-1), top_k, renormalize=renormalize)
    torch.testing.assert_close(gates, other)
    assert ((gates > 0).sum(dim=-1) <= top_k).all()
    if renormalize:
        torch.testing.assert_close(gates.sum(dim=-1), torch.ones(7))


def test_probabilities_that_a_hook_set_to_zero_give_no_gate() -> None:
    gates = gates_of_probabilities(torch.zeros(2, 3), 2, renormalize=True)
    assert gates.eq(0).all()


def test_each_expert_is_repeated_for_its_ranks() -> None:
    assert per_rank(torch.tensor([[1.0, 2.0]]), 3).tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]]
