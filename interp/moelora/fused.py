"""An adapted projection as one operator, with a backward written by hand.

A small model's training step takes as long as starting its operators takes. The formula of
``interp.moelora.layer``, written out, starts three dozen for every projection, forward and
backward; here it is about half of that:

* A frozen plain projection is computed inside: what the experts add is accumulated onto its output,
  and their gradient onto that of its input.
* Router and down-projections share one product in both directions, in float32.
* The scaling is a factor of the products, and gates meet the experts' ranks by broadcasting.
* The softmax over the chosen experts is differentiated in its dense form: where a gate is zero, so
  is its gradient, and nothing has to be gathered or scattered.

The router's logits, the hidden values and the up-projections are outputs of the operator too. The
auxiliary losses are computed from these, and their gradients come in with the projection's.

Under autocast the products are in its type and the router in float32. A gradient of a gradient is
not to be had: where it is wanted, ``MoELoRALinear.fused = False`` has the formula written out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

Result = TypeVar("Result")

FUSED_TYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
"""Types of experts that are computed here."""


@dataclass(frozen=True)
class Gating:
    """How the experts of a projection are chosen and weighted; see ``MoELoRAConfig``."""

    top_k: int
    renormalize: bool
    scaling: float
    r: int
    router_noise: float = 0.0


class Weights(NamedTuple):
    """The adapter's weights of one projection."""

    router: Float[Tensor, "expert d_in"]
    down: Float[Tensor, "expert_rank d_in"]
    up: Float[Tensor, "d_out expert_rank"]


class Inputs(NamedTuple):
    """What one projection is given.

    Attributes:
        x: the frozen projection's input.
        dropped: the experts' input, where dropout makes it another one.
        output: the frozen projection's output; None to compute it here.
        weight, bias: of the frozen projection, where it is computed here.
    """

    x: Float[Tensor, "*token d_in"]
    dropped: Float[Tensor, "*token d_in"] | None = None
    output: Float[Tensor, "*token d_out"] | None = None
    weight: Float[Tensor, "d_out d_in"] | None = None
    bias: Float[Tensor, " d_out"] | None = None


class Adapted(NamedTuple):
    """What a projection with experts gives.

    Attributes:
        output: the projection's, with what the experts add.
        joint: router's logits and hidden values side by side; None where they are apart.
        logits: of the router, in float32; None if ``joint``.
        hidden: the token times each expert's down-projection; None if ``joint``.
        up: the up-projections, to compute from: a gradient of them comes back into the operator.
        chosen: the experts each token is routed to.
    """

    output: Float[Tensor, "*token d_out"]
    joint: Float[Tensor, "*token expert_and_rank"] | None
    logits: Float[Tensor, "*token expert"] | None
    hidden: Float[Tensor, "*token expert_rank"] | None
    up: Float[Tensor, "d_out expert_rank"]
    chosen: Int[Tensor, "*token slot"]


def adapted_projection(
    inputs: Inputs, weights: Weights, gating: Gating, *, cast_input: bool = True
) -> Adapted:
    """A projection's output with what its experts add.

    Args:
        cast_input: whether the experts' input is made of the type of their weights.
    """
    kind = inputs.x.device.type
    autocast = torch.is_autocast_enabled(kind)
    types = Types(torch.get_autocast_dtype(kind) if autocast else weights.down.dtype, cast_input)
    if torch.is_grad_enabled():
        found: Any = _AdaptedProjection.apply(gating, types, *inputs, *weights)
        return Adapted(*found)
    done = without_autocast(kind, lambda: _forward(inputs, weights, gating, types))
    return _shaped(done, weights.up, inputs.x.shape[:-1])


class Types(NamedTuple):
    """The type of the experts' products, and whether their input is cast to that of the weights."""

    product: torch.dtype
    cast_input: bool


class _Pass(NamedTuple):
    """A forward pass, flat over tokens: what comes out, and what the backward pass needs."""

    output: Tensor
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


def without_autocast(kind: str, compute: Callable[[], Result]) -> Result:
    """What a function gives where autocast does not cast."""
    if not torch.is_autocast_enabled(kind):
        return compute()
    with torch.autocast(kind, enabled=False):
        return compute()


def _shaped(done: _Pass, up: Tensor, size: torch.Size) -> Adapted:
    def shaped(flat: Tensor | None) -> Any:
        return None if flat is None else flat.view(*size, flat.shape[1])

    logits, hidden = (None, None) if done.joint is not None else (done.logits, done.hidden)
    output, joint, logits, hidden = map(shaped, (done.output, done.joint, logits, hidden))
    return Adapted(output, joint, logits, hidden, up, shaped(done.chosen))


