"""Which columns are patched, and which columns of the other run their values come from.

Prompts of equal lengths are aligned column by column. Prompts that differ in length are aligned at
spans, by the spans' last tokens: a longer span repeats the other's first token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """What is patched where.

    Attributes:
        places: Bool[place prompt pos], columns of the corrupted batch, one mask a place.
        columns: Int[prompt pos], for each corrupted column the clean column that it takes from.
        axis: name of the places' axis, "position" or "span"; None where there is one place only.
        labels: a name for each place.
    """

    places: Bool[Tensor, "place prompt pos"]
    columns: Int[Tensor, "prompt pos"]
    axis: Literal["position", "span"] | None
    labels: tuple[str, ...]

    @property
    def at(self) -> Bool[Tensor, "prompt pos"]:
        """All columns that any place covers."""
        return self.places.any(dim=0)


def align(
    clean: TokenBatch,
    corrupted: TokenBatch,
    positions: Positions | str,
    *,
    everywhere: bool = False,
) -> Alignment:
    """Work out places and columns.

    Args:
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
    columns = torch.arange(corrupted.width, device=corrupted.tokens.device)
    if everywhere:
        changed = corrupted.mask
    else:
        first = first_difference(clean, corrupted).clamp(max=corrupted.width - 1)
        changed = (columns[None, :] >= first[:, None]) & corrupted.mask
    taken = columns.expand(len(corrupted), -1)
    if positions == "all":
        return Alignment(changed[None], taken, None, ("all",))
    start = int(changed.any(dim=0).long().argmax())
    single = torch.eye(corrupted.width, dtype=torch.bool, device=changed.device)
    places = single[start:, None, :] & changed[None]
    return Alignment(places, taken, "position", tuple(map(str, range(start, corrupted.width))))


def _align_spans(
    clean: TokenBatch, corrupted: TokenBatch, spans: Mapping[str, SpanPair]
) -> Alignment:
    if not spans:
        raise UserError("there are no spans: name at least one")
    columns = torch.zeros_like(corrupted.tokens)
    taken = torch.zeros_like(corrupted.mask)
    places = []
    for name, halves in spans.items():
        of_clean, of_corrupted = span_lists(name, halves)
        here, there = corrupted.span_mask(of_corrupted), clean.span_mask(of_clean)
        if bool((here & taken).any()):
            raise UserError(f"span {name!r} overlaps another span: give spans that do not overlap")
        taken |= here
        columns = torch.where(here, aligned_columns(here, there), columns)
        places.append(here)
    return Alignment(torch.stack(places), columns, "span", tuple(spans))


def span_lists(name: str, given: Any) -> tuple[list[Span], list[Span]]:
    """The spans of the clean and of the corrupted prompts, as they are given for a name.

    Raises UserError for anything but two lists of (start, end).
    """
    place = f"positions[{name!r}]"
    halves = listed(place, given, "two: the spans of the clean and of the corrupted prompts")
    if len(halves) != 2:
        raise UserError(f"{place} is two lists, the spans of the clean and the corrupted prompts")
    first, second = (pairs_of_numbers(place, half, of="(start, end)") for half in halves)
    return first, second


def aligned_columns(
    here: Bool[Tensor, "prompt pos"], there: Bool[Tensor, "prompt pos_there"]
) -> Int[Tensor, "prompt pos"]:
    """For each column of a span here, the column of the span there that it takes its value from.

    Spans are aligned by their last tokens; a longer span repeats the other's first token. Columns
    outside the span are not to be used.
    """
    last_here, last_there = _last(here), _last(there)
    first_there = there.long().argmax(dim=1)
    columns = torch.arange(here.shape[1], device=here.device)
    moved = last_there[:, None] - (last_here[:, None] - columns[None, :])
    moved = torch.maximum(moved, first_there[:, None])
    return torch.minimum(moved, last_there[:, None])


def _last(at: Bool[Tensor, "prompt pos"]) -> Int[Tensor, " prompt"]:
    return at.shape[1] - 1 - at.flip(1).long().argmax(dim=1)
