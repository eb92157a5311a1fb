"""One run of a batch, kept so that parts of it can be run again by ``interp.forward.partial``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.shared_prefix import PrefixLayer
from interp.forward.unhooked import UnhookedModel


class _CopiedPrefixLayer(PrefixLayer):
    """Keys and values of the prefix, a copy for every row, put before the rows' own."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        prefix: Any = self.keys, self.values
        keys, values = (prefix[0], key_states), (prefix[1], value_states)
        return torch.cat(keys, dim=-2), torch.cat(values, dim=-2)


@dataclass(frozen=True)
class RecordedRun:
    """One run of a batch, kept so that parts of it can be run again.

    Attributes:
        batch: the prompts.
        start: the first position that is run again; those before it are the shared prefix.
        keys_values: per layer the keys and values [prompt kv_head pos d_head] of all positions, on
            the layer's device; all else is on that of the prompts.
        resid_pre: Float[layer prompt pos d_model], every layer's input from ``start`` on.
        values: by component, Float[layer prompt pos unit width] from ``start`` on.
        logits: Float[prompt d_vocab] of the last position, or Float[prompt keep d_vocab] of the
            last positions where ``record_run`` was asked for several.
        plain: the model without hook points, or None where only the hooked model will do.
        all_positions: every run covers all positions: hooks set by others may count them, or the
            model cannot go on from a cache.
    """

    batch: TokenBatch
    start: int
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    resid_pre: Float[Tensor, "layer prompt pos d_model"]
    values: Mapping[str, Tensor]
    logits: Float[Tensor, "prompt *keep d_vocab"]
    plain: UnhookedModel | None = None
    all_positions: bool = False

    @property
    def z(self) -> Float[Tensor, "layer prompt pos head d_head"]:
        """The heads' outputs. Raises UserError if they were not kept."""
        if "z" not in self.values:
            raise UserError("this run did not keep the heads' outputs: record it with keep=('z',)")
        return self.values["z"]

    @property
    def prefix(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of the positions before ``start``, views; none where it is 0."""
        if not self.start:
            return ()
        return tuple((k[:, :, : self.start], v[:, :, : self.start]) for k, v in self.keys_values)

    def prefix_cache(self, rows: Int[Tensor, " row"], dtype: torch.dtype) -> Cache | None:
        """The shared prefix as a cache for these rows; None where there is none."""
        layers: list[Any] = [
            _CopiedPrefixLayer(k[rows.to(k.device)].to(dtype), v[rows.to(v.device)].to(dtype))
            for k, v in self.prefix
        ]
        return Cache(layers=layers) if layers else None

    def from_position(self, start: int) -> "RecordedRun":
        """The same run with a longer shared prefix (views); unchanged if ``all_positions``."""
        drop = start - self.start
        if not drop or self.all_positions:
            return self
        if drop < 0:
            raise UserError(f"the run was recorded from position {self.start} on, not from {start}")
        return replace(
            self,
            start=start,
            resid_pre=self.resid_pre[:, :, drop:],
            values={name: value[:, :, drop:] for name, value in self.values.items()},
        )
