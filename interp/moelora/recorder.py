"""Recording of a training forward pass for the auxiliary losses, kept until the next one.

Nothing is global: one `Recorder` belongs to one adapted model and its layers share it. It opens a
`Step` when the model's forward begins in training mode and closes it when that ends; in evaluation
mode there is no step and nothing is kept. Of each adapted projection the step keeps tensors that
the forward pass makes anyway (router logits, the experts' hidden values), with their graph, so the
losses' gradients reach everything that the values depend on, and computing the losses is left to
whoever asks.

Gradient checkpointing runs parts of the model again during backward, when the step is closed:

* Non-reentrant: the first pass has made the graph, and what the step keeps belongs to it. The
  second pass only refills it and is not recorded.
* Reentrant: the first pass makes no graph. The losses then have the right values, and their
  backward, which runs before any of the model's, leaves in the step what each projection's terms
  are to be multiplied by; the second pass computes the terms again, now with a graph, and hangs
  them on the projection's output. So there is one backward per forward in this mode.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.models.passes import call_arguments
from interp.moelora.config import MoELoRAConfig

Key = tuple[str, str]


@dataclass(frozen=True)
class Routed:
    """What one adapter did in one projection: everything its auxiliary losses depend on.

    Attributes:
        key: the projection's name and the adapter's.
        config: the adapter's settings.
        experts: how many there are.
        chosen: the experts each token was routed to.
        up: the experts' up-projections.
        joint: the router's logits and the hidden values side by side; None where they are apart.
        logits: of the router, in float32; None where there is ``joint``.
        hidden: the token times each expert's down-projection; None where there is ``joint``.
    """

    key: Key
    config: MoELoRAConfig
    experts: int
    chosen: Int[Tensor, "*token slot"]
    up: Float[Tensor, "d_out expert_rank"]
    joint: Float[Tensor, "*token expert_and_rank"] | None
    logits: Float[Tensor, "*token expert"] | None
    hidden: Float[Tensor, "*token expert_rank"] | None

    @property
    def size(self) -> tuple[int, ...]:
        """The leading sizes of the projection's input, those of ``*token``."""
        return tuple(self.chosen.shape[:-1])

    @property
    def has_graph(self) -> bool:
        """Whether a gradient of its values leads back into the model."""
        values = (self.joint, self.logits, self.hidden)
        return any(value is not None and value.requires_grad for value in values)


@dataclass(frozen=True)
class Sample:
    """Tokens drawn for the contrastive loss.

    Attributes:
        tokens: their indices in the flat batch.
        real: which of them are no padding; None: all. Padding is drawn when all real tokens are.
    """

    tokens: Int[Tensor, " sample"]
    real: Bool[Tensor, " sample"] | None


