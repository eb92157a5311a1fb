"""Scores of heads and MLPs as the circuit JSON that EAP-IG and MIB read, and back.

The format is that of ``Graph.to_json`` and ``Graph.from_json`` in github.com/hannamw/EAP-IG
(``src/eap/graph.py``), on which MIB's circuit track (arXiv 2504.13151) builds::

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"input": {"in_graph": true}, "a0.h0": {"in_graph": true, "score": 0.1}, "m0": …,
               "logits": {"in_graph": true}},
     "edges": {"input->a0.h0<q>": {"score": …, "in_graph": …}, "a0.h0->m0": …, "m0->logits": …}}

A node without a score is one that was not scored. It is part of every circuit made here, as for the
readers of EAP-IG and MIB; in a circuit read from a file it is part if the file says so, since
circuits found by edges have no scores of nodes. When nodes are evaluated, those readers take all
edges that leave a kept node, so edges are optional; a written edge has its sender's score. The
edges of a file are kept, and written again unchanged. Sign: a positive score means that the node
raises the metric, as for a patching effect.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import as_path, of_kind, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.figures.circuit_graph import circuit_graph
from interp.files.documents import write_atomically
from interp.files.shape import Maybe, check_shape
from interp.files.text import parse_json, read_text
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.patching.effect_arrays import By, best_first
from interp.patching.result import PatchEffects

Node = str
"""``a3.h1`` is head 1 of layer 3, ``m3`` the MLP of layer 3."""
_NAME = re.compile(r"a(0|[1-9]\d{0,8})\.h(0|[1-9]\d{0,8})|m(0|[1-9]\d{0,8})", re.ASCII)
_EDGE = re.compile(r"([^<>\-]+)->([^<>\-]+)(?:<[qkv]>)?")
_ALWAYS = ("input", "logits")
LARGEST_MODEL = 10**6
"""Heads in the largest circuit that is read."""
_SHAPE = {
    "cfg": {"n_layers": int, "n_heads": int, "d_model": int, "parallel_attn_mlp": Maybe(bool)},
    "nodes": {
        str: (bool, {"in_graph": bool, "score": Maybe(float), "neurons": Maybe([(bool, float)])})
    },
    "edges": dict,
}


def head_node(layer: int, head: int) -> Node:
    """The name of a head."""
    return f"a{layer}.h{head}"


def mlp_node(layer: int) -> Node:
    """The name of an MLP."""
    return f"m{layer}"


def parse_node(name: Node) -> tuple[int, int | None]:
    """(layer, head), or (layer, None) for an MLP. Raises UserError for another name."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{name!r} is no node: heads are named as a3.h1, MLPs as m3")
    layer, head, mlp = found.groups()
    return (int(mlp), None) if layer is None else (int(layer), int(head))