def _forward(inputs: Inputs, weights: Weights, gating: Gating, types: Types) -> _Pass:
    (router, down, up), in_place = weights, inputs.output is None
    x, output = inputs.x.flatten(0, -2), inputs.output
    if output is None:
        assert inputs.weight is not None
        output = F.linear(x, inputs.weight, inputs.bias)
    else:
        output = output.flatten(0, -2)
    wide = x.to(down.dtype) if types.cast_input else x
    dropped = None if inputs.dropped is None else inputs.dropped.flatten(0, -2)
    if dropped is None and {wide.dtype, router.dtype, types.product} == {torch.float32}:
        factors: tuple[Tensor, ...] = (torch.cat([router, down]),)
        joint = F.linear(wide, factors[0])
        logits, hidden = joint.split([len(router), len(down)], dim=1)
    else:
        dropped = (wide if dropped is None else dropped).to(types.product)
        wide, joint = wide.float(), None
        factors = router.float(), down.to(types.product)
        logits, hidden = F.linear(wide, factors[0]), F.linear(dropped, factors[1])
    if gating.router_noise:
        logits.add_(torch.randn_like(logits), alpha=gating.router_noise)
    values, chosen = logits.topk(gating.top_k, dim=1, sorted=False)
    probabilities = None if gating.renormalize else logits.softmax(dim=1)
    kept = values.softmax(dim=1) if probabilities is None else probabilities.gather(1, chosen)
    gates = values.new_zeros(logits.shape).scatter_(1, chosen, kept)
    by_expert = hidden.unflatten(1, (len(router), gating.r))
    weighted = (by_expert * gates.to(hidden.dtype)[..., None]).flatten(1)
    factors = *factors, up.to(types.product)
    if types.product == output.dtype:
        accumulate = output.addmm_ if in_place else output.addmm
        output = accumulate(weighted, factors[-1].T, alpha=gating.scaling)
    else:  # as in PEFT, add first and round then
        added = F.linear(weighted, factors[-1])
        rounded = output if in_place else torch.empty_like(output)
        output = torch.add(output, added, alpha=gating.scaling, out=rounded)
    of_gates = gates, probabilities, weighted
    return _Pass(output, joint, logits, hidden, chosen, *of_gates, wide, dropped, factors)


class _AdaptedProjection(torch.autograd.Function):
    """``adapted_projection``: takes the fields of ``Inputs`` and ``Weights``, gives ``Adapted``."""

    @staticmethod
    def forward(ctx: Any, gating: Gating, types: Types, *tensors: Any) -> Any:
        inputs, weights = Inputs(*tensors[:5]), Weights(*tensors[5:])
        kind, size = inputs.x.device.type, inputs.x.shape[:-1]
        done = without_autocast(kind, lambda: _forward(inputs, weights, gating, types))
        ctx.set_materialize_grads(False)
        ctx.how = _How(gating, size, [getattr(tensor, "dtype", None) for tensor in tensors])
        ctx.save_for_backward(
            *(done.hidden, done.gates, done.probabilities, done.weighted),
            *(done.x, done.dropped, inputs.weight, *done.factors),
        )
        found = _shaped(done, weights.up.view_as(weights.up), size)
        ctx.mark_non_differentiable(found.chosen)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        tensors: Any = ctx.saved_tensors  # once: checkpointing hands them out only once
        more = tensors[7:], ctx.how, ctx.needs_input_grad[2:4]
        saved = _Saved._make([*tensors[:7], *more])
        kind = saved.hidden.device.type
        return None, None, *without_autocast(kind, lambda: _backward(saved, gradients))


class _How(NamedTuple):
    """What a pass was, beside its tensors; ``types`` are those of ``Inputs`` and ``Weights``."""

    gating: Gating
    size: torch.Size
    types: list[torch.dtype | None]


class _Saved(NamedTuple):
    """What the backward pass needs; ``factors`` are the matrices of the products, up last.

    ``needs`` says whether gradients are wanted of the input, and of the experts' own input.
    """

    hidden: Tensor
    gates: Tensor
    probabilities: Tensor | None
    weighted: Tensor
    x: Tensor
    dropped: Tensor | None
    base: Tensor | None
    factors: tuple[Tensor, ...]
    how: _How
    needs: tuple[bool, bool]

    @property
    def sizes(self) -> list[int]:
        """The number of experts, and of their ranks together."""
        return [self.gates.shape[1], self.hidden.shape[1]]