@dataclass
class Step:
    """One training forward pass.

    Attributes:
        mask: Bool[batch pos], True at real tokens; None if the model got none.
        kept_positions: the positions whose logits were asked for, where only some were.
        with_grad: whether the forward began with gradients enabled.
        open: whether it is still going on.
        kept: what each projection did, in the order in which they ran.
        samples: the tokens drawn for the contrastive loss, by the shape they were drawn from.
        late: set by reentrant checkpointing's backward: how to compute the terms again, and what
            each projection's terms are multiplied by.
    """

    mask: Bool[Tensor, "batch pos"] | None
    with_grad: bool
    kept_positions: Int[Tensor, " position"] | None = None
    open: bool = True
    kept: list[Routed] = field(default_factory=list)
    samples: dict[tuple[int, ...], Sample] = field(default_factory=dict)
    late: tuple[Callable[..., Tensor], dict[Key, Tensor]] | None = None

    def is_late(self, routed: Routed) -> bool:
        """Whether that projection's graph is only made during backward."""
        return self.with_grad and routed.up.requires_grad and not routed.has_graph

    def real_tokens(self, shape: tuple[int, ...]) -> Bool[Tensor, " token"] | None:
        """The mask for projections whose inputs have that leading shape, flat; None: all real."""
        if self.mask is None:
            return None
        if shape == (self.mask.numel(),):  # OPT runs its MLP on batch and positions as one axis
            return self.mask.flatten()
        if len(shape) != 2:
            return None
        if self.mask.shape[0] != shape[0] or self.mask.shape[1] < shape[1]:
            return None
        kept = self.kept_positions
        if kept is not None and shape[1] == len(kept):  # an adapted unembedding
            return self.mask[:, kept.to(self.mask.device)].flatten()
        return self.mask[:, self.mask.shape[1] - shape[1] :].flatten()

    def sample(self, size: tuple[int, ...], count: int, *, device: torch.device) -> Sample:
        """``count`` real tokens of a batch of that leading size, drawn once for all projections.

        Its shape does not depend on how many real tokens there are, so that no device is waited
        for.
        """
        key = (*size, count)
        if key not in self.samples:
            n_tokens, real = math.prod(size), self.real_tokens(size)
            order = torch.rand(n_tokens, device=device)
            if real is not None:
                order = order.masked_fill(~real.to(device), -1.0)
            tokens = order.topk(min(count, n_tokens)).indices
            there = None if real is None else real.to(device).index_select(0, tokens)
            self.samples[key] = Sample(tokens, there)
        found = self.samples[key]
        there = None if found.real is None else found.real.to(device)
        return Sample(found.tokens.to(device), there)


class Recorder:
    """Keeps the last training forward pass of one adapted model.

    Args:
        first_step: called with the model before its first training forward with gradients.
    """

    def __init__(self, first_step: Callable[[nn.Module], object] | None = None) -> None:
        self.step: Step | None = None
        self.first_step, self.has_begun = first_step, False

    def watch(self, model: nn.Module) -> list[Any]:
        """Follow that model's forward passes; returns the hooks' handles."""
        return [
            model.register_forward_pre_hook(self.begin, with_kwargs=True),
            model.register_forward_hook(self.end, always_call=True),
        ]

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forget the step before; in training mode, open a new one."""
        self.step = None
        if model.training:
            if self.first_step and not self.has_begun and torch.is_grad_enabled():
                self.has_begun = True
                self.first_step(model)
            called = call_arguments(model, args, kwargs)
            kept = called.get("logits_to_keep")
            kept = kept if isinstance(kept, Tensor) and kept.ndim == 1 else None
            self.step = Step(_mask_of(called), torch.is_grad_enabled(), kept)

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """Close the step: what runs after this is a recomputation."""
        if self.step is not None:
            self.step.open = False

    def keep(
        self, routed: Routed, output: Float[Tensor, "*token d_out"]
    ) -> Float[Tensor, "*token d_out"]:
        """Keep what a projection did; returns its output, with late gradients hung on it."""
        step = self.step
        if step is None:
            return output
        if step.open:
            step.kept.append(routed)
            return output
        if step.late is None or not torch.is_grad_enabled():
            return output
        terms_of, scales = step.late
        scale = scales.pop(routed.key, None)
        if scale is None:
            return output
        return _WithLoss.apply(output, (terms_of(step, [routed])[0] * scale).sum())  # type: ignore[return-value]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recorder":
        """A copy of the model has not run yet; and tensors in a graph cannot be copied."""
        return Recorder(self.first_step)

    def __getstate__(self) -> dict[str, Any]:
        return {"step": None, "first_step": self.first_step, "has_begun": False}


class _WithLoss(torch.autograd.Function):
    """The output unchanged; its backward sends a gradient of one into a loss as well."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        ctx.loss_like = (loss.dtype, loss.device)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        dtype, device = ctx.loss_like
        return gradient, torch.ones((), dtype=dtype, device=device)


def _mask_of(called: dict[str, Any]) -> Bool[Tensor, "batch pos"] | None:
    """The padding mask that a model was called with, if it is one per token."""
    mask = called.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    return mask.bool()
