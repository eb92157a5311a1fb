"""Where patched values come from: another run, zero, a mean over a reference set, a resample.

* ``run``: the clean prompt's run, at the aligned positions.
* ``zero``: all values are zero.
* ``mean``: each unit's value averaged over all real tokens of a reference set (by default the
  clean prompts).
* ``resample``: the clean run of *another* prompt of the set, drawn without repeats.
"""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice
from interp.errors import UserError
from interp.forward.batch import RUN_TOKENS, TokenBatch
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import record_run
from interp.forward.pass_tokens import pass_tokens
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import Alignment
from interp.patching.chunks import first_position
from interp.patching.edits import ActivationEdit
from interp.precision import widened

PatchSource = Literal["run", "zero", "mean", "resample"]


def check_patch_source(source: str, component: str) -> None:
    """Raise UserError for an unknown source, or one that the component cannot have."""
    check_choice("source", source, get_args(PatchSource))
    if component == "pattern" and source == "mean":
        raise UserError("a mean attention pattern is not defined: use source 'run' or 'zero'")


def mean_values(
    model: HookedModel, batch: TokenBatch, component: str
) -> Float[Tensor, "layer unit width"]:
    """Each unit's value averaged over all real tokens of a batch."""

    def summed(part: TokenBatch, rows: range) -> Tensor:
        values = widened(record_run(model, part, keep=(component,)).values[component])
        weights = part.mask[None, :, :, None, None].to(values.dtype)
        return (values * weights).sum(dim=(1, 2))

    tokens = pass_tokens(model, batch.width, least=RUN_TOKENS, kept=[component])
    first, *others = over_parts(batch, summed, batch_tokens=tokens)
    return sum(others, start=first) / int(batch.mask.sum())


@torch.no_grad()
def recorded_values(
    model: HookedModel, batch: TokenBatch, component: str, *, first: int
) -> Float[Tensor, "layer prompt pos unit width"]:
    """A component's values from position ``first`` on, recorded some prompts at a time."""

    def recorded(part: TokenBatch, rows: range) -> Tensor:
        run = record_run(model, part, start=first, keep=(component,))
        return run.values[component][:, :, first - run.start :]

    tokens = pass_tokens(model, batch.width, least=RUN_TOKENS, kept=[component])
    return torch.cat(list(over_parts(batch, recorded, batch_tokens=tokens)), dim=1)


def derangement(count: int, seed: int) -> list[int]:
    """A random order in which no prompt keeps its place, for ``resample``."""
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
    *,
    component: str,
    mean: Float[Tensor, "layer unit width"] | None = None,
    zero: bool = False,
) -> ActivationEdit:
    """The edit that puts in the aligned values of ``source``'s run, or a mean, or zero."""
    at, values, first = alignment.at, None, 0
    if not zero:
        first = first_position(at)
        size = at.shape[1] - first
        if mean is not None:
            shape = (len(mean), len(at), size, *mean.shape[1:])
            values = mean[:, None, None].expand(shape)
        else:
            taken = torch.where(at, alignment.clean_positions, source.width - 1)[:, first:]
            begin = int(taken.min())
            values = recorded_values(model, source, component, first=begin)
            in_order = torch.arange(first, first + size, device=taken.device)
            if values.shape[2] != size or bool(((taken != in_order) & at[:, first:]).any()):
                index = (taken - begin)[None, :, :, None, None]
                values = values.gather(2, index.expand(len(values), -1, -1, *values.shape[3:]))
    return ActivationEdit(at, values, first=first, component=component)  # type: ignore[arg-type]
