"""Sufficient statistics of routing, from which measures, intervals and nulls are computed.

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
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int, Int32, Int64
from torch import Tensor

from interp.errors import UserError
from interp.experts.routing.token_class import CLASSES

POSITIONS: tuple[str, ...] = ("0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127", "128+")
"""Buckets of a token's position in its text, after the prefix of all texts."""
MOST_SETS = 256
"""The largest number of different expert sets that are counted as sets."""
_AXES = ("projections", "experts", "tasks", "folds", "units", "routers", "codes")
LARGEST_SIZE = 2**20
"""Upper bound on the sizes in a file."""


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
        sizes = torch.stack([(masks >> expert) & 1 for expert in range(self.experts)]).sum(dim=0)
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
    """Counts over tokens and, for routing, over (token, slot) pairs, each with its axes.

    ``random_*`` are of routers as they are before training, which read the same hidden states;
    their router axis has no entries if there were none.
    """

    unit_tokens: Int64[Tensor, " unit"]
    cell_tokens: Int64[Tensor, "task fold"]
    cell_follows: Int64[Tensor, "task fold"]
    class_tokens: Int64[Tensor, "class fold"]
    position_tokens: Int64[Tensor, "position fold"]
    id_tokens: Int64[Tensor, "id task"]
    unit_load: Int32[Tensor, "projection unit expert"]
    class_load: Int64[Tensor, "projection class fold expert"]
    position_load: Int64[Tensor, "projection position fold expert"]
    id_choice: Int32[Tensor, "projection id task code"]
    id_load: Int32[Tensor, "projection id fold expert"]
    pairs: Int64[Tensor, "projection fold expert expert"]
    repeats: Int64[Tensor, "projection task fold"]
    probability: Float64[Tensor, "projection task fold expert"]
    gate: Float64[Tensor, "projection task fold expert"]
    entropy: Float64[Tensor, "projection task fold"]
    random_load: Int64[Tensor, "projection router task expert"]
    random_class: Int64[Tensor, "projection router class expert"]
    random_position: Int64[Tensor, "projection router position expert"]
    random_id: Int32[Tensor, "projection id_router id expert"]
    random_pairs: Int64[Tensor, "projection router expert expert"]
    random_repeats: Int64[Tensor, "projection router"]
    random_probability: Float64[Tensor, "projection router expert"]
    random_entropy: Float64[Tensor, "projection router"]

    @classmethod
    def empty(cls, sizes: Sizes) -> "Tables":
        """Tables of zeros."""
        shapes = shapes_of(sizes).items()
        return cls(**{name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes})

    @classmethod
    def of(cls, sizes: Sizes, tensors: Mapping[str, Tensor]) -> "Tables":
        """Tables of these sizes from tensors by name; one without entries need not be there.

        Raises UserError for a table that is missing or that has another shape or dtype.
        """
        if not all(0 <= getattr(sizes, size.name) < LARGEST_SIZE for size in fields(sizes)):
            raise UserError(f"its sizes are not between 0 and {LARGEST_SIZE}")
        found = {}
        for name, (shape, dtype) in shapes_of(sizes).items():
            # Nothing is allocated for a table that is missing and should have entries.
            absent = shape if 0 in shape else (0,)
            table = tensors[name] if name in tensors else torch.zeros(absent, dtype=dtype)
            if table.shape != shape or table.dtype != dtype:
                raise UserError(
                    f"{name} is {table.dtype} of shape {tuple(table.shape)}, not {dtype} of {shape}"
                )
            found[name] = table
        return cls(**found)

    def __add__(self, other: "Tables") -> "Tables":
        """The tables of both corpora together."""
        theirs = other.as_dict()
        return Tables(**{name: table + theirs[name] for name, table in self.as_dict().items()})

    def as_dict(self) -> dict[str, Tensor]:
        """The tables by name."""
        return {table.name: getattr(self, table.name) for table in fields(self)}


def shapes_of(sizes: Sizes) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every table."""
    lengths = {name.removesuffix("s"): getattr(sizes, name) for name in _AXES}
    lengths |= {"class": len(CLASSES), "position": len(POSITIONS), "id": sizes.ids + 1}
    lengths["id_router"] = min(sizes.routers, sizes.id_routers)
    hints: dict[str, Any] = {table.name: table.type for table in fields(Tables)}
    return {
        name: (
            tuple(lengths[axis] for axis in hint.dim_str.split()),
            getattr(torch, hint.dtypes[0]),
        )
        for name, hint in hints.items()
    }


def position_bucket(position: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """The bucket in `POSITIONS` of each position, counted from 0: its bits, at most the last."""
    bits = torch.log2(position.double().clamp_min(0.5)).floor().long() + 1
    return bits.clamp_max(len(POSITIONS) - 1)
