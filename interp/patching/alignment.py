"""Which positions are patched, and which positions of the clean run their values come from.

Prompts of equal lengths are aligned position by position. Prompts that differ in length are
aligned at spans, by the spans' last tokens: a longer span repeats the other's first token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.arguments import listed, pairs_of_numbers
from interp.errors import UserError
from interp.forward.batch import Span, TokenBatch, first_difference

SpanPair = tuple[Sequence[Span], Sequence[Span]]
"""Spans [start, end) in unpadded token positions, one a prompt: of clean, and of corrupted."""
Positions = Literal["all", "each"] | Mapping[str, SpanPair]


@dataclass(frozen=True)
class Alignment:
    """Which positions are patched together, and where their values come from.

    Attributes:
        position_sets: Bool[position_set prompt pos], positions of the corrupted batch; those of one
            set are patched together.
        clean_positions: Int[prompt pos], for each corrupted position the clean one that it takes
            its value from.
        axis: the result's axis of the position sets, "position" or "span"; None for a single set.
        labels: a name for each position set.
    """

    position_sets: Bool[Tensor, "position_set prompt pos"]
    clean_positions: Int[Tensor, "prompt pos"]
    axis: Literal["position", "span"] | None
    labels: tuple[str, ...]

    @property
    def at(self) -> Bool[Tensor, "prompt pos"]:
        """All positions in any set."""
        return self.position_sets.any(dim=0)

    def take(self, prompts: Int[Tensor, " prompt"], *, drop: int, clean_drop: int) -> "Alignment":
        """Of some prompts, in batches that are this much narrower on the left."""
        return replace(
            self,
            position_sets=self.position_sets[:, prompts, drop:],
            clean_positions=(self.clean_positions[prompts, drop:] - clean_drop).clamp(min=0),
        )


def align(
    clean: TokenBatch,
    corrupted: TokenBatch,
    positions: Positions | str,
    *,
    everywhere: bool = False,
) -> Alignment:
    """Align the positions of clean and corrupted prompts.

    Args:
        positions: "all" at once, "each" alone, or named spans.
        everywhere: patch every real token, whatever the clean prompt is (zero, mean); otherwise
            from the first difference on: before it, both runs are the same.

    Raises:
        UserError: unequal lengths without spans, spans that are not in their prompts, unknown
            positions.
    """
    if len(clean) != len(corrupted):
        raise UserError(
            f"{len(clean)} clean prompts but {len(corrupted)} corrupted ones: give pairs"
        )
    if isinstance(positions, Mapping):
        return _align_spans(clean, corrupted, positions)
    if positions not in ("all", "each"):
        raise UserError(f"unknown positions {positions!r}; known: all, each, or named spans")
    every = torch.arange(corrupted.width, device=corrupted.tokens.device)
    changed = corrupted.mask
    if not everywhere:
        first = first_difference(clean, corrupted).clamp(max=corrupted.width - 1)
        changed = (every[None, :] >= first[:, None]) & corrupted.mask
    taken = every.expand(len(corrupted), -1)
    if positions == "all":
        return Alignment(changed[None], taken, None, ("all",))
    start = int(changed.any(dim=0).long().argmax())
    single = torch.eye(corrupted.width, dtype=torch.bool, device=changed.device)
    labels = tuple(map(str, range(start, corrupted.width)))
    return Alignment(single[start:, None, :] & changed[None], taken, "position", labels)


def _align_spans(
    clean: TokenBatch, corrupted: TokenBatch, spans: Mapping[str, SpanPair]
) -> Alignment:
    if not spans:
        raise UserError("there are no spans: name at least one")
    taken_from = torch.zeros_like(corrupted.tokens)
    covered = torch.zeros_like(corrupted.mask)
    sets = []
    for name, pair in spans.items():
        clean_spans, corrupted_spans = span_lists(name, pair)
        here, there = corrupted.span_mask(corrupted_spans), clean.span_mask(clean_spans)
        if bool((here & covered).any()):
            raise UserError(f"span {name!r} overlaps another span: give spans that do not overlap")
        covered |= here
        taken_from = torch.where(here, aligned_positions(here, there), taken_from)
        sets.append(here)
    return Alignment(torch.stack(sets), taken_from, "span", tuple(spans))


def span_lists(name: str, given: Any) -> tuple[list[Span], list[Span]]:
    """The spans of the clean and of the corrupted prompts that were given for a name.

    Raises UserError for anything but two lists of (start, end).
    """
    argument = f"positions[{name!r}]"
    halves = listed(argument, given, "two: the spans of the clean and of the corrupted prompts")
    if len(halves) != 2:
        raise UserError(
            f"{argument} is two lists, the spans of the clean and the corrupted prompts"
        )
    first, second = (pairs_of_numbers(argument, half, of="(start, end)") for half in halves)
    return first, second


def aligned_positions(
    here: Bool[Tensor, "prompt pos"], there: Bool[Tensor, "prompt pos_there"]
) -> Int[Tensor, "prompt pos"]:
    """For each position of a span here, the position of the span there that it is aligned with.

    Spans are aligned by their last tokens; a longer span repeats the other's first token. The
    numbers outside the span have no meaning.
    """
    last_here, last_there = (at.shape[1] - 1 - at.flip(1).long().argmax(1) for at in (here, there))
    first_there = there.long().argmax(dim=1)
    positions = torch.arange(here.shape[1], device=here.device)
    moved = last_there[:, None] - (last_here[:, None] - positions[None, :])
    moved = torch.maximum(moved, first_there[:, None])
    return torch.minimum(moved, last_there[:, None])
