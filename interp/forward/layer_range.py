"""PromptState some of a model's blocks only: the others pass their input through.

They are not left out, so that the model's own code still makes masks and positions. Serves the
hooked model's blocks and the plain ones alike.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def override_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module runs another function while the context is open.

    Set past the module's own ``__setattr__``: a bridge component would hand it on to what it wraps.
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


@contextmanager
def run_layers(
    blocks: Sequence[nn.Module],
    layer: int,
    residual: Tensor,
    stop: int | None,
    tuple_outputs: Sequence[int] = (),
    below: tuple[int, Tensor] | None = None,
) -> Iterator[None]:
    """Blocks below ``layer`` and from ``stop`` on pass through; ``layer`` gets ``residual``.

    With a layer past the last one, the final norm gets it.

    Args:
        tuple_outputs: for each block how many values it returns as a tuple, 0 for a bare tensor
            (see ``interp.models.model_check.ModelCheck``); by default all return tensors.
        below: a lower layer and its input. Blocks from there on run too, for the keys and values
            that they leave to the layers above; ``layer`` gets ``residual`` all the same.
    """

    def passing(n_values: int) -> Callable[..., Any]:
        def pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states, *[None] * (n_values - 1)) if n_values else hidden_states

        return pass_through

    def hand_over(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return passing(lengths[0])(residual)

    def giving(value: Tensor) -> Callable[..., Any]:
        def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": value}
            return (value, *args[1:]), kwargs

        return enter

    first = layer if below is None or layer >= len(blocks) else min(layer, below[0])
    lengths = list(tuple_outputs) or [0] * len(blocks)
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            if index < first or (stop is not None and index >= stop):
                stack.enter_context(override_forward(block, passing(lengths[index])))
        if layer >= len(blocks):
            stack.enter_context(override_forward(blocks[0], hand_over))
        else:
            entries = {first: below[1]} if below is not None and first < layer else {}
            for index, value in {**entries, layer: residual}.items():
                handle = blocks[index].register_forward_pre_hook(giving(value), with_kwargs=True)
                stack.callback(handle.remove)
        yield
