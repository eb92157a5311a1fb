"""The auxiliary losses of whole models: what is kept, checkpointing, accumulation."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.errors import UserError
from interp.moelora import AuxiliaryLosses, MoELoRALinear, auxiliary_losses, expert_load
from interp.moelora.auxiliary import terms_of
from interp.moelora.losses import (
    contrastive_loss,
    load_balance_loss,
    router_z_loss,
)
from tests.moelora.outputs import products_of_outputs

STRONG = {
    "load_balance_weight": 1.0,
    "contrastive_weight": 0.7,
    "router_z_weight": 0.1,
    "contrastive_start": 0.0,
    "contrastive_tokens": 6,
}
Gradients = dict[str, Tensor]


def gradients_of(model: nn.Module) -> Gradients:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def layers_of(model: nn.Module) -> Iterator[MoELoRALinear]:
    return (module for module in model.modules() if isinstance(module, MoELoRALinear))


@torch.enable_grad()
def literal(adapted: Any, batch: dict[str, Tensor], sample: Tensor) -> list[Tensor]:
    """Mean losses over projections, from hooks on the layers and each expert's full output."""
    inputs: dict[str, Tensor] = {}

    def keep_input(layer: Any, args: tuple[Tensor]) -> None:
        inputs[layer.name] = args[0]

    handles = [layer.register_forward_pre_hook(keep_input) for layer in layers_of(adapted)]
    adapted(**batch)
    for handle in handles:
        handle.remove()
    real = batch["attention_mask"].bool().flatten()
    rows = []
    for layer in layers_of(adapted):
        config = layer.experts["default"].config
        x = inputs[layer.name].flatten(0, 1)
        logits = x @ layer.moelora_router["default"].T
        probabilities = logits.softmax(dim=-1)
        chosen = probabilities.topk(config.top_k).indices
        outputs = torch.stack(
            [
                config.scaling * (x @ down.T @ up.T)
                for down, up in zip(
                    layer.moelora_A["default"].split(config.r),
                    layer.moelora_B["default"].split(config.r, dim=1),
                    strict=True,
                )
            ],
            dim=1,
        )
        picked = outputs.gather(1, chosen[..., None].expand(-1, -1, layer.out_features))
        contrast = contrastive_loss(
            products_of_outputs(picked[sample]),
            chosen[sample].flatten(),
            temperature=config.contrastive_temperature,
        )
        rows.append(
            torch.stack(
                [
                    load_balance_loss(probabilities[real], chosen[real]),
                    contrast,
                    router_z_loss(logits[real]),
                ]
            )
        )
    return list(torch.stack(rows).mean(dim=0))


def test_values_and_gradients_of_a_model_are_those_written_out(adapt: Any, batch: Any) -> None:
    adapted = adapt(target_modules=["q_proj", "v_proj", "down_proj"], **STRONG).train()
    adapted(**batch)
    losses = auxiliary_losses(adapted)
    step = next(layers_of(adapted)).recorder.step
    assert step is not None
    (drawn,) = step.samples.values()
    assert drawn.real is not None
    assert bool(drawn.real.all())
    sample = drawn.tokens
    assert len(sample) == 6
    assert batch["attention_mask"].flatten()[sample].all()
    losses.total.backward()
    ours = gradients_of(adapted)
    adapted.zero_grad()

    balance, contrast, router_z = literal(adapted, batch, sample)
    torch.testing.assert_close(losses.load_balance, balance)
    torch.testing.assert_close(losses.contrastive, contrast)
    torch.testing.assert_close(losses.router_z, router_z)
    torch.testing.assert_close(losses.total, balance + 0.7 * contrast + 0.1 * router_z)
    (balance + 0.7 * contrast + 0.1 * router_z).backward()
    theirs = gradients_of(adapted)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def train_two_micro_batches(
    adapted: Any, batch: dict[str, Tensor], *, auxiliary: bool = True
) -> tuple[list[AuxiliaryLosses], Gradients]:
    losses = []
    for micro in range(2):
        torch.manual_seed(micro)
        ids = batch["input_ids"].roll(micro, dims=1)
        output = adapted(**{**batch, "input_ids": ids}, labels=ids)
        loss = output.loss
        if auxiliary:
            losses.append(auxiliary_losses(adapted))
            loss = loss + losses[-1].total
        (loss / 2).backward()
    return losses, gradients_of(adapted)


