"""Edits of heads and other components, as values that can be narrowed and combined.

Two sites (FAITH, arXiv 2402.19103, section 4, has the first):

* ``output``: what a head writes at chosen positions, ``hook_z`` [batch pos head d_head], is
  replaced by a source, or scaled; the same edit serves every other component
  (``interp.forward.hook_points``).
* ``attention``: what later positions read from chosen positions through a head is scaled before
  the softmax, so that the rest of the row is renormalised; factor 0 cuts it.

An edit holds masks over the positions of a left-padded batch. When it is applied, ``units`` says
which units it acts on in each row of the running batch, and ``rows`` which prompt each row is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.arguments import real_number, shown
from interp.errors import UserError
from interp.forward.hook_points import Component, as_units, check_component, from_units, hook_name
from interp.forward.partial import HookFunction
from interp.forward.transfer import upload
from interp.precision import widened

CPU = torch.device("cpu")


def scores_hook_name(layer: int) -> str:
    """Attention scores before the softmax, masked, [batch head query key]."""
    return f"blocks.{layer}.attn.hook_attn_scores"


def edited_points(component: str) -> tuple[str, ...]:
    """The hook points that an edit of a component writes at, in the first layer."""
    # An edit in the middle of a layer has to reach its end as well (forward.into_the_stream).
    also = ("resid_post",) if component == "resid_mid" else ()
    return tuple(hook_name(name, 0) for name in (component, *also))


def rows_of_units(
    sets: Sequence[Iterable[int]], n_units: int, n_prompts: int, *, device: torch.device = CPU
) -> Bool[Tensor, "row unit"]:
    """Which units each row edits, where every set of units runs for all prompts, set by set."""
    acting = torch.zeros(len(sets), n_units, dtype=torch.bool)
    for index, units in enumerate(sets):
        acting[index, list(units)] = True
    return upload(acting, device).repeat_interleave(n_prompts, dim=0)


@dataclass(frozen=True)
class ActivationEdit:
    """value ← source + scale · value at the positions ``at``; a source of None counts as zero.

    Attributes:
        at: Bool[prompt pos], over all positions of the batch.
        source: Float[layer prompt pos unit width], at the positions from ``first`` on, or None.
        scale: weight of the unit's unedited value: 0 replaces it.
        first: the position at which ``source`` begins.
        component: what is edited; by default the heads' outputs.
    """

    at: Bool[Tensor, "prompt pos"]
    source: Float[Tensor, "layer prompt source_pos unit width"] | None = None
    scale: float = 0.0
    first: int = 0
    component: Component = "z"

    def __post_init__(self) -> None:
        _check_mask("at", self.at)
        check_component(self.component)

    @property
    def changed(self) -> Bool[Tensor, "prompt pos"]:
        """The positions whose values differ from the unedited run."""
        return self.at

    @property
    def hook_points(self) -> tuple[str, ...]:
        """The hook points that the edit writes at, in the first layer."""
        return edited_points(self.component)

    def edited(
        self,
        value: Float[Tensor, "row pos unit width"],
        layer: int,
        *,
        rows: Int[Tensor, " row"],
        start: int,
    ) -> Float[Tensor, "row pos unit width"]:
        """The value with every unit edited at ``at``; ``start`` is the value's first position."""
        at = self.at[rows, start : start + value.shape[1], None, None].to(value.device)
        new = self.scale * value
        if self.source is not None:
            before = max(self.first - start, 0)  # positions that the source does not reach
            begin = max(start - self.first, 0)
            source = self.source[layer, rows, begin : begin + value.shape[1] - before]
            source = nn.functional.pad(source, (0, 0, 0, 0, before, 0))
            new = new + source.to(device=value.device, dtype=value.dtype)
        return torch.where(at, new, value)

    def merged(
        self,
        value: Float[Tensor, "row pos unit width"],
        layer: int,
        *,
        rows: Int[Tensor, " row"],
        units: Bool[Tensor, "row unit"],
        start: int,
    ) -> Float[Tensor, "row pos unit width"]:
        """The value with only some units edited in each row."""
        new = self.edited(value, layer, rows=rows, start=start)
        return torch.where(units[:, None, :, None].to(value.device), new, value)

    def hook(
        self, layer: int, *, rows: Int[Tensor, " row"], units: Bool[Tensor, "row unit"], start: int
    ) -> tuple[str, HookFunction]:
        """The hook that applies this edit to a run whose first position is ``start``."""

        def write(value: Tensor, hook: object) -> Tensor:
            by_unit = as_units(value, self.component)
            new = self.merged(by_unit, layer, rows=rows, units=units, start=start)
            return from_units(new, self.component)

        return hook_name(self.component, layer), write


