"""The circuit file: the format field by field, all of it back again, broken files told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.models import HookedModel
from interp.patching.circuit import Circuit, circuit_of, parse_node
from interp.patching.result import PatchEffects

NAN = float("nan")


def small(**changes: Any) -> Circuit:
    arguments: dict[str, Any] = {
        "heads": torch.tensor([[0.5, -2.0], [1.0, NAN]]),
        "mlps": torch.tensor([3.0, NAN]),
        "d_model": 8,
    }
    return Circuit(**(arguments | changes))


def test_the_file_field_by_field() -> None:
    content = small().top(2).to_json(edges=True)
    assert content["cfg"] == {
        "n_layers": 2,
        "n_heads": 2,
        "parallel_attn_mlp": False,
        "d_model": 8,
    }
    assert content["nodes"] == {
        "input": {"in_graph": True},
        "a0.h0": {"in_graph": False, "score": 0.5},
        "a0.h1": {"in_graph": False, "score": -2.0},
        "m0": {"in_graph": True, "score": 3.0},
        "a1.h0": {"in_graph": True, "score": 1.0},
        "a1.h1": {"in_graph": True},  # not scored: kept in every circuit
        "m1": {"in_graph": True},
        "logits": {"in_graph": True},
    }
    edges = content["edges"]
    # Layer 0: input to two heads' q, k, v, and three senders to the MLP. Layer 1: four senders to
    # six inputs, six to the MLP. Seven to the logits.
    assert len(edges) == 6 + 3 + 24 + 6 + 7
    assert edges["m0->a1.h0<q>"] == {"score": 3.0, "in_graph": True}
    assert edges["a0.h1->m0"] == {"score": -2.0, "in_graph": False}
    assert edges["input->logits"] == {"score": 0.0, "in_graph": True}
    assert "m0->a0.h0<q>" not in edges
    json.loads(json.dumps(content, allow_nan=False))
    assert small().to_json()["edges"] == {}


def test_parallel_blocks_have_no_edge_from_heads_to_their_mlp() -> None:
    edges = small(parallel=True).to_json(edges=True)["edges"]
    assert "a0.h0->m0" not in edges
    assert "a0.h0->m1" in edges
    assert "a0.h0->a1.h0<v>" in edges


def test_saved_circuits_are_read_back(tmp_path: Path) -> None:
    circuit = small(parallel=True).top(3, by="absolute")
    for edges in (False, True):
        back = Circuit.load(circuit.save(tmp_path / "circuit.json", edges=edges))
        torch.testing.assert_close(
            back.heads, circuit.heads.double(), equal_nan=True, rtol=0, atol=0
        )
        torch.testing.assert_close(back.mlps, circuit.mlps.double(), equal_nan=True, rtol=0, atol=0)
        assert back.top(3, by="absolute").kept == circuit.kept
        assert back.kept == circuit.kept | {"a1.h1", "m1"}
        assert (back.d_model, back.parallel) == (8, True)


def test_ranking_by_sign_and_by_size() -> None:
    assert small().ranked() == ("m0", "a1.h0", "a0.h0", "a0.h1")
    assert small().ranked(by="absolute") == ("m0", "a0.h1", "a1.h0", "a0.h0")
    assert small().top(1).kept == {"m0"}
    with pytest.raises(UserError, match="cannot keep 5 of 4 scored nodes"):
        small().top(5)


def test_circuits_that_others_wrote(tmp_path: Path) -> None:
    """Their writer gives unscored nodes a NaN; an older one had a bare truth value a node."""
    path = tmp_path / "circuit.json"
    cfg = '{"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": false, "d_model": 4}'
    path.write_text(
        f'{{"cfg": {cfg}, "nodes": {{"input": {{"in_graph": true, "score": NaN}}, '
        '"a0.h0": {"in_graph": true, "score": NaN}, "m0": {"in_graph": false, "score": 0.5}, '
        '"logits": {"in_graph": true}}, "edges": {"input->m0": {"score": 1.0, "in_graph": true}}}'
    )
    circuit = Circuit.load(path)
    assert circuit.kept == {"a0.h0"}
    assert circuit.mlps.tolist() == [0.5]
    path.write_text(f'{{"cfg": {cfg}, "nodes": {{"a0.h0": true, "m0": false}}, "edges": {{}}}}')
    assert Circuit.load(path).kept == {"a0.h0"}


NAMES = ("a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
FOUND = {"a0.h1", "m1"}
FOUND_EDGES = {
    "input->a0.h1<k>": {"score": -0.5, "in_graph": True},
    "a0.h1->m1": {"score": 0.25, "in_graph": True, "weight": 2},
    "a0.h0->m1": {"score": None, "in_graph": False},
    "m1->logits": {"in_graph": True},
}


def foreign(path: Path, nodes: dict[str, Any], edges: dict[str, Any]) -> Path:
    cfg = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    path.write_text(json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges}))
    return path


def entries(kind: str) -> dict[str, Any]:
    def entry(name: str) -> Any:
        inside = name in FOUND
        if kind == "bare":
            return inside
        score = {"none": {}, "null": {"score": None}, "NaN": {"score": NAN}, "all": {"score": 1}}
        given = score.get(kind, {"score": 0.5} if name in ("a0.h0", "m1") else {})
        return {"in_graph": inside, **given}

    return {name: entry(name) for name in NAMES}


@pytest.mark.parametrize("kind", ["bare", "none", "null", "NaN", "all", "some"])
@pytest.mark.parametrize("edges", [FOUND_EDGES, {}])
def test_a_circuit_holds_what_its_file_says(
    kind: str, edges: dict[str, Any], tmp_path: Path
) -> None:
    circuit = Circuit.load(foreign(tmp_path / "circuit.json", entries(kind), edges))
    for _ in range(2):  # as read, and as written again
        assert {name for name in NAMES if circuit.holds(name)} == FOUND
        content = json.loads(circuit.save(tmp_path / "again.json").read_text())
        assert content["edges"] == edges
        inside = {name for name, node in content["nodes"].items() if node["in_graph"]}
        assert inside == FOUND | {"input", "logits"}
        circuit = Circuit.load(tmp_path / "again.json")
    if edges:
        assert json.loads(json.dumps(circuit.to_json(edges=True)))["edges"] == edges


def test_a_node_that_the_file_does_not_name_is_not_in_the_circuit(tmp_path: Path) -> None:
    nodes = {"input": {"in_graph": False}, "a0.h1": {"in_graph": True}}
    circuit = Circuit.load(foreign(tmp_path / "circuit.json", nodes, {}))
    assert [name for name in ("input", *NAMES, "logits") if circuit.holds(name)] == [
        "a0.h1",
        "logits",
    ]
    assert circuit.to_json()["nodes"]["input"] == {"in_graph": False}


def test_the_top_of_a_circuit_that_was_read(tmp_path: Path) -> None:
    """Ranking moves the scored nodes only; the file's edges are of the circuit before."""
    nodes = {name: {"in_graph": name in FOUND} for name in NAMES}
    nodes["a0.h0"]["score"], nodes["a0.h1"]["score"] = 2.0, 1.0  # type: ignore[assignment]
    circuit = Circuit.load(foreign(tmp_path / "circuit.json", nodes, FOUND_EDGES)).top(1)
    assert [name for name in NAMES if circuit.holds(name)] == ["a0.h0", "m1"]
    assert circuit.to_json()["edges"] == {}