def checkpointed(adapted: Any, reentrant: bool | None) -> Any:
    adapted.train()
    if reentrant is not None:
        adapted.gradient_checkpointing_enable({"use_reentrant": reentrant})
        adapted.enable_input_require_grads()
    return adapted


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_gradient_checkpointing_changes_nothing(reentrant: bool, adapt: Any, batch: Any) -> None:
    settings = {**STRONG, "lora_dropout": 0.1, "router_noise": 0.2}
    losses, gradients = train_two_micro_batches(checkpointed(adapt(**settings), None), batch)
    again, same = train_two_micro_batches(checkpointed(adapt(**settings), reentrant), batch)
    for one, other in zip(losses, again, strict=True):
        for name in ("load_balance", "contrastive", "router_z", "total"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert gradients.keys() == same.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    # The negative control: the auxiliary losses are a visible part of these gradients.
    model = checkpointed(adapt(**settings), reentrant)
    _, without = train_two_micro_batches(model, batch, auxiliary=False)
    for name, gradient in gradients.items():
        assert not torch.allclose(without[name], gradient, atol=1e-3, rtol=1e-2), name


def test_a_part_of_the_losses_under_reentrant_checkpointing(adapt: Any, batch: Any) -> None:
    def gradients(reentrant: bool | None) -> Gradients:
        adapted = checkpointed(adapt(**STRONG), reentrant)
        loss = adapted(**batch, labels=batch["input_ids"]).loss
        losses = auxiliary_losses(adapted)
        (loss + 3 * losses.contrastive - losses.load_balance).backward()
        return gradients_of(adapted)

    expected = gradients(None)
    for name, gradient in gradients(True).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_accumulation_adds_up(adapt: Any, batch: Any) -> None:
    """Two forward passes and then one backward, as against one at a time."""
    adapted = adapt(**STRONG).train()
    _, expected = train_two_micro_batches(adapted, batch)
    adapted.zero_grad()
    total = torch.zeros(())
    for micro in range(2):
        torch.manual_seed(micro)
        ids = batch["input_ids"].roll(micro, dims=1)
        loss = adapted(**{**batch, "input_ids": ids}, labels=ids).loss
        total = total + (loss + auxiliary_losses(adapted).total) / 2
    total.backward()
    for name, gradient in gradients_of(adapted).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_asking_twice_gives_the_same(adapt: Any, batch: Any) -> None:
    adapted = adapt(**STRONG).train()
    adapted(**batch)
    first, second = auxiliary_losses(adapted), auxiliary_losses(adapted)
    assert first.total.item() == second.total.item()


def test_evaluation_keeps_nothing(adapt: Any, batch: Any) -> None:
    adapted = adapt()
    recorder = next(layers_of(adapted)).recorder
    adapted.train()(**batch)
    assert recorder.step is not None
    assert len(recorder.step.kept) == 6
    adapted.eval()(**batch)
    assert recorder.step is None
    for ask in (auxiliary_losses, expert_load):
        with pytest.raises(UserError, match="training mode"):
            ask(adapted)


def test_an_error_in_the_forward_pass_does_not_mix_steps(adapt: Any, batch: Any) -> None:
    adapted = adapt().train()
    recorder = next(layers_of(adapted)).recorder
    with pytest.raises(IndexError):
        adapted(input_ids=torch.tensor([[10**6]]))
    adapted(**batch)
    assert recorder.step is not None
    assert len(recorder.step.kept) == 6
    assert not recorder.step.open


def test_padding_is_left_out(adapt: Any, batch: Any) -> None:
    adapted = adapt(contrastive_weight=0.0, router_z_weight=0.1).train()
    adapted(**batch)
    losses, load = auxiliary_losses(adapted), expert_load(adapted)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, :3] = 7
    adapted(**other)
    again = auxiliary_losses(adapted)
    torch.testing.assert_close(again.load_balance, losses.load_balance)
    torch.testing.assert_close(again.router_z, losses.router_z)
    for name, share in expert_load(adapted).shares.items():
        torch.testing.assert_close(share, load.shares[name])
        torch.testing.assert_close(share.sum(), torch.tensor(1.0))
        torch.testing.assert_close(share * 48, (share * 48).round())  # 24 real tokens, 2 slots
    adapted(input_ids=batch["input_ids"])
    assert auxiliary_losses(adapted).load_balance != losses.load_balance


def test_a_collapsed_router_is_seen(adapt: Any, batch: Any) -> None:
    adapted = adapt(top_k=1).train()
    first = next(layers_of(adapted))
    with torch.no_grad():
        # Gates go by x · w; with both w and -w only two experts can win.
        router = first.moelora_router["default"]
        router[1] = -router[0]
        router[2:] = 0
        router[:2] *= 100
    adapted(**batch)
    load = expert_load(adapted)
    assert load.dead()[first.name] == [2, 3]
    assert load.smallest == 0
    assert load.largest > 1.5


def test_contrast_starts_when_outputs_have_left_zero(adapt: Any, batch: Any) -> None:
    settings = {"contrastive_start": 1e-3, "contrastive_weight": 1.0, "load_balance_weight": 0.0}
    adapted = adapt(filled=False, **settings).train()
    adapted(**batch)
    losses = auxiliary_losses(adapted)
    losses.total.backward()
    assert losses.contrastive == 0
    assert all((gradient == 0).all() for gradient in gradients_of(adapted).values())
    with torch.no_grad():
        nn.init.normal_(next(layers_of(adapted)).moelora_B["default"], std=0.3)
    adapted(**batch)
    # The mean over the one projection that takes part, not over six of which five are silent.
    step = next(layers_of(adapted)).recorder.step
    assert step is not None
    losses = auxiliary_losses(adapted)
    assert losses.contrastive == terms_of(step, step.kept[:1])[0, 1] > 0


def test_a_model_without_experts(hf_factory: Any, plain_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no MoELoRA adapter"):
        auxiliary_losses(hf_factory("llama", plain_tokenizer))


def test_training_lowers_the_contrastive_loss_and_spreads_the_load(adapt: Any, batch: Any) -> None:
    adapted = adapt(**{**STRONG, "contrastive_tokens": 24}).train()
    optimizer = torch.optim.Adam([one for one in adapted.parameters() if one.requires_grad], 0.01)
    seen = []
    for _ in range(30):
        adapted(**batch)
        losses = auxiliary_losses(adapted)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append((losses.contrastive.item(), losses.load_balance.item()))
    assert seen[-1][0] < 0.5 * seen[0][0]
    assert seen[-1][1] < seen[0][1]