@dataclass(frozen=True)
class AttentionEdit:
    """Attention from positions after ``keys`` to ``keys``, times ``factor``, renormalised.

    Attributes:
        keys: Bool[prompt pos], the positions that are read less, or not at all (factor 0).
        factor: multiplies the unnormalised weight; it adds log(factor) to the scores.
    """

    keys: Bool[Tensor, "prompt pos"]
    factor: float = 0.0

    @property
    def component(self) -> Component:
        """The component whose units are edited: the query heads."""
        return "pattern"

    def __post_init__(self) -> None:
        _check_mask("keys", self.keys)
        if real_number("factor", self.factor) < 0:
            raise UserError(f"an attention factor is zero or more, not {self.factor}")

    @property
    def changed(self) -> Bool[Tensor, "prompt pos"]:
        """The positions at which a head's output differs: all those after the last key."""
        width = self.keys.shape[1]
        last = width - 1 - self.keys.flip(1).long().argmax(dim=1)
        positions = torch.arange(width, device=self.keys.device)
        return (positions[None, :] > last[:, None]) & self.keys.any(dim=1, keepdim=True)

    @property
    def hook_points(self) -> tuple[str, ...]:
        """The hook points that the edit writes at, in the first layer."""
        return (scores_hook_name(0),)

    def pairs(self, rows: Int[Tensor, " row"], start: int, queries: int) -> Bool[Tensor, "row q k"]:
        """The (query, key) pairs that are edited, for queries from position ``start`` on."""
        changed = self.changed[rows, start : start + queries]
        return changed[:, :, None] & self.keys[rows, None, :]

    def edited(
        self, pattern: Float[Tensor, "row head q k"], *, rows: Int[Tensor, " row"], start: int
    ) -> Float[Tensor, "row head q k"]:
        """The pattern with every head edited: scaled at the pairs and renormalised.

        A row's weights need not sum to one: an attention sink (gpt-oss) takes the rest, and its
        share of what is cut.
        """
        pairs = self.pairs(rows, start, pattern.shape[2])[:, None].to(pattern.device)
        scaled = torch.where(pairs, self.factor * pattern, pattern)
        removed = (widened(pattern) - widened(scaled)).sum(dim=-1, keepdim=True)
        return scaled / (1 - removed).clamp(min=torch.finfo(pattern.dtype).tiny)

    def hook(
        self, layer: int, *, rows: Int[Tensor, " row"], units: Bool[Tensor, "row head"], start: int
    ) -> tuple[str, HookFunction]:
        """The hook that applies this edit to a run whose first query is at ``start``."""

        def cut(scores: Tensor, hook: object) -> Tensor:
            pairs = self.pairs(rows, start, scores.shape[2]).to(scores.device)
            where = pairs[:, None] & units[:, :, None, None].to(scores.device)
            return scale_scores(scores, where, self.factor)

        return scores_hook_name(layer), cut


HeadEdit = ActivationEdit | AttentionEdit


def check_edit(edit: Any) -> None:
    """Raise UserError unless ``edit`` is an ActivationEdit or an AttentionEdit."""
    if not isinstance(edit, HeadEdit):
        raise UserError(f"edit is an ActivationEdit or an AttentionEdit, not {shown(edit)}")


def _check_mask(what: str, mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
        raise UserError(f"{what} must be a mask [prompt pos] of True and False")


def scale_scores(scores: Tensor, where: Tensor, factor: float | Tensor) -> Tensor:
    """Scores whose softmax gives the weights times ``factor`` where asked, renormalised.

    Args:
        factor: zero or more: one number, or a tensor that fits the scores, of several.
    """
    if isinstance(factor, Tensor):
        factor = factor.to(scores.device)
        scaled = torch.where(where, scores + factor.log().to(scores.dtype), scores)
        return scaled.masked_fill(where & (factor == 0), torch.finfo(scores.dtype).min)
    if factor == 0:
        return scores.masked_fill(where, torch.finfo(scores.dtype).min)
    return torch.where(where, scores + math.log(factor), scores)


def take_edit(edit: HeadEdit, prompts: Int[Tensor, " prompt"], drop: int = 0) -> HeadEdit:
    """The edit for some of the prompts, with the first ``drop`` positions cut away.

    It may be on another device than the indices of the prompts; what is taken is on theirs.
    """
    if isinstance(edit, AttentionEdit):
        return replace(edit, keys=_take(edit.keys, prompts)[:, drop:])
    source = edit.source
    if source is not None:
        # A source that begins before the cut loses its first positions too.
        source = _take(source[:, :, max(drop - edit.first, 0) :], prompts, axis=1)
        if edit.component == "pattern":  # its keys are positions of the batch
            source = source[..., drop:]
    at = _take(edit.at, prompts)[:, drop:]
    return replace(edit, at=at, source=source, first=max(edit.first - drop, 0))


def _take(values: Tensor, prompts: Int[Tensor, " prompt"], *, axis: int = 0) -> Tensor:
    taken = values.index_select(axis, prompts.to(values.device))
    return upload(taken, prompts.device)
