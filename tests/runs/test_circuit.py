"""``interp circuit`` as a function: the planted path comes out; runs are whole and repeatable."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interp.commands.circuit as circuit_module
from interp.commands.circuit import CircuitSettings, circuit_run, parted
from interp.commands.plan import plan_circuit
from interp.commands.report import report_run
from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import Circuit, EdgeEffects
from tests.unchecked import unchecked

FILES = {
    "circuit.json",
    "circuit_run.json",
    "edges.csv",
    "edges.safetensors",
    "faithfulness.csv",
    "manifest.json",
    "pairs.jsonl",
    "report.html",
    "summary.json",
}


def settings_of(path: Path, **changes: Any) -> CircuitSettings:
    return CircuitSettings(**{"pairs": str(path), "steps": 2, "n_random": 1, **changes})


def test_the_planted_path_comes_out(planted: HookedModel, pairs_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = circuit_run(planted, settings_of(pairs_file, edges=12), run, progress=False)
    assert {path.name for path in run.iterdir()} == FILES
    # WRITER notes the country, READER takes the note as its value, and writes it to the logits.
    first = found.to_dataframe(4)
    edges = set(zip(first["writer"], first["reader"], strict=True))
    assert ("a1.h2", "logits") in edges
    assert any(writer == "a0.h1" and reader.endswith("<v>") for writer, reader in edges)
    circuit = Circuit.load(run / "circuit.json")
    assert circuit.holds("a0.h1")
    assert circuit.holds("a1.h2")
    summary = json.loads((run / "summary.json").read_text())
    held_out = summary["held_out"]
    assert (summary["n_search"], held_out["n_prompts"]) == (6, 6)
    whole = held_out["curve"][-1]["faithfulness"]
    assert whole == pytest.approx(1.0, abs=1e-4)
    assert held_out["cpr"][0] > max(held_out["random_cpr"])
    assert len(pd.read_csv(run / "edges.csv")) == summary["n_edges"]
    page = (run / "report.html").read_text()
    assert "Plotly.newPlot" in page
    assert "On 6 pairs that were not searched: CPR" in page
    report_run(run)
    assert (run / "report.html").read_text() == page


def test_an_interrupted_run_is_taken_up(
    planted: HookedModel, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(pairs_file, shard=3, method="eap", n_random=0)
    whole = circuit_run(planted, settings, tmp_path / "whole", progress=False)
    real, calls = circuit_module.patch_edges, []

    def stops(*args: Any, **options: Any) -> EdgeEffects:
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(circuit_module, "patch_edges", stops)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        circuit_run(planted, settings, run, progress=False)
    again = circuit_run(planted, settings, run, progress=False)
    assert calls == [3, 3, 3]  # the first shard was kept
    torch.testing.assert_close(again.values, whole.values, equal_nan=True, rtol=0, atol=1e-6)
    circuit_run(planted, settings, run, progress=False)
    assert len(calls) == 3
    for file in ("summary.json", "edges.csv", "faithfulness.csv"):
        assert (run / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_groups_are_not_parted() -> None:
    groups = ["a", "b", "a", "c", "d", "b"]
    search, held_out = parted(groups, 0.5, 0)
    assert sorted(search + held_out) == list(range(6))
    assert not {groups[i] for i in search} & {groups[i] for i in held_out}
    assert len({groups[i] for i in held_out}) == 2
    assert parted(groups, 0.0, 0) == (list(range(6)), [])
    assert parted(["a", "a"], 0.5, 0) == ([0, 1], [])  # one group: nothing can be held out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 1.0}, "held_out"),
        ({"edges": 0}, "edges is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"method": "ig"}, "method"),
        ({"select": "best"}, "select"),
        ({"positions": "each"}, "positions"),
        ({"shard": 0}, "shard is 0"),
    ],
)
def test_bad_settings_are_one_line(changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        unchecked(CircuitSettings, **changes)
    assert "\n" not in str(caught.value)


def test_texts_of_unequal_lengths_are_refused(planted: HookedModel, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = {"clean": "city1 is", "corrupted": "city2 the is", "answer": " land1"}
    path.write_text(json.dumps({**row, "wrong_answer": " land2"}) + "\n")
    with pytest.raises(UserError, match="give the pairs spans"):
        circuit_run(planted, settings_of(path), tmp_path / "run", progress=False)
    spans = {"city": {"clean": [0, 5], "corrupted": [0, 5]}}
    path.write_text(json.dumps({**row, "wrong_answer": " land2", "spans": spans}) + "\n")
    by_spans = settings_of(path, positions="spans")
    with pytest.raises(UserError, match="choose held_out 0"):
        circuit_run(planted, by_spans, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    scores_alone = replace(by_spans, held_out=0.0)
    found = circuit_run(planted, scores_alone, tmp_path / "run", progress=False)
    assert float(found.values.nan_to_num().abs().max()) > 0
    assert "No pairs were held out" in (tmp_path / "run" / "report.html").read_text()


def test_a_plan_and_a_greedy_circuit(
    planted: HookedModel, pairs_file: Path, tmp_path: Path
) -> None:
    settings = settings_of(pairs_file, select="greedy", edges=8, method="eap", n_random=1)
    plan = plan_circuit(planted, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert {"scores of edges", "circuits of edges"} <= {stage.name for stage in plan.stages}
    circuit_run(planted, settings, tmp_path / "run", progress=False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["select"] == "greedy"
    assert summary["stability"]["k"] == 8
    assert summary["stability"]["chance"] < summary["stability"]["overlap"][0]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "that lead to the logits" in page
    assert "In resamples of the pairs the 8 largest absolute scores" in page
