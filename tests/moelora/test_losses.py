import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.moelora.losses import (
    contrastive_loss,
    expert_share,
    load_balance_loss,
    output_products,
    router_z_loss,
)
from tests.moelora.outputs import products_of_outputs


def test_load_balance_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.9, 0.05, 0.05]])
    chosen = torch.tensor([[0, 1], [1, 2], [0, 2]])
    # f = (2, 2, 2) / 6 and p sums to one: the load is even.
    torch.testing.assert_close(load_balance_loss(probabilities, chosen), torch.tensor(1.0))
    # Without the second token: f = (2, 1, 1) / 4, p = (0.7, 0.175, 0.125).
    real = torch.tensor([True, False, True])
    expected = 3 * (0.5 * 0.7 + 0.25 * 0.175 + 0.25 * 0.125)
    torch.testing.assert_close(
        load_balance_loss(probabilities, chosen, real), torch.tensor(expected)
    )
    assert expert_share(chosen, 3, real).tolist() == [0.5, 0.25, 0.25]


def test_load_balance_is_the_number_of_experts_when_one_has_everything() -> None:
    probabilities = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(5, 4)
    chosen = torch.zeros(5, 1, dtype=torch.long)
    torch.testing.assert_close(load_balance_loss(probabilities, chosen), torch.tensor(4.0))


def test_load_balance_pushes_the_overloaded_router_down() -> None:
    logits = torch.tensor([[1.0, 0.0]]).repeat(6, 1).requires_grad_()
    load_balance_loss(logits.softmax(dim=-1), torch.zeros(6, 1, dtype=torch.long)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1] < 0).all()


def test_router_z_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    expected = (math.log(2) ** 2 + math.log(4) ** 2) / 2
    torch.testing.assert_close(router_z_loss(logits), torch.tensor(expected))
    only_first = torch.tensor([True, False])
    torch.testing.assert_close(router_z_loss(logits, only_first), torch.tensor(math.log(2) ** 2))


def test_contrastive_by_hand() -> None:
    # Experts 0, 0, 1; unit vectors at 0°, 60° and 90°: cosines 1/2, 0 and √3/2.
    angles = torch.tensor([0.0, 60.0, 90.0]).deg2rad()
    lengths = torch.tensor([2.0, 0.5, 3.0])
    outputs = torch.stack([angles.cos(), angles.sin()], dim=-1) * lengths[:, None]
    products = products_of_outputs(outputs[:, None])
    tau = 0.5

    def term(cosine: float) -> float:
        return math.exp(cosine / tau)

    first = -math.log(term(0.5) / (term(0.5) + term(0.0)))
    second = -math.log(term(0.5) / (term(0.5) + term(math.sqrt(3) / 2)))
    # The third has no other output of its expert, so it is no anchor.
    torch.testing.assert_close(
        contrastive_loss(products, torch.tensor([0, 0, 1]), temperature=tau),
        torch.tensor((first + second) / 2),
    )


def test_outputs_that_have_not_left_zero_take_no_part() -> None:
    outputs = torch.eye(3)[:, None].repeat(2, 1, 1)
    expert = torch.tensor([0, 1, 2, 0, 1, 2])
    without = contrastive_loss(products_of_outputs(outputs), expert, temperature=0.1)
    with_short = torch.cat([outputs, 1e-6 * torch.ones(2, 1, 3)])
    numbers = torch.cat([expert, torch.tensor([0, 1])])
    products = products_of_outputs(with_short)
    torch.testing.assert_close(
        contrastive_loss(products, numbers, temperature=0.1, least=1e-3), without
    )
    assert not torch.isclose(contrastive_loss(products, numbers, temperature=0.1), without)


def test_zero_outputs_give_zero_loss_and_finite_gradients() -> None:
    outputs = torch.zeros(4, 2, 3, requires_grad=True)
    loss = contrastive_loss(products_of_outputs(outputs), torch.tensor([0, 1] * 4), temperature=0.1)
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


def test_the_loss_falls_when_experts_are_told_apart() -> None:
    torch.manual_seed(0)
    expert = torch.tensor([0, 1] * 10)
    apart = torch.eye(2)[expert] + 0.05 * torch.randn(20, 2)
    alike = torch.ones(20, 2) + 0.05 * torch.randn(20, 2)
    low, high = (
        contrastive_loss(products_of_outputs(one[:, None]), expert, temperature=0.1)
        for one in (apart, alike)
    )
    assert low < 0.1 * high


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    r=st.integers(1, 3),
    experts=st.integers(1, 5),
    slots=st.integers(1, 5),
    tokens=st.integers(1, 6),
)
def test_products_without_the_outputs(
    seed: int, r: int, experts: int, slots: int, tokens: int
) -> None:
    torch.manual_seed(seed)
    slots = min(slots, experts)
    hidden = torch.randn(2, tokens, experts * r, dtype=torch.float64)
    up = torch.randn(2, 7, experts * r, dtype=torch.float64)
    chosen = torch.rand(2, tokens, experts).topk(slots).indices
    outputs = torch.stack(
        [
            hidden[..., i * r : (i + 1) * r] @ up[..., i * r : (i + 1) * r].mT
            for i in range(experts)
        ],
        dim=-2,
    )
    picked = outputs.gather(-2, chosen[..., None].expand(-1, -1, -1, 7))
    torch.testing.assert_close(
        output_products(hidden, chosen, up.mT @ up, r=r), products_of_outputs(picked)
    )
