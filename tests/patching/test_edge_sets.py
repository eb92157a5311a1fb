"""Sets of edges, screening, greedy circuits, and circuits that are given."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import (
    Circuit,
    EdgeEffects,
    LogitDifference,
    TokenBatch,
    circuit_metric,
    edge_faithfulness,
    patch_edge_sets,
    patch_edges,
    screen_edges,
    stability,
)
from interp.patching.edges.circuit_of_edges import nodes_of
from interp.patching.edges.graph import EdgeGraph
from interp.patching.edges.selection import greedy_order
from interp.patching.stability import chance_overlap
from tests.patching.prompts import CLEAN, CORRUPTED, METRIC

QUIET: dict[str, Any] = {"progress": False}
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
FIRST = LogitDifference(torch.tensor([0]), torch.tensor([1]))
ONE, OTHER = (TokenBatch.from_lists([ids]) for ids in ([1, 1, 5, 7], [1, 3, 5, 7]))
U = 23.5 - 30
"""The change of u in the micro model, see test_path."""


@pytest.mark.parametrize("name", ["llama", "neox", "gpt2"])
def test_sets_hold_single_edges_and_the_whole_run(
    name: str, families: dict[str, HookedModel]
) -> None:
    given = (families[name], CLEAN, CORRUPTED, METRIC)
    some = ["a0.h1->logits", "input->m1", "m0->a1.h1<v>"]
    exact = patch_edges(*given, method="exact", edges=some, **QUIET)
    every = exact.graph.every_edge()
    found = patch_edge_sets(*given, sets=[*([edge] for edge in some), every], **QUIET)
    for place, edge in enumerate(exact.graph.check(some)):
        writer, reader = exact.graph.index(edge)
        row = exact.values[:, writer, reader]
        torch.testing.assert_close(found[:, place], row, **CLOSE)
    torch.testing.assert_close(found[:, -1], exact.clean - exact.corrupted, **CLOSE)


def test_edges_of_a_set_carry_the_clean_run_once(micro: HookedModel) -> None:
    """Worked out by hand: what arrives twice counts once, as it is the clean run's value."""
    first, last = ("input", "a0.h0<v>"), ("a1.h0", "logits")
    sets = [[first], [last], [first, last], [("input", "a0.h1<v>")]]
    whole, end, both, nothing = patch_edge_sets(micro, ONE, OTHER, FIRST, sets=sets, **QUIET)[0]
    assert float(end) == pytest.approx(U, abs=1e-4)
    assert float(both) == pytest.approx(float(whole), rel=1e-6)
    assert float(nothing) == pytest.approx(0, abs=1e-4)


def test_greedy_adds_what_leads_to_the_logits_by_hand() -> None:
    graph = EdgeGraph(n_layers=2, n_heads=2, n_kv_heads=1)
    scores = np.full(graph.shape, np.nan)
    given = {
        ("input", "a0.h0<q>"): 9,
        ("a0.h0", "a1.h0<k>"): -8,  # the key of both heads of layer 1
        ("m0", "logits"): 2,
        ("a1.h1", "logits"): 1,
        ("input", "m0"): 0.5,
        ("input", "a1.h0<q>"): 7,  # nothing leads on from head 0 of layer 1
    }
    for edge, score in given.items():
        scores[graph.index(edge)] = score
    found = graph.named(greedy_order(graph, scores, "absolute"))
    order = [2, 3, 1, 0, 4, 5]
    assert found == [list(given)[place] for place in order]
    signed = graph.named(greedy_order(graph, scores, "signed"))
    assert signed == [list(given)[place] for place in (2, 3, 4, 1, 0, 5)]


def test_a_greedy_circuit_loses_no_edge_at_its_end(tiny_llama: HookedModel) -> None:
    result = patch_edges(tiny_llama, CLEAN, CORRUPTED, METRIC, **QUIET)
    order = result.order(select="greedy")
    assert sorted(order) == sorted(result.order())
    reached = {"logits"}
    for writer, reader in result.graph.named(order[:40]):
        assert reached & set(nodes_of(result.graph, reader))
        reached.add(writer)


def test_greedy_curves_end_in_the_whole_run(tiny_llama: HookedModel) -> None:
    scores = patch_edges(tiny_llama, CLEAN, CORRUPTED, METRIC, **QUIET)
    options: dict[str, Any] = {"scores": scores, "select": "greedy", "n_random": 1, **QUIET}
    curve = edge_faithfulness(
        tiny_llama, CLEAN, CORRUPTED, METRIC, proportions=(0.1, 1.0), **options
    )
    torch.testing.assert_close(curve.circuit[:, 1], curve.clean, **CLOSE)
    assert not torch.allclose(curve.random[0, :, 0], curve.circuit[:, 0], atol=1e-4)


def test_a_file_runs_as_the_circuit_that_was_written(
    tiny_llama: HookedModel, tmp_path: Path
) -> None:
    given = (tiny_llama, CLEAN, CORRUPTED, METRIC)
    scores = patch_edges(*given, **QUIET)
    circuit = Circuit.load(scores.circuit(60).save(tmp_path / "circuit.json"))
    n_edges = len(scores.order())
    curve = edge_faithfulness(
        *given, scores=scores, proportions=(60.5 / n_edges, 1.0), n_random=0, **QUIET
    )
    assert curve.counts[0] == 60
    inside = [name for name, edge in (circuit.edges or {}).items() if edge["in_graph"]]
    leading = {name.partition("->")[0] for name in inside} | {"logits"}
    assert all(name.partition("->")[2].partition("<")[0] in leading for name in inside)
    found = circuit_metric(*given, circuit=circuit, **QUIET)
    torch.testing.assert_close(found, curve.circuit[:, 0], **CLOSE)
    named = circuit_metric(*given, circuit=scores.graph.named(scores.order()[:60]), **QUIET)
    torch.testing.assert_close(named, found, **CLOSE)
    assert float((found - curve.clean).abs().max()) > 1e-3


