"""Arrays of effects: do the axes fit the values, which units are largest, do two arrays agree."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import check_choice, listed, whole_number
from interp.errors import UserError
from interp.forward.hook_points import Axis as UnitAxis
from interp.lazy import stats

Axis = Literal["prompt", "layer", UnitAxis, "position", "span", "projection", "expert"]
By = Literal["absolute", "signed"]


def check_order(by: str) -> None:
    """Raise UserError for an unknown way to order effects, listing the known ones."""
    check_choice("order", by, get_args(By))


def check_axes(
    axes: tuple[str, ...], shape: Sequence[int], labels: Mapping[str, tuple[str, ...]]
) -> None:
    """Raise unless the axes' names are known, once each, and fit the values' shape and labels."""
    for axis in axes:
        check_choice("axis", axis, get_args(Axis))
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


def best_first(
    means: Float[np.ndarray, "*sample unit"], *, by: str = "signed"
) -> Int[np.ndarray, "*sample unit"]:
    """Indices of the units, largest first, NaN last; of equal units the first wins."""
    check_order(by)
    key = np.abs(means) if by == "absolute" else means
    return np.argsort(-np.where(np.isnan(key), -np.inf, key), axis=-1, kind="stable")


def correlations(
    x: Float[np.ndarray, " unit"], y: Float[np.ndarray, " unit"]
) -> tuple[float, float]:
    """Pearson's and Spearman's correlation; NaN where all values of one side are equal."""
    # The correlation with a constant is not defined; scipy would warn.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    pearson: Any = stats.pearsonr(x, y)
    spearman: Any = stats.spearmanr(x, y)
    return float(pearson.statistic), float(spearman.statistic)


def has_gap(clean: Float[Tensor, " prompt"], corrupted: Float[Tensor, " prompt"]) -> bool:
    """Whether the mean metrics of clean and corrupted runs differ by more than rounding."""
    size = float((clean.abs() + corrupted.abs()).double().mean())
    return abs(float((clean - corrupted).double().mean())) > 1e-5 * size and size != 0


def check_prompts(result: Any, *by_prompt: str) -> None:
    """Give each prompt of a result a group of its own where it names none, and check the rest.

    The seed becomes a plain number, metadata text, as a file holds them.

    Args:
        by_prompt: names of what has an entry for each prompt, or is None.

    Raises:
        UserError: another number of entries than of prompts, or a negative seed.
    """
    n_prompts = len(result.values)
    object.__setattr__(result, "seed", whole_number("seed", result.seed))
    metadata = {str(name): str(value) for name, value in result.metadata.items()}
    object.__setattr__(result, "metadata", metadata)
    if not result.groups:
        object.__setattr__(result, "groups", tuple(map(str, range(n_prompts))))
    if result.seed < 0:
        raise UserError(f"a seed is zero or more, not {result.seed}")
    for name in ("groups", *by_prompt):
        entries = getattr(result, name)
        if entries is not None and len(entries) != n_prompts:
            raise UserError(f"{n_prompts} prompts but {len(entries)} {name}")
        if name in ("groups", "templates"):  # numbers become text, as a file holds them
            object.__setattr__(result, name, tuple(map(str, listed(name, entries))))


def joined_groups(parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The groups of several results' prompts, together.

    A prompt without a group has its number in its own result as one (`check_prompts`,
    `interp.tasks.Pairs.groups`): these are numbered anew, so that the first prompts of two results
    stay two groups. Not so where a result holds other numbers, as a part of a larger one does.
    """
    for form, pattern in (("{}", r"\d+"), ("pair {}", r"pair \d+")):
        numbered = [
            [re.fullmatch(pattern, group, re.ASCII) is not None for group in part] for part in parts
        ]
        as_given = all(
            group == form.format(number)
            for part, is_number in zip(parts, numbered, strict=True)
            for number, (group, is_one) in enumerate(zip(part, is_number, strict=True))
            if is_one
        )
        if as_given and all(map(any, numbered)):
            flags = [is_one for part in numbered for is_one in part]
            groups = [group for part in parts for group in part]
            return tuple(
                form.format(number) if is_one else group
                for number, (group, is_one) in enumerate(zip(groups, flags, strict=True))
            )
    return tuple(group for part in parts for group in part)
