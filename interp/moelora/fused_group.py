"""Projections of one input, all with their experts, as one operator.

Queries, keys and values are projections of the same hidden state, and so are the gate of an MLP and
what it gates. As in ``interp.moelora.fused``, but for all of them together: one product for the
routers and down-projections of all, one selection of experts, one softmax, and in the backward pass
one gradient of these. ``group`` stands for the adapted ones among the projections; all of them have
the same number of experts, rank and gating. Projections without experts may be among them.

The frozen projections are computed here, so this is for plain ones without dropout or router noise.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from interp.moelora.fused import Gating, Types, Weights, product, without_autocast


@dataclass(frozen=True)
class Frozen:
    """The frozen part of one projection, and its experts' weights if it has any."""

    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"] | None
    experts: Weights | None = None


class Routing(NamedTuple):
    """What the auxiliary losses need of one adapted projection; see ``interp.moelora.fused``."""

    joint: Float[Tensor, "*token expert_and_rank"] | None
    logits: Float[Tensor, "*token expert"] | None
    hidden: Float[Tensor, "*token expert_rank"] | None
    up: Float[Tensor, "d_out expert_rank"]
    chosen: Int[Tensor, "*token slot"]


@dataclass(frozen=True)
class _How:
    """What a pass is, beside its tensors.

    Attributes:
        gating, types: of all adapted projections; None if there are none.
        joined: the outputs of so many projections, from the first on, are side by side.
        adapted: which projections have experts.
        n_experts: how many each of them has.
        size: the leading sizes of the input.
    """

    gating: Gating | None
    types: Types | None
    joined: int
    adapted: tuple[int, ...]
    n_experts: int
    size: torch.Size


def projected_together(
    x: Float[Tensor, "*token d_in"],
    projections: list[Frozen],
    gating: Gating | None,
    *,
    joined: int = 1,
    cast_input: bool = True,
) -> tuple[list[Float[Tensor, "*token d_out"]], list[Routing]]:
    """The outputs of all projections, and what the experts of the adapted ones did.

    Args:
        gating: of the adapted projections; None if none is.
        joined: give the outputs of the first so many projections side by side, as one.
        cast_input: whether the experts' input is made of the type of their weights.
    """
    kind, types, n_experts = x.device.type, None, 0
    adapted = [index for index, part in enumerate(projections) if part.experts is not None]
    experts = [part.experts for part in projections if part.experts is not None]
    if experts:
        autocast = torch.is_autocast_enabled(kind)
        product_type = torch.get_autocast_dtype(kind) if autocast else experts[0].down.dtype
        types, n_experts = Types(product_type, cast_input), len(experts[0].router)
    how = _How(gating, types, joined, tuple(adapted), n_experts, x.shape[:-1])
    frozen = [tensor for part in projections for tensor in (part.weight, part.bias)]
    found: Any = _Projected.apply(how, x, *frozen, *(w for of in experts for w in of))
    n_outputs, n_adapted = len(projections) - joined + 1, len(adapted)
    outputs, (joint, logits, hidden, chosen, *ups) = found[:n_outputs], found[n_outputs:]
    parts = [
        [None] * n_adapted if value is None else value.unbind(dim=-2)
        for value in (joint, logits, hidden)
    ]
    chosen = [] if chosen is None else chosen.unbind(dim=-2)
    return list(outputs), [Routing(*of) for of in zip(*parts, ups, chosen, strict=True)]


class _Pass(NamedTuple):
    """What the experts of all adapted projections do, flat over tokens."""

    joint: Tensor | None
    logits: Tensor
    hidden: Tensor
    chosen: Tensor
    gates: Tensor
    probabilities: Tensor | None
    weighted: Tensor
    x: Tensor
    dropped: Tensor | None
    factors: tuple[Tensor, ...]


def _routed(x: Tensor, experts: list[Weights], how: _How) -> _Pass:
    gating, types = how.gating, how.types
    assert gating is not None
    assert types is not None
    first, (n_group, n_experts) = experts[0], (len(experts), how.n_experts)
    wide = x.to(first.down.dtype) if types.cast_input else x
    sizes = [n_experts, n_experts * gating.r]
    if {wide.dtype, first.router.dtype, types.product} == {torch.float32}:
        parts = [weight for of in experts for weight in (of.router, of.down)]
        factors: tuple[Tensor, ...] = (torch.cat(parts),)
        joint, dropped = F.linear(wide, factors[0]).unflatten(1, (n_group, -1)), None
        logits, hidden = joint.split(sizes, dim=2)
    else:
        dropped, wide, joint = wide.to(types.product), wide.float(), None
        router = torch.cat([of.router for of in experts]).float()
        factors = router, torch.cat([of.down for of in experts]).to(types.product)
        logits = F.linear(wide, factors[0]).unflatten(1, (n_group, -1))
        hidden = F.linear(dropped, factors[1]).unflatten(1, (n_group, -1))
    values, chosen = logits.topk(gating.top_k, dim=2, sorted=False)
    probabilities = None if gating.renormalize else logits.softmax(dim=2)
    kept = values.softmax(dim=2) if probabilities is None else probabilities.gather(2, chosen)
    gates = values.new_zeros(logits.shape).scatter_(2, chosen, kept)
    by_expert = hidden.unflatten(2, (n_experts, gating.r))
    weighted = (by_expert * gates.to(hidden.dtype)[..., None]).flatten(2)
    of_gates = gates, probabilities, weighted
    return _Pass(joint, logits, hidden, chosen, *of_gates, wide, dropped, factors)


