"""The sufficient statistics of routing: what the measures, their intervals and nulls need.

Nothing here grows with the corpus. Counts are whole numbers and moments float64, so the tables of
two halves of a corpus add up to those of the whole.

A *fold* is a part of the texts (whole units, dealt out within each task) that is left out for the
jackknife; a *unit* is what is permuted between tasks. The most frequent token ids have a row each,
all others share the last row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import UserError
from interp.experts.routing.token_class import CLASSES

POSITIONS: tuple[str, ...] = ("0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127", "128+")
"""Buckets of a token's place in its text, behind what all texts begin with."""
MOST_SETS = 256
"""Up to so many different sets of chosen experts are counted as sets."""
LARGEST_SIZE = 2**20
"""Above every size of a table that is read."""


@dataclass(frozen=True)
class Sizes:
    """How large the tables are; E is the largest number of experts of any projection."""

    projections: int
    experts: int
    top_k: int
    tasks: int
    folds: int
    units: int
    ids: int
    routers: int
    id_routers: int

    @property
    def as_sets(self) -> bool:
        """Whether the sets of chosen experts are counted as such, or each slot by itself."""
        return self.experts <= 16 and math.comb(self.experts, self.top_k) <= MOST_SETS

    @property
    def codes(self) -> int:
        """How many codes a token's choice has."""
        return math.comb(self.experts, self.top_k) if self.as_sets else self.experts

    @cached_property
    def code_of_mask(self) -> Int[Tensor, " mask"]:
        """The number of each set of experts, by the sum of their powers of two; -1 for others."""
        masks = torch.arange(2**self.experts)
        sizes = torch.stack([(masks >> one) & 1 for one in range(self.experts)]).sum(dim=0)
        found = torch.full_like(masks, -1)
        fitting = (sizes == self.top_k).nonzero()[:, 0]
        found[fitting] = torch.arange(len(fitting))
        return found

    @cached_property
    def experts_of_code(self) -> Int[np.ndarray, "code expert"]:
        """Which experts a code stands for, as ones and zeros."""
        if not self.as_sets:
            return np.eye(self.experts, dtype=np.int64)
        masks = (self.code_of_mask >= 0).nonzero()[:, 0].numpy()
        return (masks[:, None] >> np.arange(self.experts)) & 1


@dataclass(frozen=True, eq=False)
class Tables:
    """Counts over tokens and, for routing, over (token, slot) pairs.

    The axes are named in `empty`. ``random_*`` are of routers as they are before training, which
    read the same hidden states; their router axis has no entries if there were none.
    """

    unit_tokens: Tensor
    cell_tokens: Tensor
    cell_follows: Tensor
    class_tokens: Tensor
    position_tokens: Tensor
    id_tokens: Tensor
    unit_load: Tensor
    class_load: Tensor
    position_load: Tensor
    id_choice: Tensor
    id_load: Tensor
    pairs: Tensor
    repeats: Tensor
    probability: Tensor
    gate: Tensor
    entropy: Tensor
    random_load: Tensor
    random_class: Tensor
    random_position: Tensor
    random_id: Tensor
    random_pairs: Tensor
    random_repeats: Tensor
    random_probability: Tensor
    random_entropy: Tensor

    @classmethod
    def empty(cls, sizes: Sizes) -> "Tables":
        """Tables of zeros."""
        return cls(
            **{
                name: torch.zeros(shape, dtype=dtype)
                for name, (shape, dtype) in shapes_of(sizes).items()
            }
        )

    @classmethod
    def of(cls, sizes: Sizes, tensors: Mapping[str, Tensor]) -> "Tables":
        """Tables of these sizes from tensors by name; one without entries need not be there.

        Nothing is made that is larger than the tensors are. Raises UserError for a table that is
        missing or that has another shape or dtype.
        """
        if not all(0 <= getattr(sizes, one.name) < LARGEST_SIZE for one in fields(sizes)):
            raise UserError(f"its sizes are not between 0 and {LARGEST_SIZE}")
        found = {}
        for name, (shape, dtype) in shapes_of(sizes).items():
            one = tensors[name] if name in tensors else torch.zeros(0, dtype=dtype)
            if name not in tensors and 0 in shape:
                one = torch.zeros(shape, dtype=dtype)
            if one.shape != shape or one.dtype != dtype:
                raise UserError(
                    f"{name} is {one.dtype} of shape {tuple(one.shape)}, not {dtype} of {shape}"
                )
            found[name] = one
        return cls(**found)

    def __add__(self, other: "Tables") -> "Tables":
        """The tables of both corpora together."""
        return Tables(
            **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        )

    def as_dict(self) -> dict[str, Tensor]:
        """By name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def shapes_of(sizes: Sizes) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every table."""
    p, e, t, f = sizes.projections, sizes.experts, sizes.tasks, sizes.folds
    c, w, v, r = len(CLASSES), len(POSITIONS), sizes.ids + 1, sizes.routers

    def whole(*shape: int, small: bool = False) -> tuple[tuple[int, ...], torch.dtype]:
        return shape, torch.int32 if small else torch.int64

    def real(*shape: int) -> tuple[tuple[int, ...], torch.dtype]:
        return shape, torch.float64

    return {
        "unit_tokens": whole(sizes.units),
        "cell_tokens": whole(t, f),
        "cell_follows": whole(t, f),
        "class_tokens": whole(c, f),
        "position_tokens": whole(w, f),
        "id_tokens": whole(v, t),
        "unit_load": whole(p, sizes.units, e, small=True),
        "class_load": whole(p, c, f, e),
        "position_load": whole(p, w, f, e),
        "id_choice": whole(p, v, t, sizes.codes, small=True),
        "id_load": whole(p, v, f, e, small=True),
        "pairs": whole(p, f, e, e),
        "repeats": whole(p, t, f),
        "probability": real(p, t, f, e),
        "gate": real(p, t, f, e),
        "entropy": real(p, t, f),
        "random_load": whole(p, r, t, e),
        "random_class": whole(p, r, c, e),
        "random_position": whole(p, r, w, e),
        "random_id": whole(p, min(r, sizes.id_routers), v, e, small=True),
        "random_pairs": whole(p, r, e, e),
        "random_repeats": whole(p, r),
        "random_probability": real(p, r, e),
        "random_entropy": real(p, r),
    }


def position_bucket(position: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """The number in `POSITIONS` of each place, counted from 0: its bits, at most the last."""
    bits = torch.log2(position.double().clamp_min(0.5)).floor().long() + 1
    return bits.clamp_max(len(POSITIONS) - 1)
