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
        self, path: Path, projections: Sequence[AdaptedProjection], tasks: Sequence[str], top_k: int
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
        self._tokens: dict[str, Any] = {}
        self._routed: list[tuple[int, np.ndarray, np.ndarray]] = []

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
        """The tokens of a batch."""
        self._tokens = {
            "text": texts.numpy().astype(np.int32),
            "task": labels.task.numpy().astype(np.int32),
            "position": labels.position.numpy().astype(np.int32),
            "token": tokens.numpy().astype(np.int32),
        }
        self._routed = []

    def add(self, projection: int, gates: Tensor, chosen: Tensor) -> None:
        """What one projection made of them; gates and experts [token slot]."""
        order = (-gates).argsort(dim=-1, stable=True)
        self._routed.append(
            (
                projection,
                chosen.gather(-1, order).numpy().astype(np.int16),
                gates.gather(-1, order).numpy().astype(np.float32),
            )
        )

    def end(self) -> None:
        """Write the batch as a row group."""
        n, times = len(self._tokens["text"]), len(self._routed)
        if not n:
            return
        tokens = {name: np.tile(column, times) for name, column in self._tokens.items()}
        targets = list(dict.fromkeys(one.target for one in self.projections))
        where = [self.projections[number] for number, _, _ in self._routed]
        columns = [
            pa.array(tokens["text"]),
            pa.DictionaryArray.from_arrays(pa.array(tokens["task"]), pa.array(self.tasks)),
            pa.array(tokens["position"]),
            pa.array(tokens["token"]),
            pa.array(np.repeat([one.layer for one in where], n).astype(np.int16)),
            pa.DictionaryArray.from_arrays(
                pa.array(np.repeat([targets.index(one.target) for one in where], n), pa.int32()),
                pa.array(targets),
            ),
            *(
                pa.FixedSizeListArray.from_arrays(
                    pa.array(np.concatenate([one[part] for one in self._routed]).ravel()),
                    self.top_k,
                )
                for part in (1, 2)
            ),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))
        self._tokens, self._routed = {}, []
