"""Routing records: how every expert was used on a labelled corpus, in counts.

`interp.experts.collect_routing` makes it, `interp.experts.measure_specialization` reads it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.arguments import check_choice
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.experts.routing.measures import (
    dead_experts,
    domain_specialization,
    load_cv,
    load_share,
    mean_entropy,
    normalised_entropy,
)
from interp.experts.routing.tables import Sizes, Tables
from interp.figures.routing import entropy_figure, load_figure
from interp.files.fields import from_mapping
from interp.files.shape import check_shape
from interp.files.tensor_file import read_tensors, write_tensors
from interp.moelora.projections import AdaptedProjection
from interp.moved import old_names

__getattr__ = old_names(__name__)


_KEPT = ("projections", "sizes", "tasks", "ids", "id_texts", "unit_task", "unit_fold", "metadata")
_PROJECTION = {"name": str, "layer": int, "target": str, "experts": int}
_FILE_SHAPE = {
    "projections": [_PROJECTION],
    "sizes": {size.name: int for size in fields(Sizes)},
    **{"tasks": [str], "id_texts": [str], "ids": [int], "unit_task": [int], "unit_fold": [int]},
    "metadata": {str: str},
}


@dataclass(frozen=True, eq=False)
class RoutingRecords(Displayed):
    """Routing of a corpus, in counts and moments.

    Attributes:
        projections: in the order in which the model runs them; the first axis of the tables.
        sizes: of the tables.
        tasks: the tasks' names.
        ids: the token ids that have a row of their own; all others share the last row.
        id_texts: their texts.
        unit_task: the number of each unit's task.
        unit_fold: the number of each unit's fold.
        tables: the counts; see `interp.experts.routing.tables`.
        metadata: anything else to keep, as text.
    """

    projections: tuple[AdaptedProjection, ...]
    sizes: Sizes
    tasks: tuple[str, ...]
    ids: tuple[int, ...]
    id_texts: tuple[str, ...]
    unit_task: tuple[int, ...]
    unit_fold: tuple[int, ...]
    tables: Tables
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Tables.of(self.sizes, self.tables.as_dict())  # raises for another shape
        lengths = dict.fromkeys(("unit_task", "unit_fold"), self.sizes.units)
        lengths |= {name: getattr(self.sizes, name) for name in ("projections", "tasks", "ids")}
        for name, size in lengths.items():
            if (found := len(getattr(self, name))) != size:
                raise UserError(f"{found} {name}, but the tables have {size}")
        for what, size in (("unit_task", self.sizes.tasks), ("unit_fold", self.sizes.folds)):
            if not all(0 <= number < size for number in getattr(self, what)):
                raise UserError(f"{what} names one that is not there: there are {size}")
        most = self.sizes.experts
        if not all(0 < projection.n_experts <= most for projection in self.projections):
            raise UserError(f"a projection has more than the {most} experts there are")

    @property
    def n_tokens(self) -> int:
        """How many tokens were counted."""
        return int(self.tables.cell_tokens.sum())

    def task_counts(self, projection: int, *, without: int | None = None) -> np.ndarray:
        """How often each expert was chosen for tokens of each task, perhaps without a fold.

        Returns:
            whole numbers [task expert].
        """
        experts = self.projections[projection].n_experts
        kept = np.array(self.unit_fold) != (-1 if without is None else without)
        load = self.tables.unit_load[projection, :, :experts].numpy()
        counts = np.zeros((self.sizes.tasks, experts), dtype=np.int64)
        np.add.at(counts, np.array(self.unit_task)[kept], load[kept])
        return counts

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each projection, expert and task, and with the task "all" for all tokens.

        Columns: layer, target, expert, task, tokens (of the task), load (share of its routed
        slots), specialization (OLMoE's domain specialization: share of its tokens that go there),
        probability (mean of the router's softmax), gate (mean, zero where not chosen).
        """
        return pd.concat(map(self._rows, range(len(self.projections))), ignore_index=True)

    def _rows(self, number: int) -> pd.DataFrame:
        projection, top_k = self.projections[number], self.sizes.top_k
        counts = self.task_counts(number)
        tokens = self.tables.cell_tokens.sum(dim=-1).numpy()
        sums = [
            table[number, :, :, : projection.n_experts].sum(dim=1).numpy()
            for table in (self.tables.probability, self.tables.gate)
        ]
        counts, *sums = (np.vstack([part, part.sum(axis=0)]) for part in (counts, *sums))
        tokens = np.append(tokens, tokens.sum())
        tasks = (*self.tasks, "all")
        return pd.DataFrame(
            {
                "layer": projection.layer,
                "target": projection.target,
                "expert": np.tile(np.arange(projection.n_experts), len(tasks)),
                "task": np.repeat(tasks, projection.n_experts),
                "tokens": np.repeat(tokens, projection.n_experts),
                "load": load_share(counts).ravel(),
                "specialization": domain_specialization(counts, top_k=top_k).ravel(),
                "probability": (sums[0] / tokens[:, None]).ravel(),
                "gate": (sums[1] / tokens[:, None]).ravel(),
            }
        )

    def by_projection(self) -> pd.DataFrame:
        """One row a projection: layer, target, load_cv, least and most used expert, dead experts.

        Loads are times the number of experts, so that 1 is an even share.
        """
        rows = []
        for number, projection in enumerate(self.projections):
            load = load_share(self.task_counts(number).sum(axis=0))
            least, most = (float(end * projection.n_experts) for end in (load.min(), load.max()))
            cv, dead = float(load_cv(load)), int(dead_experts(load))
            rows.append((projection.layer, projection.target, cv, least, most, dead))
        return pd.DataFrame(rows, columns=["layer", "target", "load_cv", "least", "most", "dead"])

    def entropies(self) -> pd.DataFrame:
        """One row a projection: layer, target, per_token, of_load; shares of log E, 1 is even.

        ``per_token`` is the mean entropy of the router's softmax, ``of_load`` that of the load.
        """
        rows = []
        for number, projection in enumerate(self.projections):
            total = float(self.tables.entropy[number].numpy().sum())
            per_token = mean_entropy(total, float(self.n_tokens), experts=projection.n_experts)
            load = load_share(self.task_counts(number).sum(axis=0))
            of_load = float(normalised_entropy(load))
            rows.append((projection.layer, projection.target, per_token, of_load))
        return pd.DataFrame(rows, columns=["layer", "target", "per_token", "of_load"])

    def plot(self, what: str = "load", **options: Any) -> go.Figure:
        """Each expert's load by task ("load"), or the routers' entropy by depth ("entropy")."""
        if check_choice("figure", what, ("load", "entropy")) == "entropy":
            return entropy_figure(self.entropies(), **options)
        return load_figure(self.to_dataframe(), self.tasks, **options)

    def _shown(self) -> Shown:
        words = (
            f"{self.n_tokens:,} tokens, {len(self.tasks)} tasks, {len(self.projections)} "
            "projections. Loads are times the number of experts: 1 is an even share."
        )
        figure = partial(self.plot, target=self.projections[0].target)
        return Shown(words, (self.by_projection(),), figure)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file; a reader sees the old file or the new one."""
        kept = {name: getattr(self, name) for name in _KEPT}
        kept["projections"] = [
            dict(zip(_PROJECTION, (p.name, p.layer, p.target, p.n_experts), strict=True))
            for p in self.projections
        ]
        kept["sizes"], kept["metadata"] = asdict(self.sizes), dict(self.metadata)
        return write_tensors(Path(path), self.tables.as_dict(), kept)

    @classmethod
    def load(cls, path: str | Path) -> "RoutingRecords":
        """Read what `save` wrote. Raises UserError for no file, or a damaged one."""
        try:
            tensors, kept = read_tensors(Path(path), _KEPT)
            check_shape(kept, _FILE_SHAPE, "what it says of itself")
            sizes = from_mapping(Sizes, kept.pop("sizes"), "its sizes")
            projections = tuple(
                AdaptedProjection(*(entry[key] for key in _PROJECTION), module=entry["name"])
                for entry in kept.pop("projections")
            )
            metadata = kept.pop("metadata")
            tables = Tables.of(sizes, tensors)
            rest = {name: tuple(value) for name, value in kept.items()}
            return cls(
                projections=projections, sizes=sizes, tables=tables, metadata=metadata, **rest
            )
        except FileNotFoundError as error:
            raise UserError(f"there are no routing records at {path}") from error
        except UserError as error:
            raise UserError(f"{path} holds no routing records, or is damaged ({error})") from error
