"""The auxiliary losses of an adapted model's last training forward, and the experts' load in it.

    output = model(**batch)                 # in training mode
    losses = auxiliary_losses(model)
    (output.loss + losses.total).backward()

Each loss is the mean over the adapted projections. `interp.moelora.recorder` explains what is kept
and how gradient checkpointing goes with it. All projections of one shape are computed together.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.checked import checked
from interp.errors import UserError
from interp.moelora.layer import NO_ADAPTER, adapted_layers
from interp.moelora.losses import (
    contrastive_loss,
    expert_share,
    load_balance_loss,
    output_products,
    router_z_loss,
)
from interp.moelora.recorder import Key, Routed, Step


@dataclass(frozen=True)
class AuxiliaryLosses:
    """Scalars, with their graph.

    Attributes:
        load_balance: 1 when the load is even, the number of experts when one expert has it all.
        contrastive: InfoNCE between experts' outputs; 0 before they have left zero.
        router_z: mean squared log-sum-exp of the router's logits.
        total: the three times their weights in the configuration: to be added to the model's loss.
    """

    load_balance: Float[Tensor, ""]
    contrastive: Float[Tensor, ""]
    router_z: Float[Tensor, ""]
    total: Float[Tensor, ""]


@dataclass(frozen=True)
class ExpertLoad:
    """What share of the routed (token, slot) pairs each expert got in one training forward.

    Attributes:
        shares: by projection (``name`` or ``name:adapter`` if several are active).
    """

    shares: dict[str, Float[Tensor, " expert"]]

    def dead(self, *, below: float = 0.0) -> dict[str, list[int]]:
        """The experts with a share of at most `below`, by projection; only where there are any."""
        found = {
            name: (share <= below).nonzero()[:, 0].tolist() for name, share in self.shares.items()
        }
        return {name: experts for name, experts in found.items() if experts}

    @property
    def smallest(self) -> float:
        """The smallest share in any projection, times its number of experts: 1 is even, 0 dead."""
        return min(float(share.min()) * len(share) for share in self.shares.values())

    @property
    def largest(self) -> float:
        """The largest share in any projection, times its number of experts."""
        return max(float(share.max()) * len(share) for share in self.shares.values())


@checked
def auxiliary_losses(model: nn.Module) -> AuxiliaryLosses:
    """The losses of the last forward pass that `model` made in training mode.

    Raises UserError if there was none, or if it cannot be differentiated (reentrant checkpointing
    of a projection that runs twice, or over several devices).
    """
    step = _last_step(model)
    late = [routed for routed in step.kept if step.is_late(routed)]
    terms = terms_of(step, step.kept)
    if late and torch.is_grad_enabled():
        _check_late(late)
        anchor = torch.zeros((), device=terms.device, requires_grad=True)
        terms = cast(Tensor, _Late.apply(anchor, terms, step))
    names = ("load_balance_weight", "contrastive_weight", "router_z_weight")
    rows = [[getattr(routed.config, name) for name in names] for routed in step.kept]
    weights = torch.tensor(rows, device=terms.device)
    # A projection whose experts have not left zero has no contrast yet; the mean leaves it out.
    count = torch.full((3,), float(len(step.kept)), device=terms.device)
    count[1] = (terms[:, 1].detach() != 0).sum().clamp_min(1)
    total = (weights * terms / count).sum()
    load_balance, contrastive, router_z = (terms.sum(dim=0) / count).unbind()
    return AuxiliaryLosses(load_balance, contrastive, router_z, total)


@checked
def expert_load(model: nn.Module) -> ExpertLoad:
    """The load of every expert in the last forward pass that `model` made in training mode.

    Padding is left out. Raises UserError if there was no such pass.
    """
    step = _last_step(model)
    several = len({routed.key[1] for routed in step.kept}) > 1
    shares = {}
    for routed in step.kept:
        name = f"{routed.key[0]}:{routed.key[1]}" if several else routed.key[0]
        real = step.real_tokens(tuple(routed.chosen.shape[:-1]))
        shares[name] = expert_share(routed.chosen.flatten(0, -2), routed.experts, real)
    return ExpertLoad(shares)


def terms_of(step: Step, several: list[Routed]) -> Float[Tensor, "projection term"]:
    """Load balance, contrastive and router z of each of these projections."""
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, routed in enumerate(several):
        groups[routed.logits.shape, routed.key[1], routed.logits.device].append(index)
    rows: list[Tensor] = [torch.empty(0)] * len(several)
    for indices in groups.values():
        terms = _terms_of_equals(step, [several[index] for index in indices])
        for index, row in zip(indices, terms, strict=True):
            rows[index] = row
    return torch.stack([row.to(rows[0].device) for row in rows])


def _terms_of_equals(step: Step, several: list[Routed]) -> Float[Tensor, "projection term"]:
    """The same, for projections of one adapter with inputs and experts of one shape."""
    config = several[0].config
    real = step.real_tokens(tuple(several[0].logits.shape[:-1]))
    logits = torch.stack([routed.logits.flatten(0, -2) for routed in several])
    chosen = torch.stack([routed.chosen.flatten(0, -2) for routed in several])
    balance = load_balance_loss(logits.softmax(dim=-1), chosen, real)
    zero = torch.zeros_like(balance)
    router_z = router_z_loss(logits, real) if config.router_z_weight else zero
    contrast = zero
    if config.contrastive_weight:
        sample = _sample(step, several[0], real)
        contrast = _contrast(several, chosen[:, sample], sample)
    return torch.stack([balance, contrast, router_z], dim=-1)


def _contrast(
    several: list[Routed],
    chosen: Int[Tensor, "projection sample slot"],
    sample: Int[Tensor, " sample"],
) -> Float[Tensor, " projection"]:
    config = several[0].config
    with torch.autocast(chosen.device.type, enabled=False):
        hidden = torch.stack([routed.hidden.flatten(0, -2)[sample].float() for routed in several])
        gram = torch.stack([routed.up.float().T @ routed.up.float() for routed in several])
        products = output_products(hidden, chosen, config.scaling**2 * gram, r=config.r)
        widths = torch.tensor([float(len(routed.up)) for routed in several], device=hidden.device)
        return contrastive_loss(
            products,
            chosen.flatten(1),
            temperature=config.contrastive_temperature,
            least=config.contrastive_start * widths.sqrt(),
        )


def _sample(step: Step, routed: Routed, real: Tensor | None) -> Int[Tensor, " sample"]:
    """Real tokens drawn once per step, the same for every projection, without replacement."""
    size, device = routed.logits.shape[:-1], routed.logits.device
    tokens = routed.config.contrastive_tokens
    shape = (*size, tokens)
    if shape not in step.samples:
        candidates = torch.arange(size.numel(), device=device)
        candidates = candidates if real is None else candidates[real.to(device)]
        drawn = torch.randperm(len(candidates))[:tokens].to(device)
        step.samples[shape] = candidates[drawn]
    return step.samples[shape].to(device)


def _last_step(model: nn.Module) -> Step:
    layers = adapted_layers(model)
    if not layers:
        raise UserError(NO_ADAPTER)
    step = layers[0].recorder.step
    if step is None or not step.kept:
        raise UserError(
            "there was no forward pass in training mode: call model.train() and run the model "
            "first (in evaluation mode nothing is kept)"
        )
    return step


def _check_late(late: list[Routed]) -> None:
    """Raise UserError where a second pass could not be matched with the first."""
    keys = [routed.key for routed in late]
    if len(set(keys)) < len(keys) or len({routed.logits.device for routed in late}) > 1:
        raise UserError(
            "reentrant gradient checkpointing does not go with the auxiliary losses here (a "
            "projection runs twice, or the model is on several devices): use "
            "gradient_checkpointing_kwargs={'use_reentrant': False}"
        )


class _Late(torch.autograd.Function):
    """The terms; those without a graph get one whose backward tells the second pass their scale."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, terms: Tensor, step: Step) -> Tensor:
        ctx.step = step
        return terms.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        step: Step = ctx.step
        scales: dict[Key, Tensor] = dict(step.late[1]) if step.late else {}
        now = gradient.clone()
        for row, routed in enumerate(step.kept):
            if step.is_late(routed):
                scale = gradient[row]
                scales[routed.key] = scales.get(routed.key, torch.zeros_like(scale)) + scale
                now[row] = 0  # even the up-projection, which is at hand, waits for the second pass
        step.late = (terms_of, scales)
        return None, now, None
