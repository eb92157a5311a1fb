"""The modules within a module, found in a fraction of the time that torch takes.

``torch.nn.Module.named_modules`` is a generator within a generator for every level, so that each
module of a deep model is handed up through all of them. A hooked model has some seventy modules a
layer, and a sweep looks through them many times.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn


def named_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` gives, in its order: each module once, under its first name.

    Args:
        model: a ``torch.nn.Module``. Not for one that lists its modules in a way of its own.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        children = module._modules
        if children:
            start = f"{name}." if name else ""
            waiting += [
                (start + key, child)
                for key, child in reversed(children.items())
                if child is not None and id(child) not in seen
            ]


def modules(model: Any) -> Iterator[nn.Module]:
    """What ``model.modules()`` gives, in its order: each module once."""
    seen: set[int] = set()
    waiting: list[nn.Module] = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        children = module._modules
        if children:
            waiting += [child for child in reversed(children.values()) if child is not None]