@dataclass(frozen=True, eq=False)
class Circuit:
    """Scores of a model's heads and MLPs, and which of them are kept.

    Attributes:
        heads: Float[layer head] scores; NaN where not scored.
        mlps: Float[layer] scores; NaN where not scored.
        d_model: the residual stream's size.
        parallel: attention and MLP of a layer read the same input (as in GPT-NeoX).
        kept: names of the nodes in the circuit; nodes without a score are in it too, except those
            in ``left_out``.
        left_out: names of nodes without a score, or ``input`` or ``logits``, that are not in it.
        edges: the edges of a file, by name; None if there are none.
    """

    heads: Float[Tensor, "layer head"]
    mlps: Float[Tensor, " layer"]
    d_model: int
    parallel: bool = False
    kept: frozenset[Node] = field(default=frozenset())
    left_out: frozenset[Node] = field(default=frozenset())
    edges: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        nodes = set(self.nodes())
        for what, names, known in (
            ("keeps", self.kept, nodes),
            ("leaves out", self.left_out, nodes | set(_ALWAYS)),
        ):
            if unknown := sorted(set(names) - known):
                raise UserError(f"the circuit {what} {unknown[0]!r}, which the model does not have")
        if any(bool(torch.isinf(scores).any()) for scores in (self.heads, self.mlps)):
            raise UserError("a score of the circuit is infinite")
        if both := sorted(self.kept & self.left_out):
            raise UserError(f"the circuit keeps {both[0]!r} and leaves it out")

    def nodes(self) -> tuple[Node, ...]:
        """Every head and MLP, in the order in which they run."""
        n_layers, n_heads = self.heads.shape
        return tuple(
            name
            for layer in range(n_layers)
            for name in (*(head_node(layer, h) for h in range(n_heads)), mlp_node(layer))
        )

    def score(self, name: Node) -> float:
        """A node's score; NaN where it was not scored."""
        layer, head = parse_node(name)
        return float(self.mlps[layer] if head is None else self.heads[layer, head])

    def ranked(self, *, by: By = "signed") -> tuple[Node, ...]:
        """The scored nodes, largest first; of equals the one that runs first."""
        nodes = self.nodes()
        scores = torch.cat([self.heads, self.mlps[:, None]], dim=1).flatten().numpy()
        order = best_first(scores, by=by)
        return tuple(nodes[index] for index in order[~np.isnan(scores[order])])

    def top(self, n: int, *, by: By = "signed") -> "Circuit":
        """The circuit of the ``n`` scored nodes with the largest scores.

        Nodes without a score stay in it, or left out. The edges of a file are dropped, since they
        belong to another circuit.
        """
        ranked, n = self.ranked(by=by), whole_number("n", n)
        if not 0 <= n <= len(ranked):
            raise UserError(f"cannot keep {n} of {len(ranked)} scored nodes")
        return replace(self, kept=frozenset(ranked[:n]), edges=None)

    def holds(self, name: Node) -> bool:
        """Whether a node is in the circuit."""
        if name in self.kept or name in self.left_out:
            return name in self.kept
        return name in _ALWAYS or self.score(name) != self.score(name)

    def plot(
        self, *, n: int = 100, highlight: Iterable[str] = (), title: str = "circuit"
    ) -> "go.Figure":
        """The circuit's edges as a graph by layers.

        Args:
            n: at most so many edges, those with the largest absolute scores.
            highlight: names of nodes to mark, such as ``a3.h1``.

        Raises:
            UserError: a circuit without edges, or a node to mark that is in none of those drawn.
        """
        found = []
        for name, edge in (self.edges or {}).items():
            kept, score = (edge, None) if isinstance(edge, bool) else _kept_and_score(edge)
            if kept:
                writer, _, reader = name.partition("->")
                node, _, into = reader.partition("<")
                found.append((writer, node, into.rstrip(">"), reader, score or 0.0))
        if not found:
            raise UserError("the circuit has no edges to draw: EdgeEffects.circuit(n) has them")
        found.sort(key=lambda row: -abs(row[4]))
        n = whole_number("n", n, least=1)
        table = pd.DataFrame(found[:n], columns=["writer", "node", "into", "reader", "score"])
        return circuit_graph(table, metric="score", title=title, highlight=set(highlight))

    def to_json(self, *, edges: bool = False) -> dict[str, Any]:
        """The circuit in EAP-IG's format.

        Args:
            edges: write every edge too (there are very many); an edge is in the circuit if both its
                ends are. The edges of a file that was read are always written, unchanged.
        """
        n_layers, n_heads = self.heads.shape
        nodes: dict[str, dict[str, Any]] = {"input": {"in_graph": self.holds("input")}}
        for name in self.nodes():
            score = self.score(name)
            nodes[name] = {"in_graph": self.holds(name)}
            if score == score:  # not NaN
                nodes[name]["score"] = score
        nodes["logits"] = {"in_graph": self.holds("logits")}
        cfg: dict[str, Any] = {"n_layers": n_layers, "n_heads": n_heads}
        cfg |= {"parallel_attn_mlp": self.parallel, "d_model": self.d_model}
        if self.edges is not None:
            return {"cfg": cfg, "nodes": nodes, "edges": dict(self.edges)}
        written = {}
        for sender, receiver, into in self._every_edge() if edges else ():
            score = nodes[sender].get("score", 0.0)
            kept = nodes[sender]["in_graph"] and nodes[receiver]["in_graph"]
            written[f"{sender}->{receiver}{into}"] = {"score": score, "in_graph": kept}
        return {"cfg": cfg, "nodes": nodes, "edges": written}

    def _every_edge(self) -> Iterator[tuple[Node, Node, str]]:
        """Every (sender, receiver, input of the receiver) of the model."""
        n_layers, n_heads = self.heads.shape
        before: list[Node] = ["input"]
        for layer in range(n_layers):
            heads = [head_node(layer, head) for head in range(n_heads)]
            yield from ((s, head, f"<{i}>") for s in before for head in heads for i in "qkv")
            senders = before if self.parallel else [*before, *heads]
            yield from ((sender, mlp_node(layer), "") for sender in senders)
            before = [*before, *heads, mlp_node(layer)]
        yield from ((sender, "logits", "") for sender in before)

    def save(self, path: str | Path, *, edges: bool = False) -> Path:
        """Write the JSON file."""
        text = json.dumps(self.to_json(edges=edges)) + "\n"
        return write_atomically(as_path("path", path), text)

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read a circuit that ``save``, EAP-IG or MIB wrote.

        It contains the nodes that the file says are in the graph, and no others.

        Raises:
            UserError: no such file, not a circuit, or one of single neurons.
        """
        path = as_path("path", path)
        try:
            return _read(parse_json(read_text(path)))
        except UserError as error:
            raise UserError(f"{path} is not a circuit: {error}") from error


def _kept_and_score(edge: Mapping[str, Any]) -> tuple[bool, float | None]:
    score = edge.get("score")
    return bool(edge.get("in_graph", False)), None if score is None else float(score)


def _read(content: Any) -> Circuit:
    check_shape(content, _SHAPE, "the file", advice="write one with .save()")
    cfg, nodes = content["cfg"], content["nodes"]
    n_layers, n_heads = cfg["n_layers"], cfg["n_heads"]
    if n_layers < 1 or n_heads < 1 or n_layers * n_heads > LARGEST_MODEL:
        raise UserError(f"no model has {n_layers} layers of {n_heads} heads")
    heads = torch.full((n_layers, n_heads), torch.nan, dtype=torch.float64)
    mlps = torch.full((n_layers,), torch.nan, dtype=torch.float64)
    inside: dict[Node, bool] = dict.fromkeys(_ALWAYS, True)
    for name, node in nodes.items():
        entry: dict[str, Any] = {"in_graph": node} if isinstance(node, bool) else node
        if not all(entry.get("neurons") or ()):
            raise UserError(f"{name!r} has single neurons in the circuit, which is not supported")
        inside[name] = entry["in_graph"]
        if name in _ALWAYS:
            continue
        layer, head = parse_node(name)
        if layer >= n_layers or (head is not None and head >= n_heads):
            raise UserError(f"{name!r} is not in a model of {n_layers} layers of {n_heads} heads")
        given = entry.get("score")
        score = float("nan") if given is None else float(given)
        if head is None:
            mlps[layer] = score
        else:
            heads[layer, head] = score
    for name, edge in content["edges"].items():
        _check_edge(name, edge, inside)
    parallel = bool(cfg.get("parallel_attn_mlp", False))
    made = Circuit(heads, mlps, cfg["d_model"], parallel, edges=content["edges"] or None)
    scored = set(made.ranked())
    kept = frozenset(name for name in made.nodes() if inside.get(name, False))
    # Nodes without a score are part of a circuit unless they are left out by name.
    unscored = [name for name in (*made.nodes(), *_ALWAYS) if name not in scored]
    left_out = frozenset(name for name in unscored if not inside.get(name, False))
    return replace(made, kept=kept, left_out=left_out)


def _check_edge(name: str, edge: Any, inside: Mapping[Node, bool]) -> None:
    """Raise UserError for an edge between unknown nodes, or one that is malformed."""
    ends = _EDGE.fullmatch(name)
    if ends is None:
        raise UserError(f"{name!r} is no edge: they are named as a3.h1->m3 or m3->a4.h0<q>")
    for end in ends.groups():
        if end not in inside:
            raise UserError(f"the edge {name!r} has the end {end!r}, which is not one of the nodes")
    entry = {"in_graph": edge} if isinstance(edge, bool) else edge
    kept = entry.get("in_graph", False) if isinstance(entry, dict) else None
    if not isinstance(kept, bool):
        raise UserError(f"the edge {name!r} does not say whether it is in the graph (in_graph)")


@checked
def circuit_of(
    model: HookedModel, heads: PatchEffects, mlps: PatchEffects | None = None
) -> Circuit:
    """A circuit scored by mean effects, of which nothing is kept yet (see ``Circuit.top``).

    Args:
        heads: effects of component z, axes prompt, layer, head.
        mlps: effects of component mlp_out, axes prompt, layer; without it MLPs are not scored.

    Raises:
        UserError: effects of other components or axes, or of another model's size.
    """
    check_hooked(model)
    cfg = model.cfg
    scores = [torch.full((cfg.n_layers,), torch.nan, dtype=torch.float64)] * 2
    sizes = {"layer": cfg.n_layers, "head": cfg.n_heads}
    wanted = (("z", ("prompt", "layer", "head")), ("mlp_out", ("prompt", "layer")))
    for index, (result, (component, axes)) in enumerate(zip((heads, mlps), wanted, strict=True)):
        if result is None:
            continue
        of_kind("effects", result, PatchEffects, advice="interp.patching.patch gives them")
        if result.component != component or result.axes != axes:
            raise UserError(
                f"a circuit takes effects of {component} over {', '.join(axes)}, not of "
                f"{result.component} over {', '.join(result.axes)}"
            )
        if result.shape != (shape := tuple(sizes[axis] for axis in axes[1:])):
            raise UserError(
                f"effects of size {result.shape} do not fit the model, which has {shape}"
            )
        scores[index] = torch.from_numpy(result.group_mean)
    return Circuit(
        scores[0], scores[1], cfg.d_model, bool(getattr(cfg, "parallel_attn_mlp", False))
    )