class _Gradients(NamedTuple):
    """Of a pass' values, flat over tokens: ``joint`` or the two apart, as the pass has them."""

    joint: Tensor | None
    logits: Tensor | None
    hidden: Tensor | None


def _backward(saved: _Saved, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of the fields of ``Inputs`` and ``Weights`` from those of ``Adapted``."""
    of_output, *parts = (
        None if gradient is None else gradient.flatten(0, -2) for gradient in gradients[:4]
    )
    within, of_up, types = _Gradients(*parts), gradients[4], saved.how.types
    if of_output is not None:
        up, scaling = saved.factors[-1], saved.how.gating.scaling
        narrow = of_output.to(up.dtype)
        within = _through_gates(saved, product(narrow, up, scaling), within)
        if of_up is not None and of_up.dtype == up.dtype:
            of_up = torch.addmm(of_up, narrow.T, saved.weighted, alpha=scaling)
        else:
            new = product(narrow.T, saved.weighted, scaling)
            of_up = new.to(types[-1]) if of_up is None else of_up + new
    passed_on = None if types[2] is None else gradients[0]
    x, dropped = _of_inputs(saved, of_output, within)
    return x, dropped, passed_on, None, None, *_of_downward(saved, within), of_up


def product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """``factor * a @ b`` in one operator."""
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=factor)


def _through_gates(saved: _Saved, by_rank: Tensor, within: _Gradients) -> _Gradients:
    """Add what comes from the experts' weighted hidden values to the gradients within.

    Args:
        by_rank: of the weighted hidden values.
    """
    hidden, gates, probabilities = saved[:3]
    experts = (gates.shape[1], saved.how.gating.r)
    by_expert, factor = by_rank.unflatten(1, experts), gates.to(by_rank.dtype)[..., None]
    of_gates = (by_rank * hidden).unflatten(1, experts).sum(dim=2, dtype=gates.dtype)
    if probabilities is not None:  # gates are some of these; the others have no gradient
        of_gates, gates = torch.where(gates > 0, of_gates, 0.0), probabilities
    logits = torch.ops.aten._softmax_backward_data(of_gates, gates, 1, gates.dtype)
    if len(saved.factors) > 2:
        new = (by_expert * factor).flatten(1)
        return _Gradients(None, _sum(within.logits, logits), _sum(within.hidden, new))
    joint = hidden.new_empty(len(hidden), sum(saved.sizes))
    to_logits, to_hidden = joint.split(saved.sizes, dim=1)
    to_hidden = to_hidden.unflatten(1, experts)
    if within.joint is None:
        to_logits.copy_(logits)
        torch.mul(by_expert, factor, out=to_hidden)
    else:
        before = within.joint.split(saved.sizes, dim=1)
        torch.add(before[0], logits, out=to_logits)
        torch.addcmul(before[1].unflatten(1, experts), by_expert, factor, out=to_hidden)
    return _Gradients(joint, None, None)


def _sum(before: Tensor | None, new: Tensor) -> Tensor:
    return new if before is None else before + new


def _of_inputs(
    saved: _Saved, of_output: Tensor | None, within: _Gradients
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the projection's input, and of the experts' where that is another."""
    (x_type, dropped_type, *_), size = saved.how.types, saved.how.size
    downward, of_dropped, total = saved.factors[:-1], None, None
    terms = [(of_output, saved.base), (within.joint, downward[0])]
    if len(downward) > 1:
        terms[1:] = [(within.logits, downward[0]), (within.hidden, downward[1])]
    if dropped_type is not None:
        gradient, factor = terms.pop()
        if saved.needs[1] and gradient is not None and factor is not None:
            of_dropped = (gradient @ factor).to(dropped_type).view(*size, -1)
    for gradient, factor in terms if saved.needs[0] else ():
        if gradient is None or factor is None:
            continue
        if total is None:
            total = (gradient @ factor).to(x_type)
        elif gradient.dtype == total.dtype:
            total = total.addmm_(gradient, factor)
        else:  # add first and round then
            total = total.add_(gradient @ factor)
    return None if total is None else total.view(*size, -1), of_dropped


def _of_downward(saved: _Saved, within: _Gradients) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of router and down-projections."""
    if within.joint is not None:
        router, down = (within.joint.T @ saved.x).split(saved.sizes)
        return router, down
    types, dropped = saved.how.types, saved.dropped
    router = None if within.logits is None else (within.logits.T @ saved.x).to(types[5])
    if within.hidden is None or dropped is None:
        return router, None
    return router, (within.hidden.T @ dropped).to(types[6])
