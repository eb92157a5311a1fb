"""A Parquet file of every token's routing, with a row group for each batch.

One row for each token and projection: text (its number in the corpus), task, position (behind what
all texts begin with), token (its id), layer, target, experts (the chosen ones), gates (theirs).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from interp.errors import UserError
from interp.experts.routing.counter import TokenLabels
from interp.files.whole import beside_of, move_into_place
from interp.moelora.projections import AdaptedProjection

Routing = tuple[AdaptedProjection, Tensor, Tensor]
"""A projection, and its gates and experts [token slot]."""


class TokenFile:
    """A context manager that writes the file whole, or not at all if an error is raised."""

    def __init__(
        self,
        path: Path,
        *,
        projections: Sequence[AdaptedProjection],
        tasks: Sequence[str],
        top_k: int,
    ) -> None:
        self.path = path
        self.beside = beside_of(path)
        self.projections, self.tasks, self.top_k = tuple(projections), tuple(tasks), top_k
        self.schema = pa.schema(
            [
                ("text", pa.int32()),
                ("task", pa.dictionary(pa.int32(), pa.string())),
                ("position", pa.int32()),
                ("token", pa.int32()),
                ("layer", pa.int16()),
                ("target", pa.dictionary(pa.int32(), pa.string())),
                ("experts", pa.list_(pa.int16(), top_k)),
                ("gates", pa.list_(pa.float32(), top_k)),
            ]
        )

    def __enter__(self) -> "TokenFile":
        try:
            self.beside.unlink(missing_ok=True)  # a link to elsewhere would be written through
            self._writer = pq.ParquetWriter(self.beside, self.schema)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._writer.close()
        if kind is None:
            move_into_place(self.beside, self.path)
        else:
            self.beside.unlink(missing_ok=True)

    def write(
        self, labels: TokenLabels, *, texts: Tensor, tokens: Tensor, routed: Sequence[Routing]
    ) -> None:
        """Write a batch as a row group.

        Args:
            labels: what is known of the batch's tokens.
            texts: the number of each token's text.
            tokens: the token ids.
            routed: by projection, gates and experts [token slot].
        """
        n, times = len(tokens), len(routed)
        if not n:
            return
        gates = torch.cat([gates for _, gates, _ in routed])
        experts = torch.cat([experts for _, _, experts in routed])
        order = (-gates).argsort(dim=-1, stable=True)

        def slots(values: Tensor, dtype: Any) -> pa.Array:
            """A row of values for each token, that of the largest gate first."""
            ordered = pa.array(values.gather(-1, order).numpy().astype(dtype).ravel())
            return pa.FixedSizeListArray.from_arrays(ordered, self.top_k)

        text, task, position, token = (
            pa.array(np.tile(values.numpy().astype(np.int32), times))
            for values in (texts, labels.task, labels.position, tokens)
        )
        targets = list(dict.fromkeys(projection.target for projection in self.projections))
        layers = np.repeat([entry.layer or 0 for entry, _, _ in routed], n)
        target = np.repeat([targets.index(entry.target) for entry, _, _ in routed], n)
        columns = [
            text,
            pa.DictionaryArray.from_arrays(task, pa.array(self.tasks)),
            position,
            token,
            pa.array(layers.astype(np.int16)),
            pa.DictionaryArray.from_arrays(pa.array(target, pa.int32()), pa.array(targets)),
            slots(experts, np.int16),
            slots(gates, np.float32),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))