def _outputs(x: Tensor, weights: Any, biases: Any, joined: int) -> tuple[list[Tensor], list[Any]]:
    """What comes out, and the part of each projection in it."""
    widths = [len(weight) for weight in weights[:joined]]
    side = x.new_empty(len(x), sum(widths))
    parts = list(side.split(widths, dim=1))
    for part, weight, bias in zip(parts, weights, biases, strict=False):
        if bias is None:
            torch.mm(x, weight.T, out=part)
        else:
            torch.addmm(bias, x, weight.T, out=part)
    later = zip(weights[joined:], biases[joined:], strict=True)
    others = [F.linear(x, weight, bias) for weight, bias in later]
    return [side, *others], [*parts, *others]


class _Projected(torch.autograd.Function):
    """``projected_together``: flat, it takes the weights and biases, then those of the experts."""

    @staticmethod
    def forward(ctx: Any, how: _How, x: Tensor, *tensors: Any) -> Any:
        kind = x.device.type
        return without_autocast(kind, lambda: _Projected._forward(ctx, how, x, *tensors))

    @staticmethod
    def _forward(ctx: Any, how: _How, x: Tensor, *tensors: Any) -> Any:
        n_adapted = len(how.adapted)
        n_frozen = len(tensors) - 3 * n_adapted
        weights, biases, rest = tensors[:n_frozen:2], tensors[1:n_frozen:2], tensors[n_frozen:]
        experts = [Weights(*rest[3 * index : 3 * index + 3]) for index in range(n_adapted)]
        flat = x.flatten(0, -2)
        outputs, parts = _outputs(flat, weights, biases, how.joined)
        ctx.set_materialize_grads(False)
        ctx.how, ctx.widths = how, [part.shape[1] for part in parts]
        ctx.types = [x.dtype, *(tensor.dtype for tensor in rest)]
        if not experts:
            ctx.save_for_backward(*weights)
            shaped = [output.view(*how.size, -1) for output in outputs]
            return (*shaped, None, None, None, None)
        done = _routed(flat, experts, how)
        assert how.gating is not None
        assert how.types is not None
        ups = [of.up.to(how.types.product) for of in experts]
        for group, (index, up) in enumerate(zip(how.adapted, ups, strict=True)):
            weighted, scaling = done.weighted[:, group], how.gating.scaling
            if up.dtype == flat.dtype:
                parts[index].addmm_(weighted, up.T, alpha=scaling)
            else:  # as in PEFT, add first and round then
                added = F.linear(weighted, up)
                torch.add(parts[index], added, alpha=scaling, out=parts[index])
        ctx.save_for_backward(
            *weights, *ups, done.hidden, done.gates, done.probabilities, done.weighted,
            done.x, done.dropped, *done.factors,
        )  # fmt: skip
        apart = (None, None) if done.joint is not None else (done.logits, done.hidden)
        shaped = [
            None if value is None else value.view(*how.size, *value.shape[1:])
            for value in (*outputs, done.joint, *apart, done.chosen)
        ]
        ctx.mark_non_differentiable(shaped[-1])
        return (*shaped, *(of.up.view_as(of.up) for of in experts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        tensors = ctx.saved_tensors  # once: checkpointing hands them out only once
        needs_x, kind = ctx.needs_input_grad[1], tensors[0].device.type
        pull = _Pull(ctx.how, ctx.widths, ctx.types, tensors, needs_x)
        of_x, of_experts = without_autocast(kind, lambda: pull(gradients))
        return None, of_x, *[None] * (2 * len(ctx.widths)), *of_experts


class _Pull:
    """The backward pass of ``_Projected``."""

    def __init__(
        self, how: _How, widths: list[int], types: list[torch.dtype], tensors: Any, needs_x: bool
    ) -> None:
        n_members, n_adapted = len(widths), len(how.adapted)
        self.how, self.widths, self.types, self.needs_x = how, widths, types, needs_x
        self.weights, rest = tensors[:n_members], tensors[n_members:]
        self.ups, rest = rest[:n_adapted], rest[n_adapted:]
        if how.adapted:
            self.hidden, self.gates, self.probabilities, self.weighted = rest[:4]
            (self.x, self.dropped), self.factors = rest[4:6], rest[6:]

    def __call__(self, gradients: Any) -> tuple[Tensor | None, list[Tensor | None]]:
        """Of the input, and of router, down- and up-projection of each adapted projection."""
        n_outputs = len(self.widths) - self.how.joined + 1
        parts = self._parts(gradients[:n_outputs])
        of_ups = list(gradients[n_outputs + 4 :])
        downward: list[tuple[Tensor | None, Tensor]] = []
        of_experts: list[Tensor | None] = []
        if self.how.adapted:
            given = [
                None if gradient is None else gradient.flatten(0, -3)
                for gradient in gradients[n_outputs : n_outputs + 3]
            ]
            by_rank, of_ups = self._upward(parts, of_ups)
            within = self._through_gates(by_rank, given)
            downward = list(zip(within, self.factors, strict=True))
            of_experts = self._of_experts(within, of_ups)
        return self._of_input(parts, downward), of_experts

    def _parts(self, gradients: Any) -> list[Tensor | None]:
        """The gradient of each projection's output, flat over tokens."""
        flat = [None if gradient is None else gradient.flatten(0, -2) for gradient in gradients]
        joined = self.how.joined
        first = [None] * joined if flat[0] is None else flat[0].split(self.widths[:joined], dim=1)
        return [*first, *flat[1:]]

    def _upward(
        self, parts: list[Tensor | None], of_ups: list[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Of the weighted hidden values, and of the up-projections."""
        assert self.how.gating is not None
        scaling, by_rank = self.how.gating.scaling, torch.empty_like(self.weighted)
        for group, (index, up) in enumerate(zip(self.how.adapted, self.ups, strict=True)):
            part, into = parts[index], by_rank[:, group]
            if part is None:
                into.zero_()
                continue
            narrow, before = part.to(up.dtype), of_ups[group]
            torch.addmm(up.new_empty(()), narrow, up, beta=0, alpha=scaling, out=into)
            if before is not None and before.dtype == up.dtype:
                of_ups[group] = before.addmm(narrow.T, self.weighted[:, group], alpha=scaling)
            else:
                new = product(narrow.T, self.weighted[:, group], scaling)
                of_ups[group] = new.to(self.types[-1]) if before is None else before + new
        return by_rank, of_ups

    def _through_gates(self, by_rank: Tensor, given: list[Tensor | None]) -> list[Tensor]:
        """Of routers' logits and hidden values: side by side, or apart where they are.

        Args:
            given: gradients that come from the auxiliary losses; joint, logits, hidden.
        """
        assert self.how.gating is not None
        gates, experts = self.gates, (self.how.n_experts, self.how.gating.r)
        by_expert, factor = by_rank.unflatten(2, experts), gates.to(by_rank.dtype)[..., None]
        of_gates = (by_rank * self.hidden).unflatten(2, experts).sum(dim=3, dtype=gates.dtype)
        if self.probabilities is not None:  # the gates are some of these
            of_gates, gates = torch.where(gates > 0, of_gates, 0.0), self.probabilities
        softmax_backward = torch.ops.aten._softmax_backward_data
        if self.dropped is not None:
            logits = softmax_backward(of_gates, gates, 2, gates.dtype)
            new = [logits, (by_expert * factor).flatten(2)]
            pairs = zip(given[1:], new, strict=True)
            return [(now if before is None else before + now).flatten(1) for before, now in pairs]
        sizes = [experts[0], experts[0] * experts[1]]
        joint = by_rank.new_empty(*by_rank.shape[:2], sum(sizes))
        to_logits, to_hidden = joint.split(sizes, dim=2)
        to_hidden = to_hidden.unflatten(2, experts)
        logits = softmax_backward(of_gates, gates, 2, gates.dtype)
        if given[0] is None:
            to_logits.copy_(logits)
            torch.mul(by_expert, factor, out=to_hidden)
        else:
            before = given[0].split(sizes, dim=2)
            torch.add(before[0], logits, out=to_logits)
            torch.addcmul(before[1].unflatten(2, experts), by_expert, factor, out=to_hidden)
        return [joint.flatten(1)]

    def _of_experts(self, within: list[Tensor], of_ups: list[Tensor | None]) -> list[Tensor | None]:
        n_group, inputs = len(self.ups), [self.x, self.dropped][: len(within)]
        products = (part.T @ x for part, x in zip(within, inputs, strict=True))
        found = [weight.unflatten(0, (n_group, -1)) for weight in products]
        if self.dropped is None:
            assert self.how.gating is not None
            sizes = [self.how.n_experts, self.how.n_experts * self.how.gating.r]
            routers, downs = found[0].split(sizes, dim=1)
        else:
            routers, downs = (of.to(kind) for of, kind in zip(found, self.types[1:3], strict=True))
        pairs = zip(routers.unbind(), downs.unbind(), of_ups, strict=True)
        return [gradient for of in pairs for gradient in of]

    def _of_input(
        self, parts: list[Tensor | None], downward: list[tuple[Tensor | None, Tensor]]
    ) -> Tensor | None:
        total = None
        for gradient, factor in (*zip(parts, self.weights, strict=True), *downward):
            if gradient is None or not self.needs_x:
                continue
            if total is None:
                total = (gradient @ factor).to(self.types[0])
            elif gradient.dtype == total.dtype:
                total = total.addmm_(gradient, factor)
            else:  # add first and round then
                total = total.add_(gradient @ factor)
        return None if total is None else total.view(*self.how.size, -1)
