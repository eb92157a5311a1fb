"""A model that torch.compile has compiled, while something is attached to it.

Compiled code is made of the hooks that were there when it was compiled, and does not see others. So
the model runs as it is written until nothing is attached any more. What is compiled while something
is attached contains the hooks, and stays compiled.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from interp.forward.layer_range import override_forward
from interp.modules import modules

_INSIDE = "_orig_mod"
"""Where the module that ``torch.compile`` returns has the one that it was given."""


def inside(given: nn.Module) -> nn.Module:
    """The model that was compiled; any other model as it is."""
    while isinstance(found := given._modules.get(_INSIDE), nn.Module):
        given = found
    return given


@contextmanager
def uncompiled(given: nn.Module) -> Iterator[None]:
    """While open, the model runs as it is written, in all of its parts."""
    with ExitStack() as stack:
        if (model := inside(given)) is not given:
            stack.enter_context(override_forward(given, model.__call__))
        for part in modules(model):
            if part._compiled_call_impl is not None:
                stack.callback(_restore, part, part._compiled_call_impl)
                part._compiled_call_impl = None
        yield


def _restore(part: Any, compiled: Any) -> None:
    if part._compiled_call_impl is None:  # else it has been compiled again
        part._compiled_call_impl = compiled