def changed(circuit: Circuit, how: str) -> Circuit:
    """A circuit that does not fit the model."""
    edges = {name: dict(edge) for name, edge in (circuit.edges or {}).items()}
    if how == "empty":
        edges = {name: {**edge, "in_graph": False} for name, edge in edges.items()}
    elif how == "half":
        edges["input->a1.h0<k>"]["in_graph"] = True
        edges["input->a1.h1<k>"]["in_graph"] = False
        edges["a1.h1->logits"]["in_graph"] = True
    elif how == "unknown":
        edges["m1->a0.h0<q>"] = {"score": 1.0, "in_graph": True}
    elif how == "width":
        return replace(circuit, d_model=8)
    return replace(circuit, edges=edges)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "has no edges: there is nothing to run"),
        ("half", "read the same key or value"),
        ("unknown", "none of this model"),
        ("width", "of a model of width 8"),
    ],
)
def test_circuits_that_do_not_fit_are_one_line(
    tiny_llama: HookedModel, how: str, message: str
) -> None:
    given = (tiny_llama, CLEAN, CORRUPTED, METRIC)
    circuit = changed(patch_edges(*given, **QUIET).circuit(60), how)
    with pytest.raises(UserError, match=message) as caught:
        circuit_metric(*given, circuit=circuit, **QUIET)
    assert "\n" not in str(caught.value)


def test_a_circuit_of_another_model_is_refused(
    tiny_llama: HookedModel, families: dict[str, HookedModel], tmp_path: Path
) -> None:
    other = patch_edges(families["neox"], CLEAN, CORRUPTED, METRIC, **QUIET).circuit(60)
    content = other.to_json()
    content["cfg"]["d_model"] = tiny_llama.cfg.d_model
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="and this one has"):
        circuit_metric(tiny_llama, CLEAN, CORRUPTED, METRIC, circuit=Circuit.load(path), **QUIET)
    with pytest.raises(UserError, match="there are no sets"):
        patch_edge_sets(tiny_llama, CLEAN, CORRUPTED, METRIC, sets=[], **QUIET)
    with pytest.raises(UserError, match="there are no edges"):
        patch_edge_sets(tiny_llama, CLEAN, CORRUPTED, METRIC, sets=[[]], **QUIET)


def test_screening_of_a_linear_model_by_hand(micro: HookedModel) -> None:
    found = screen_edges(micro, ONE, OTHER, FIRST, ranked_by="eap", top_k=4, sample=20, **QUIET)
    verified, drawn = (part.order() for part in (found.verified, found.drawn))
    assert (len(verified), len(drawn)) == (4, 20)
    assert not set(verified) & set(drawn)
    assert found.n_rest == len(found.estimate.order()) - 4
    assert found.share_larger == pytest.approx(1 - 0.05 ** (1 / 20))
    # Estimates are exact there: the limits are the effects, and hold for every edge.
    every = patch_edges(micro, ONE, OTHER, FIRST, method="exact", **QUIET).mean
    bounded = ~np.isnan(found.bound)
    assert bounded.sum() == found.n_rest
    np.testing.assert_allclose(found.bound[bounded], np.abs(every[bounded]), atol=1e-3)
    whole = float(found.estimate.clean - found.estimate.corrupted)
    assert float(found.together[0].abs().max()) <= abs(whole) * (1 + 1e-6)
    assert "20 were drawn" in found._shown().words


def test_screening_sees_what_attribution_misses(tiny_llama: HookedModel) -> None:
    """With estimates that are wrong, limits are as wide as their errors."""
    options: dict[str, Any] = {"ranked_by": "eap", "top_k": 5, "sample": 30}
    found = screen_edges(tiny_llama, CLEAN, CORRUPTED, METRIC, **options, **QUIET)
    places = found.drawn.order()
    errors = np.abs(found.drawn.mean - found.estimate.mean).ravel()[places]
    width = float(np.nanmin(found.bound - np.abs(found.estimate.mean)))
    assert width == pytest.approx(np.sort(errors)[29])  # ⌈31 · 0.95⌉ = 30 of 30
    assert width > 1e-5
    for options, message in (
        ({"sample": 18}, "at least 19"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"ranked_by": "exact"}, "method that ranks"),
    ):
        with pytest.raises(UserError, match=message):
            screen_edges(tiny_llama, CLEAN, CORRUPTED, METRIC, **options, **QUIET)


def test_first_edges_are_stable_where_prompts_agree() -> None:
    graph = EdgeGraph(n_layers=1, n_heads=1, n_kv_heads=1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(12, *graph.shape, generator=generator)
    effect = torch.arange(noise[0].numel()).view(graph.shape) * 100.0

    def of(values: torch.Tensor) -> EdgeEffects:
        values = values.masked_fill(~graph.exists, torch.nan)
        runs: dict[str, Any] = {name: torch.ones(12) for name in ("corrupted", "clean")}
        return EdgeEffects(values, graph, 4, **runs, method="eap", metric="logits")

    n_edges = int(graph.exists.sum())
    same, random = (stability(of(values), 3, n_resamples=50) for values in (noise + effect, noise))
    assert same.overlap == (1.0, 1.0, 1.0)
    assert same.n_units == n_edges
    assert same.chance == pytest.approx(chance_overlap(3, n_edges))
    assert list(same.to_dataframe().columns) == ["writer", "reader", "frequency"]
    assert random.overlap[0] < 1
