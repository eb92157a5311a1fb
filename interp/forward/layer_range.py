"""Run only some of a model's blocks: the others pass their input through.

They are not removed, so that the model's own code still makes masks and positions. Works for the
hooked model's blocks and for those without hook points.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def override_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward while the context is open.

    It is set past ``__setattr__``, with which a bridge component would set it on what it wraps.
    """
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def pass_through(n_values: int, given: Tensor | None = None) -> Callable[..., Any]:
    """A block's forward that returns its input, or ``given``: of ``n_values`` in a tuple, or 0."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = hidden_states if given is None else given
        return (output, *[None] * (n_values - 1)) if n_values else output

    return forward


@contextmanager
def run_layers(
    blocks: Sequence[nn.Module],
    layer: int,
    residual: Tensor,
    *,
    stop: int | None,
    tuple_outputs: Sequence[int] = (),
    below: tuple[int, Tensor] | None = None,
) -> Iterator[None]:
    """Blocks below ``layer`` and from ``stop`` on pass through; ``layer`` gets ``residual``.

    With a layer past the last one, the final norm gets it.

    Args:
        tuple_outputs: for each block how many values it returns as a tuple, 0 for a tensor alone
            (see ``interp.models.model_check.ModelCheck``); by default all return tensors.
        below: a lower layer and its input. Blocks from there on run too, for the keys and values
            that layers above read from them; ``layer`` gets ``residual`` all the same.
    """

    def replace_input(value: Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": value}
            return (value, *args[1:]), kwargs

        return hook

    inputs = {layer: residual} if layer < len(blocks) else {}
    if below is not None and below[0] < layer < len(blocks):
        inputs[below[0]] = below[1]
    first = min(inputs, default=layer)
    lengths = list(tuple_outputs) or [0] * len(blocks)
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            if index < first or (stop is not None and index >= stop):
                given = residual if index == 0 and not inputs else None
                stack.enter_context(override_forward(block, pass_through(lengths[index], given)))
        for index, value in inputs.items():
            handle = blocks[index].register_forward_pre_hook(replace_input(value), with_kwargs=True)
            stack.callback(handle.remove)
        yield
