"""The auxiliary losses of an adapted model's last training forward, and the experts' load in it.

    output = model(**batch)                 # in training mode
    losses = auxiliary_losses(model)
    (output.loss + losses.total).backward()

Each loss is the mean over the adapted projections. `interp.moelora.recorder` explains what is kept
and how gradient checkpointing goes with it. All projections of one shape are
computed together, and nothing is read back from the device that they are on.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
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
from interp.moelora.recorder import Key, Routed, Sample, Step


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
    # A projection whose experts have not left zero has no contrast yet; the mean leaves it out.
    contrasted = (terms[:, 1].detach() != 0).sum().clamp_min(1)
    load_balance, contrastive, router_z = terms.sum(dim=0).unbind()
    n_projections = len(step.kept)
    means = load_balance / n_projections, contrastive / contrasted, router_z / n_projections
    return AuxiliaryLosses(*means, _total(step, terms, contrasted, means))


_WEIGHTS = ("load_balance_weight", "contrastive_weight", "router_z_weight")


def _total(
    step: Step,
    terms: Float[Tensor, "projection term"],
    contrasted: Tensor,
    means: tuple[Tensor, ...],
) -> Float[Tensor, ""]:
    """The means times their weights: as numbers, which no device waits for, where there is one set.

    Adapters that are active together may have weights of their own.
    """
    rows = [[getattr(routed.config, name) for name in _WEIGHTS] for routed in step.kept]
    if all(row == rows[0] for row in rows):
        weighted = [weight * mean for weight, mean in zip(rows[0], means, strict=True) if weight]
        return sum(weighted, start=torch.zeros_like(means[0])) if weighted else 0.0 * means[0]
    balance, contrast, router_z = (torch.tensor(rows, device=terms.device) * terms).sum(dim=0)
    return (balance + router_z) / len(rows) + contrast / contrasted


@checked
def expert_load(model: nn.Module) -> ExpertLoad:
    """The load of every expert in the last forward pass that `model` made in training mode.

    Padding is left out. Raises UserError if there was no such pass.
    """
    step = _last_step(model)
    several = len({routed.key[1] for routed in step.kept}) > 1
    shares: list[Tensor] = [torch.empty(0)] * len(step.kept)
    for indices in _alike(step.kept, lambda routed: (routed.size, routed.experts)):
        chosen = _stacked([step.kept[index].chosen for index in indices])
        real = step.real_tokens(step.kept[indices[0]].size)
        found = expert_share(chosen, step.kept[indices[0]].experts, real)
        for index, share in zip(indices, found.unbind(), strict=True):
            shares[index] = share
    keys = [routed.key for routed in step.kept]
    names = [f"{name}:{adapter}" if several else name for name, adapter in keys]
    return ExpertLoad(dict(zip(names, shares, strict=True)))


def terms_of(step: Step, several: list[Routed]) -> Float[Tensor, "projection term"]:
    """Load balance, contrastive and router z of each of these projections."""
    groups = _alike(several, lambda routed: (routed.size, routed.experts, routed.key[1]))
    # Up-projections of one width are multiplied together: side by side in their group.
    groups = [sorted(group, key=lambda index: len(several[index].up)) for group in groups]
    found = [_terms_of_equals(step, [several[index] for index in group]) for group in groups]
    if groups == [list(range(len(several)))]:
        return found[0]
    rows: list[Tensor] = [torch.empty(0)] * len(several)
    for group, terms in zip(groups, found, strict=True):
        for index, row in zip(group, terms.unbind(), strict=True):
            rows[index] = row
    return torch.stack([row.to(rows[0].device) for row in rows])


def _alike(several: list[Routed], what: Callable[[Routed], Hashable]) -> list[list[int]]:
    """The indices of projections that have ``what`` in common, and their device and parts."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, routed in enumerate(several):
        kind = routed.joint is None
        groups[kind, routed.chosen.device, what(routed)].append(index)
    return list(groups.values())


def _stacked(values: Sequence[Shaped[Tensor, "*token value"]]) -> Any:
    """[projection token value], in one operator."""
    return torch.stack(list(values)).flatten(1, -2)


def _terms_of_equals(step: Step, several: list[Routed]) -> Float[Tensor, "projection term"]:
    """The same, for projections of one adapter with inputs and experts of one shape."""
    first = several[0]
    config, real = first.config, step.real_tokens(first.size)
    if first.joint is None:
        logits = _stacked([routed.logits for routed in several if routed.logits is not None])
        hidden = [routed.hidden for routed in several if routed.hidden is not None]
    else:
        joint = _stacked([routed.joint for routed in several if routed.joint is not None])
        logits, hidden = joint.split([first.experts, joint.shape[2] - first.experts], dim=2)
    chosen = _stacked([routed.chosen for routed in several])
    terms = [load_balance_loss(logits.softmax(dim=-1), chosen, real)]
    terms += [torch.zeros_like(terms[0]), torch.zeros_like(terms[0])]
    if config.contrastive_weight:
        if isinstance(hidden, list):
            hidden = _stacked(hidden)
        sample = step.sample(first.size, config.contrastive_tokens, device=chosen.device)
        terms[1] = _contrast(several, hidden, chosen, sample)
    if config.router_z_weight:
        terms[2] = router_z_loss(logits, real)
    return torch.stack(terms, dim=-1)


def _contrast(
    several: list[Routed],
    hidden: Float[Tensor, "projection token expert_rank"],
    chosen: Int[Tensor, "projection token slot"],
    sample: Sample,
) -> Float[Tensor, " projection"]:
    config = several[0].config
    with torch.autocast(chosen.device.type, enabled=False):
        chosen = chosen.index_select(1, sample.tokens)
        hidden = hidden.index_select(1, sample.tokens).float()
        if sample.real is not None:  # a zero output takes no part
            hidden = hidden.masked_fill(~sample.real[:, None], 0.0)
        gram, least = _grams(several)
        products = output_products(hidden, chosen, gram, r=config.r)
        return contrastive_loss(
            products,
            chosen.flatten(1),
            temperature=config.contrastive_temperature,
            least=least,
        )


def _grams(
    several: list[Routed],
) -> tuple[
    Float[Tensor, "projection expert_rank expert_rank"], float | Float[Tensor, " projection"]
]:
    """BᵀB of each, and how long an output has to be; the scaling is left out of both."""
    config = several[0].config
    grams, least = [], []
    for width, group in groupby(several, key=lambda routed: len(routed.up)):
        up = torch.stack([routed.up for routed in group]).float()
        grams.append(up.mT @ up)
        least.append(config.contrastive_start * width**0.5 / config.scaling)
    if len(grams) == 1:
        return grams[0], least[0]
    lengths = [
        gram.new_full((len(gram),), length) for gram, length in zip(grams, least, strict=True)
    ]
    return torch.cat(grams), torch.cat(lengths)


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
    if len(set(keys)) < len(keys) or len({routed.chosen.device for routed in late}) > 1:
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
