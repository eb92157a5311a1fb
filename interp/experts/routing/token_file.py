"""Every token's routing in a Parquet file, written as it comes: a row group for each batch.

One row for each token and projection: text (its number in the corpus), task, position (behind what
all texts begin with), token (its id), layer, target, experts (the chosen ones), gates (theirs).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from interp.errors import UserError
from interp.experts.routing.counter import TokenLabels
from interp.files.whole import beside_of, move_into_place
from interp.moelora.projections import AdaptedProjection


class TokenFile:
    """A context: the file is moved into place when it ends well, and not there if it does not."""

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
        self._tokens: tuple[Tensor, ...] = ()
        self._routed: list[tuple[AdaptedProjection, np.ndarray, np.ndarray]] = []

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

    def begin(self, texts: Tensor, labels: TokenLabels, tokens: Tensor) -> None:
        """Begin a batch with its tokens."""
        self._tokens = (texts, labels.task, labels.position, tokens)
        self._routed = []

    def add(self, projection: int, gates: Tensor, chosen: Tensor) -> None:
        """Add what one projection's router made of them; gates and experts [token slot]."""
        order = (-gates).argsort(dim=-1, stable=True)
        experts = chosen.gather(-1, order).numpy().astype(np.int16)
        self._routed.append(
            (self.projections[projection], experts, gates.gather(-1, order).float().numpy())
        )

    def end(self) -> None:
        """Write the batch as a row group."""
        n, times = len(self._tokens[0]), len(self._routed)
        if not n:
            return
        text, task, position, token = (
            pa.array(np.tile(column.numpy().astype(np.int32), times)) for column in self._tokens
        )
        targets = list(dict.fromkeys(one.target for one in self.projections))
        layers = np.repeat([one.layer for one, _, _ in self._routed], n)
        target = np.repeat([targets.index(one.target) for one, _, _ in self._routed], n)
        experts, gates = (
            pa.FixedSizeListArray.from_arrays(
                pa.array(np.concatenate([one[part] for one in self._routed]).ravel()), self.top_k
            )
            for part in (1, 2)
        )
        columns = [
            text,
            pa.DictionaryArray.from_arrays(task, pa.array(self.tasks)),
            position,
            token,
            pa.array(layers.astype(np.int16)),
            pa.DictionaryArray.from_arrays(pa.array(target, pa.int32()), pa.array(targets)),
            experts,
            gates,
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))
