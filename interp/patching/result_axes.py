"""The axes of a patching result: their names, and whether they fit the values."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from interp.errors import UserError

Axis = Literal[
    "prompt", "layer", "head", "kv_head", "neuron", "position", "span", "projection", "expert"
]
By = Literal["absolute", "signed"]


def check_order(by: str) -> None:
    """Raise for an unknown way to order effects, and list the known."""
    if not isinstance(by, str) or by not in get_args(By):
        raise UserError(f"unknown order {by!r}; known: {', '.join(get_args(By))}")


def check_axes(
    axes: tuple[str, ...], shape: Sequence[int], labels: Mapping[str, tuple[str, ...]]
) -> None:
    """Raise unless the axes' names are known, once each, and fit the values' shape and labels."""
    unknown = [axis for axis in axes if axis not in get_args(Axis)]
    if unknown:
        raise UserError(f"unknown axis {unknown[0]!r}; known: {', '.join(get_args(Axis))}")
    if axes[:1] != ("prompt",) or len(set(axes)) < len(axes) or len(axes) < 2:
        raise UserError(f"the axes are the prompt and then others, each once, not {axes}")
    if len(axes) != len(shape):
        raise UserError(f"{len(axes)} axes {axes} for values of shape {tuple(shape)}")
    if shape[0] == 0:
        raise UserError("a result needs at least one prompt")
    for axis, names in labels.items():
        if axis not in axes[1:]:
            raise UserError(f"labels for {axis!r}, which is not an axis: {', '.join(axes[1:])}")
        size = shape[axes.index(axis)]
        if len(names) != size or len(set(names)) < size:
            raise UserError(f"axis {axis!r} needs {size} different labels, not {list(names)}")