def test_a_circuit_of_neurons_is_told(tmp_path: Path) -> None:
    nodes = {"a0.h0": {"in_graph": True, "neurons": [True, False]}}
    with pytest.raises(UserError, match=r"'a0\.h0' is in it with some of its neurons only"):
        Circuit.load(foreign(tmp_path / "circuit.json", nodes, {}))


def test_kept_and_left_out_at_once() -> None:
    with pytest.raises(UserError, match="keeps 'm1' and leaves it out"):
        small(kept=frozenset({"m1"}), left_out=frozenset({"m1"}))
    with pytest.raises(UserError, match="leaves out 'm9'"):
        small(left_out=frozenset({"m9"}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"cfg": {}, "nodes": {}, "edges": {}}',
        '{"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 1}, "nodes": {"x0": true}, "edges": {}}',
        '{"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 1}, "nodes": {"a0.h7": true}, '
        '"edges": {}}',
        '{"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 1}, "nodes": {"m0": {}}, "edges": {}}',
        '{"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 1}, "nodes": {"m00": true}, "edges": {}}',
        '{"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 1}, "nodes": {"m0": true}, '
        '"edges": {"a9.h9->logits": {"in_graph": true}}}',
        '{"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 1}, "nodes": {"m0": true}, '
        '"edges": {"m0->logits": 5}}',
    ],
)
def test_other_files_are_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"circuit\.json is not a circuit"):
        Circuit.load(path)
    with pytest.raises(UserError, match="is not a circuit"):
        Circuit.load(tmp_path / "none.json")


def test_effects_become_scores(families: dict[str, HookedModel]) -> None:
    for name in ("llama", "neox"):
        model = families[name]
        cfg = model.cfg
        heads = torch.randn(2, cfg.n_layers, cfg.n_heads)
        mlps = torch.randn(2, cfg.n_layers)

        def made(values: torch.Tensor, component: str, *axes: str) -> PatchEffects:
            return PatchEffects(
                values, ("prompt", *axes), torch.zeros(2), component, "exact", "logits"
            )

        result = made(heads, "z", "layer", "head")
        circuit = circuit_of(model, result, made(mlps, "mlp_out", "layer"))
        torch.testing.assert_close(circuit.heads, heads.double().mean(0))
        torch.testing.assert_close(circuit.mlps, mlps.double().mean(0))
        assert circuit.parallel == (name == "neox")
        assert len(circuit.ranked()) == cfg.n_layers * (cfg.n_heads + 1)
        assert len(circuit_of(model, result).ranked()) == cfg.n_layers * cfg.n_heads
        with pytest.raises(UserError, match="takes effects of z over prompt, layer, head, not of"):
            circuit_of(model, made(heads, "q", "layer", "head"))
        with pytest.raises(UserError, match="do not fit the model"):
            circuit_of(model, made(heads[:, :, :2], "z", "layer", "head"))


def test_names_of_nodes() -> None:
    assert parse_node("a12.h3") == (12, 3)
    assert parse_node("m7") == (7, None)
    for wrong in ("a1", "h3", "m1x", "logits", "a1.h2<q>"):
        with pytest.raises(UserError, match="is no node"):
            parse_node(wrong)
    with pytest.raises(UserError, match="keeps 'm9'"):
        small(kept=frozenset({"m9"}))
