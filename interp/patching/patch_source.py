"""Where patched values come from: another run, zero, a mean over a reference set, a resample.

* ``run``: the clean prompt's run, at the aligned columns.
* ``zero``: nothing at all.
* ``mean``: each unit's value averaged over all real tokens of a reference set (by default the
  clean prompts).
* ``resample``: the clean run of *another* prompt of the set, drawn without repeats.
"""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import record_run
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import Alignment
from interp.patching.chunks import first_column
from interp.patching.edits import ActivationEdit
from interp.precision import widened

PatchSource = Literal["run", "zero", "mean", "resample"]


def check_patch_source(source: str, component: str) -> None:
    """Raise for an unknown source, or one that has no meaning for the component."""
    if not isinstance(source, str) or source not in get_args(PatchSource):
        raise UserError(f"unknown source {source!r}; known: {', '.join(get_args(PatchSource))}")
    if component == "pattern" and source == "mean":
        raise UserError("a mean attention pattern means nothing: use source 'run' or 'zero'")


def mean_values(
    model: HookedModel, batch: TokenBatch, component: str
) -> Float[Tensor, "layer unit width"]:
    """Each unit's value averaged over all real tokens of a batch."""

    def summed(part: TokenBatch, rows: range) -> Tensor:
        values = widened(record_run(model, part, keep=(component,)).values[component])
        weights = part.mask[None, :, :, None, None].to(values.dtype)
        return (values * weights).sum(dim=(1, 2))

    first, *others = over_parts(batch, summed)
    return sum(others, start=first) / int(batch.mask.sum())


def tail_values(
    model: HookedModel, batch: TokenBatch, component: str, first: int
) -> Float[Tensor, "layer prompt tail unit width"]:
    """A component's values from column ``first`` on, in chunks of prompts."""

    def recorded(part: TokenBatch, rows: range) -> Tensor:
        run = record_run(model, part, start=first, keep=(component,))
        return run.values[component][:, :, first - run.start :]

    return torch.cat(list(over_parts(batch, recorded)), dim=1)


def derangement(count: int, seed: int) -> list[int]:
    """A random order in which nothing keeps its place, for ``resample``."""
    if count < 2:
        raise UserError("source 'resample' needs at least two prompts")
    order = np.random.default_rng(seed).permutation(count)
    drawn = np.empty(count, dtype=int)
    drawn[order] = np.roll(order, 1)
    return drawn.tolist()


def patching_edit(
    model: HookedModel,
    source: TokenBatch,
    alignment: Alignment,
    component: str,
    *,
    mean: Float[Tensor, "layer unit width"] | None = None,
    zero: bool = False,
) -> ActivationEdit:
    """The edit that puts the values of ``source``'s run, a mean, or zero at the aligned columns."""
    at = alignment.at
    if zero:
        return ActivationEdit(at, component=component)  # type: ignore[arg-type]
    first = first_column(at)
    tail = at.shape[1] - first
    if mean is not None:
        shape = (len(mean), len(at), tail, *mean.shape[1:])
        values = mean[:, None, None].expand(shape)
        return ActivationEdit(at, values, first=first, component=component)  # type: ignore[arg-type]
    columns = torch.where(at, alignment.columns, source.width - 1)[:, first:]
    begin = int(columns.min())
    values = tail_values(model, source, component, begin)
    in_order = torch.arange(first, first + tail, device=columns.device)
    if values.shape[2] != tail or bool(((columns != in_order) & at[:, first:]).any()):
        index = (columns - begin)[None, :, :, None, None]
        values = values.gather(2, index.expand(len(values), -1, -1, *values.shape[3:]))
    return ActivationEdit(at, values, first=first, component=component)  # type: ignore[arg-type]
