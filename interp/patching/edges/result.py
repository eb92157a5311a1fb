"""The result of patching edges: a score for each writer and reader, per prompt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import as_path, check_choice, listed, of_kind, whole_number
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.circuit_graph import circuit_graph
from interp.figures.edges import edge_heatmap
from interp.files.shape import check_shape
from interp.files.tensor_file import read_tensors, write_tensors
from interp.files.tensors import check_tensors
from interp.lazy import go, pd
from interp.patching.circuit import Circuit
from interp.patching.edges.circuit_of_edges import circuit_of_edges
from interp.patching.edges.edge_table import INTERVALS, edge_table
from interp.patching.edges.graph import Edge, EdgeGraph
from interp.patching.edges.graph_figure import drawn_edges, marked_nodes
from interp.patching.edges.selection import Select, greedy_order, top_order
from interp.patching.effect_arrays import By, check_prompts, correlations, joined_groups
from interp.statistics.significance import group_means

Kind = Literal["heatmap", "graph"]
_TEXTS = ("method", "metric")
_TENSORS = ("values", "corrupted", "clean")
_GRAPH = ("n_layers", "n_heads", "n_kv_heads", "parallel")
_KEPT = (*_TEXTS, *_GRAPH, "d_model", "groups", "seed", "metadata")
_FILE_SHAPE = {
    **dict.fromkeys(_TEXTS, str),
    **{"n_layers": int, "n_heads": int, "n_kv_heads": int, "parallel": bool, "d_model": int},
    **{"groups": [str], "seed": int, "metadata": {str: str}},
}


@dataclass(frozen=True, eq=False)
class EdgeEffects(Displayed):
    """Effects of patching each edge alone, per prompt.

    Sign: metric(patched) − metric(corrupted run), or an estimate of it. With a metric that is high
    in the clean run, a positive score means that the edge carries the clean answer.

    Attributes:
        values: Float[prompt writer reader]; NaN for pairs that are no edge, or were not patched.
        graph: the names of writers and readers.
        d_model: the residual stream's size.
        corrupted, clean: Float[prompt], the metric in the unpatched runs.
        method: how the scores were found.
        metric: the metric's name, and so the unit of the scores.
        groups: of each prompt, what is resampled together; by default each prompt its own.
        seed: of the intervals.
        metadata: anything else to save with the result, as text.
    """

    values: Float[Tensor, "prompt writer reader"]
    graph: EdgeGraph
    d_model: int
    corrupted: Float[Tensor, " prompt"]
    clean: Float[Tensor, " prompt"]
    method: str
    metric: str
    groups: tuple[str, ...] = ()
    seed: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_prompts = len(self.values)
        expected = (n_prompts, *self.graph.shape)
        if tuple(self.values.shape) != expected or not n_prompts:
            raise UserError(
                f"scores of shape {tuple(self.values.shape)} do not fit {expected[1]} writers and "
                f"{expected[2]} readers"
            )
        check_prompts(self, "corrupted", "clean")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the values' axes."""
        return ("prompt", "writer", "reader")

    def coordinates(self) -> tuple[Edge, ...]:
        """Writer and reader of each pair, in the order of the flattened scores."""
        return tuple(product(self.graph.writers, self.graph.readers))

    @cached_property
    def mean(self) -> Float[np.ndarray, "writer reader"]:
        """Mean over groups of each group's mean score; NaN where there is none."""
        return group_means(self.values, self.groups).mean(axis=0)

    def order(self, *, by: By = "absolute", select: Select = "top") -> np.ndarray:
        """Places of the scored edges in the flattened scores, in the order of ``selection``."""
        check_choice("select", select, get_args(Select))
        if select == "greedy":
            return greedy_order(self.graph, self.mean, by)
        return top_order(self.mean.ravel(), by)

    def to_dataframe(self, n: int | None = None, *, by: By = "absolute") -> "pd.DataFrame":
        """One row an edge, largest absolute score first.

        Columns: ``writer``, ``reader``, ``score`` (mean over groups), ``ci_low`` and ``ci_high``
        (the first ``INTERVALS`` rows, with at least ``MINIMUM_GROUPS`` groups), ``rank``.

        Args:
            n: only the first ones; by default all.
            by: their order, by ``absolute`` or ``signed`` score.
        """
        order = self.order(by=by)
        order = order if n is None else order[: whole_number("n", n, least=0)]
        first = self.values.flatten(1)[:, torch.from_numpy(order[:INTERVALS].copy())]
        scores, edges = self.mean.ravel()[order], self.graph.named(order)
        return edge_table(edges, scores, first, groups=self.groups, seed=self.seed)

    def circuit(self, n: int, *, by: By = "absolute", select: Select = "top") -> Circuit:
        """The circuit of the first ``n`` edges, to save as EAP-IG's JSON.

        Edges that no path connects with both ``input`` and ``logits`` are left out, as EAP-IG
        prunes them, so that the circuit may have fewer.

        Args:
            by: their order, by ``absolute`` or ``signed`` score.
            select: ``top`` takes the largest scores, ``greedy`` the largest that lead to the
                logits; see ``interp.patching.edges.selection``.

        Raises:
            UserError: more edges than are scored, or no path from the input to the logits.
        """
        order, n = self.order(by=by, select=select), whole_number("n", n)
        if not 0 < n <= len(order):
            raise UserError(f"cannot keep {n} of {len(order)} scored edges")
        return circuit_of_edges(self.graph, self.mean, order[:n], d_model=self.d_model)

    def agreement(self, other: "EdgeEffects") -> dict[str, float]:
        """Pearson's and Spearman's correlation over the ``n`` edges that both results score.

        Raises:
            UserError: results of different graphs, or that share fewer than three edges.
        """
        of_kind("other", other, EdgeEffects)
        if self.graph != other.graph:
            raise UserError("the results are of different graphs")
        x, y = self.mean.ravel(), other.mean.ravel()
        both = ~(np.isnan(x) | np.isnan(y))
        if both.sum() < 3:
            raise UserError("the two results share fewer than three scored edges")
        pearson, spearman = correlations(x[both], y[both])
        return {"pearson": pearson, "spearman": spearman, "n": int(both.sum())}

    def plot(
        self,
        *,
        kind: Kind = "heatmap",
        n: int = 40,
        by: By = "absolute",
        highlight: Iterable[str | tuple[int, int]] = (),
        title: str | None = None,
    ) -> "go.Figure":
        """The edges with the largest scores, as a heat map or as a graph by layers.

        Args:
            kind: ``heatmap``, writers × readers, or ``graph``: the paths of the first edges.
            n: at most so many writers, and so many readers; of a graph, about so many edges on
                paths from the input to the logits.
            by: which edges a graph has, by ``absolute`` or ``signed`` score.
            highlight: nodes of a graph to mark, as ``a3.h1`` or (layer, head).
        """
        n = whole_number("n", n, least=1)
        title = title or f"edges, {self.method}"
        if check_choice("kind", kind, get_args(Kind)) == "graph":
            edges = drawn_edges(self.to_dataframe(by=by), self.graph, n)
            marked = marked_nodes(highlight)
            return circuit_graph(edges, metric=self.metric, title=title, highlight=marked)
        return edge_heatmap(
            self.mean,
            self.graph.writers,
            self.graph.readers,
            n=n,
            metric=self.metric,
            title=title,
        )

    def _shown(self) -> Shown:
        text = (
            f"Scores of {len(self.order())} edges ({self.method}) on {self.metric}, "
            f"{len(self)} prompts. Positive: the metric rises from the corrupted run."
        )
        return Shown(text, (self.to_dataframe(20),), self.plot)

    @classmethod
    def concatenate(cls, results: Sequence["EdgeEffects"]) -> "EdgeEffects":
        """One result over the prompts of several, in order; all else is as in the first.

        Raises:
            UserError: no results, or results of different graphs, methods or metrics.
        """
        results = [of_kind("a result", result, cls) for result in listed("results", results)]
        if not results:
            raise UserError("there are no results to concatenate")
        first = results[0]
        for other in results[1:]:
            for name in ("graph", *_TEXTS):
                if getattr(first, name) != getattr(other, name):
                    raise UserError(f"the results differ in {name}")
        joined = {
            name: torch.cat([getattr(result, name) for result in results]) for name in _TENSORS
        }
        return replace(first, groups=joined_groups([result.groups for result in results]), **joined)

    def save(self, path: str | Path) -> Path:
        """Write the result to a safetensors file, whole or not at all."""
        return write_tensors(as_path("path", path), *self.parts())

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The result as tensors and JSON fields; ``from_parts`` reads them."""
        kept = {name: getattr(self, name) for name in (*_TEXTS, "d_model", "groups", "seed")}
        kept |= {name: getattr(self.graph, name) for name in _GRAPH}
        return {name: getattr(self, name) for name in _TENSORS}, kept | {
            "metadata": {**self.metadata}
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], kept: Mapping[str, Any]) -> "EdgeEffects":
        """The result that ``parts`` was called on. Raises UserError for anything else."""
        check_shape(kept, _FILE_SHAPE, "its metadata")
        check_tensors(tensors, values=3, corrupted=1, clean=1)
        return cls(
            graph=EdgeGraph(**{name: kept[name] for name in _GRAPH}),
            d_model=kept["d_model"],
            groups=tuple(kept["groups"]),
            seed=kept["seed"],
            metadata=dict(kept["metadata"]),
            **{name: tensors[name] for name in _TENSORS},
            **{name: kept[name] for name in _TEXTS},
        )

    @classmethod
    def load(cls, path: str | Path) -> "EdgeEffects":
        """Read what ``save`` wrote. Raises UserError for no file, or a damaged one."""
        path = as_path("path", path)
        try:
            return cls.from_parts(*read_tensors(path, _KEPT))
        except FileNotFoundError as error:
            raise UserError(f"there is no result of edges at {path}") from error
        except UserError as error:
            raise UserError(f"{path} is no result of edges, or is damaged ({error})") from error
