"""Circuits of edges: their files, and runs of them by hand and against TransformerLens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.models import HookedModel
from interp.patching import (
    Circuit,
    EdgeEffects,
    LogitDifference,
    TokenBatch,
    edge_faithfulness,
    patch_edges,
)
from interp.patching.edges.circuit_of_edges import connected
from interp.patching.edges.graph import EdgeGraph
from tests.patching.lens_edges import lens_reader, lens_writer
from tests.patching.prompts import CLEAN, CORRUPTED, METRIC

FIRST = LogitDifference(torch.tensor([0]), torch.tensor([1]))
U = 23.5 - 30
"""The change of u in the micro model, see test_path."""


def scored(model: Any) -> EdgeEffects:
    return patch_edges(model, CLEAN, CORRUPTED, METRIC, progress=False)


def score(result: EdgeEffects, writer: str, reader: str) -> float:
    return float(result.mean[result.graph.index((writer, reader))])


def test_a_circuit_is_read_as_it_was_written(tiny_gpt2: HookedModel, tmp_path: Path) -> None:
    result = scored(tiny_gpt2)
    circuit = result.circuit(30)
    path = circuit.save(tmp_path / "circuit.json")
    content = json.loads(path.read_text())
    kept = {name for name, edge in content["edges"].items() if edge["in_graph"]}
    assert 0 < len(kept) <= 30
    assert len(content["edges"]) == int(result.graph.exists.sum())
    for name in kept:  # scores and ends are those of the result
        writer, reader = name.split("->")
        assert content["edges"][name]["score"] == pytest.approx(score(result, writer, reader))
        assert content["nodes"][writer]["in_graph"]
        assert content["nodes"][reader.partition("<")[0]]["in_graph"]
    again = Circuit.load(path)
    assert again.to_json() == circuit.to_json()


def test_edges_off_every_path_are_pruned() -> None:
    graph = EdgeGraph(n_layers=2, n_heads=2, n_kv_heads=1)
    edges = [("input", "a0.h0<q>"), ("a0.h0", "a1.h0<k>"), ("a1.h1", "logits"), ("input", "m0")]
    # a1.h0<k> is the key of both heads of layer 1, so that the way goes on from a1.h1.
    assert connected(graph, edges) == set(edges[:3])
    assert connected(graph, edges[:2]) == set()


def curve(model: Any, scores: EdgeEffects, *pairs: Any, **options: Any) -> Any:
    clean, corrupted, metric = pairs or (CLEAN, CORRUPTED, METRIC)
    options = {"n_random": 1, "progress": False} | options
    return edge_faithfulness(model, clean, corrupted, metric, scores=scores, **options)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "qwen3", "gemma3"])
def test_circuits_of_all_edges_and_of_none_are_the_whole_runs(
    name: str, families: dict[str, HookedModel]
) -> None:
    model = families[name]
    scores = scored(model)
    result = curve(model, scores, proportions=(1e-9, 1.0), n_random=0)
    assert result.counts == (0, int(scores.graph.exists.sum()))
    torch.testing.assert_close(result.circuit[:, 0], result.corrupted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.circuit[:, 1], result.clean, rtol=1e-5, atol=1e-5)


def test_circuits_of_a_linear_model_as_computed_by_hand(micro: HookedModel) -> None:
    clean, corrupted = (TokenBatch.from_lists([ids]) for ids in ([1, 1, 5, 7], [1, 3, 5, 7]))
    scores = patch_edges(micro, clean, corrupted, FIRST, method="exact", progress=False)
    chain = [("input", "a0.h0<v>"), ("a0.h0", "a1.h0<v>"), ("a1.h0", "logits")]
    values = torch.zeros_like(scores.values[0])
    for place, edge in enumerate(chain):
        values[scores.graph.index(edge)] = 3.0 - place
    ranked = replace(scores, values=values.masked_fill(~scores.graph.exists, torch.nan)[None])
    n_edges = int(scores.graph.exists.sum())
    shares = tuple((count + 0.5) / n_edges for count in (1, 2, 3))
    result = curve(micro, ranked, clean, corrupted, FIRST, proportions=shares)
    assert result.counts == (1, 2, 3)
    # Nothing arrives at the logits before the third edge, and then u alone.
    found = (result.circuit[0] - result.corrupted).tolist()
    assert found == pytest.approx([0.0, 0.0, U], abs=1e-4)


@pytest.mark.bridge_only
@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_circuits_are_those_of_transformer_lens(
    name: str, families: dict[str, HookedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.tools.analysis import attribution_patching as theirs

    model = families[name]
    clean, corrupted = torch.tensor([[5, 9, 7, 8, 30, 31]]), torch.tensor([[5, 9, 7, 81, 30, 31]])
    metric = LogitDifference(torch.tensor([3]), torch.tensor([65]))
    scores = patch_edges(model, clean, corrupted, metric, progress=False)
    kept = scores.order()[:40]
    result = curve(
        model, scores, clean, corrupted, metric, proportions=(40.5 / len(scores.order()), 1.0)
    )
    assert result.counts[0] == 40
    for parameter in model.parameters():
        monkeypatch.setattr(parameter, "requires_grad", True)
    circuit = [
        (writer, reader)
        for writer, reader in theirs.attribution_patch(
            model,
            clean,
            corrupted,
            lambda logits: metric(logits[:, -1])[0],
            config=theirs.EdgeAttributionConfig(granularity="edge"),
        ).edge_scores
        if _flat(scores, writer, reader) in set(kept.tolist())
    ]
    expected = theirs.faithfulness(
        model, clean, corrupted, lambda logits: metric(logits[:, -1])[0], circuit
    )
    assert abs(float(result.curve[0]) - 1) > 0.0
    assert float(result.curve[0]) == pytest.approx(expected.recovered, rel=1e-3)


def _flat(scores: EdgeEffects, writer: Any, reader: Any) -> int:
    row, column = scores.graph.index((lens_writer(writer), lens_reader(reader)))
    return row * len(scores.graph.readers) + column
