"""The result of patching edges of experts: a score for each edge, per prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import as_path, of_kind, whole_number
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.edges import edge_heatmap
from interp.files.shape import check_shape
from interp.files.tensor_file import read_tensors, write_tensors
from interp.files.tensors import check_tensors
from interp.lazy import go, pd
from interp.patching.edges.edge_table import INTERVALS, edge_table
from interp.patching.edges.graph import Edge
from interp.patching.effect_arrays import By, best_first, check_prompts, correlations
from interp.statistics.significance import group_means

_TENSORS = ("values", "corrupted", "clean")
_TEXTS = ("method", "metric")
_FILE_SHAPE = {
    **dict.fromkeys(_TEXTS, str),
    **{"edges": [[str, str]], "left_out": [str], "groups": [str], "seed": int},
    "metadata": {str: str},
}


@dataclass(frozen=True, eq=False)
class ExpertEdgeEffects(Displayed):
    """Effects of patching each edge of an expert alone, per prompt.

    Sign: metric(patched) − metric(corrupted run), or an estimate of it. With a metric that is high
    in the clean run, a positive score means that the edge carries the clean answer.

    Attributes:
        values: Float[prompt edge].
        edges: writer and reader of each.
        corrupted, clean: Float[prompt], the metric in the unpatched runs.
        method: how the scores were found.
        metric: the metric's name, and so the unit of the scores.
        left_out: names of projections whose experts are no nodes.
        groups: of each prompt, what is resampled together; by default each prompt its own.
        seed: of the intervals.
        metadata: anything else to save with the result, as text.
    """

    values: Float[Tensor, "prompt edge"]
    edges: tuple[Edge, ...]
    corrupted: Float[Tensor, " prompt"]
    clean: Float[Tensor, " prompt"]
    method: str
    metric: str
    left_out: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    seed: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_prompts = len(self.values)
        if tuple(self.values.shape) != (n_prompts, len(self.edges)) or not self.values.numel():
            raise UserError(
                f"scores of shape {tuple(self.values.shape)} do not fit {len(self.edges)} edges"
            )
        check_prompts(self, "corrupted", "clean")

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def mean(self) -> Float[np.ndarray, " edge"]:
        """Mean over groups of each group's mean score."""
        return group_means(self.values, self.groups).mean(axis=0)

    def to_dataframe(self, n: int | None = None, *, by: By = "absolute") -> "pd.DataFrame":
        """One row an edge, largest absolute score first.

        Columns: ``writer``, ``reader``, ``score`` (mean over groups), ``ci_low`` and ``ci_high``
        (the first ``INTERVALS`` rows, with at least ``MINIMUM_GROUPS`` groups), ``rank``.

        Args:
            n: only the first ones; by default all.
            by: their order, by ``absolute`` or ``signed`` score.
        """
        order = best_first(self.mean, by=by)
        order = order if n is None else order[: whole_number("n", n, least=0)]
        first = self.values[:, torch.from_numpy(order[:INTERVALS].copy())]
        edges = [self.edges[place] for place in order]
        return edge_table(edges, self.mean[order], first, groups=self.groups, seed=self.seed)

    def agreement(self, other: "ExpertEdgeEffects") -> dict[str, float]:
        """Pearson's and Spearman's correlation over the ``n`` edges that both results score.

        Raises:
            UserError: results that share fewer than three edges.
        """
        of_kind("other", other, ExpertEdgeEffects)
        theirs = dict(zip(other.edges, other.mean, strict=True))
        mine = dict(zip(self.edges, self.mean, strict=True))
        both = [edge for edge in self.edges if edge in theirs]
        if len(both) < 3:
            raise UserError("the two results share fewer than three edges")
        x, y = (np.array([scores[edge] for edge in both]) for scores in (mine, theirs))
        pearson, spearman = correlations(x, y)
        return {"pearson": pearson, "spearman": spearman, "n": len(both)}

    def plot(self, *, n: int = 40, title: str | None = None) -> "go.Figure":
        """The edges with the largest scores, as a heat map of writers × readers.

        Args:
            n: at most so many writers, and so many readers.
        """
        writers, readers = (list(dict.fromkeys(ends)) for ends in zip(*self.edges, strict=True))
        scores = np.full((len(writers), len(readers)), np.nan)
        rows, columns = (
            {name: place for place, name in enumerate(names)} for names in (writers, readers)
        )
        for (writer, reader), score in zip(self.edges, self.mean, strict=True):
            scores[rows[writer], columns[reader]] = score
        n = whole_number("n", n, least=1)
        title = title or f"edges of experts, {self.method}"
        return edge_heatmap(scores, writers, readers, n=n, metric=self.metric, title=title)

    def _shown(self) -> Shown:
        text = (
            f"Scores of {len(self.edges)} edges of experts ({self.method}) on {self.metric}, "
            f"{len(self)} prompts. Positive: the metric rises from the corrupted run."
        )
        return Shown(text, (self.to_dataframe(20),), self.plot)

    def save(self, path: str | Path) -> Path:
        """Write the result to a safetensors file, whole or not at all."""
        kept: dict[str, Any] = {name: getattr(self, name) for name in _FILE_SHAPE}
        kept["metadata"] = {**self.metadata}
        tensors = {name: getattr(self, name) for name in _TENSORS}
        return write_tensors(as_path("path", path), tensors, kept)

    @classmethod
    def load(cls, path: str | Path) -> "ExpertEdgeEffects":
        """Read what ``save`` wrote. Raises UserError for no file, or a damaged one."""
        path = as_path("path", path)
        try:
            tensors, kept = read_tensors(path, list(_FILE_SHAPE))
            check_shape(kept, _FILE_SHAPE, "its metadata")
            check_tensors(tensors, values=2, corrupted=1, clean=1)
            for name in ("left_out", "groups"):
                kept[name] = tuple(kept[name])
            kept["edges"] = tuple((writer, reader) for writer, reader in kept["edges"])
            return cls(**{name: tensors[name] for name in _TENSORS}, **kept)
        except FileNotFoundError as error:
            raise UserError(f"there is no result of edges at {path}") from error
        except UserError as error:
            raise UserError(f"{path} is no result of edges, or is damaged ({error})") from error
