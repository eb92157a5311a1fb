"""An atlas of run directories made by hand: every cell was computed by hand."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interp
from interp.cli import main
from interp.display import text_html
from interp.errors import UserError
from interp.figures.atlas import heads_by_depth
from interp.heads.effects import HeadEffects, save_effects
from interp.report.atlas import COLUMNS, COUNTS, TEXTS
from interp.report.atlas_page import render_atlas
from tests.report.conftest import BREAKOUT, TAG, make_evaluation, metrics

NOON = 1_700_000_000
"""Seconds: 14 November 2023, in UTC."""
SUBJECTS = tuple(f"city{number}" for number in range(6))


def row_of(found: interp.Atlas, number: int = 0) -> dict[str, Any]:
    """A row's cells, None where one is empty."""
    row = found.to_dataframe().iloc[number]
    return {name: None if pd.isna(value) else value for name, value in row.items()}


def write_manifest(run: Path, **model: Any) -> None:
    content = {
        "model": {"spec": "tiny", "fingerprint": "ab" * 32, **model},
        "dtype": "bfloat16",
        "versions": {"faithlens": "0.1.0"},
        "settings": {"premises": "capitals", "method": "attribution"},
    }
    (run / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    os.utime(run / "manifest.json", (NOON, NOON))


def write_effects(run: Path, scale: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)) -> None:
    """Effects of four heads that are the same in every prompt: no resample changes their order."""
    values = torch.tensor(scale).reshape(1, 2, 2).repeat(6, 1, 1)
    templates = ("why",) * 6
    found = HeadEffects(
        values, values / 10, SUBJECTS, templates, "attention", "attribution", "zero"
    )
    save_effects(run / "effects.safetensors", [found])


@pytest.fixture
def gated_run(run_directory: Path) -> Path:
    """A run that was scored with a detector and, beside it, told where the object is."""
    told = make_evaluation()
    gated = json.loads(json.dumps({**told, "gate": "probe"}))
    scores = gated["splits"]["held_out"]
    scores["false_premise"]["constrained"] = metrics(0.65)
    scores["true_premise"]["constrained"] = metrics(1.0, p_true_object=0.865)
    gated["detection"] = {"fired_on_false": [0.9, 0.8, 1.0], "fired_on_twins": [0.01, 0.0, 0.02]}
    told["random_null"] = {"n_sets": 0}
    (run_directory / "evaluation.json").write_text(json.dumps({**gated, "alternatives": [told]}))
    known = {"subjects": ["a", "b", "c"], "summary": "", "sha256": ""}
    (run_directory / "known.json").write_text(json.dumps(known))
    adapter = {"type": "MOELORA", "r": 2, "top_k": 1}
    sizes: dict[str, Any] = {"parameters": 12_345_678, "adapter": adapter}
    write_manifest(run_directory, architecture="Tiny", quantization="bnb", **sizes)
    write_effects(run_directory)
    return run_directory


def test_every_cell_of_a_search(gated_run: Path) -> None:
    row = row_of(interp.atlas([gated_run]))
    assert {name: row[name] for name in TEXTS} == {
        **{"run": "run", "kind": "search", "model": "tiny", "fingerprint": "abababababab"},
        **{"architecture": "Tiny", "dtype": "bfloat16", "quantization": "bnb"},
        "adapter": "moelora",
        **{"relations": "capitals", "method": "attribution", "site": "attention"},
        **{"heads": "1.0", "stability_over": "resamples", "random_gate": "probe"},
        **{"left_out_worst_in": None, "other_relations": None},
        **{"version": "0.1.0", "written": "2023-11-14"},
    }
    counts = {name: row[name] for name in COUNTS if row[name] is not None}
    assert counts == {
        **{"parameters": 12_345_678, "known": 3, "n_heads": 1, "scored": 58, "random_sets": 20},
        **{"rank": 2, "top_k": 1},
    }
    # The head is one of four, in the last of two layers; the two best of four are always the same
    # two, and two random ones of four share none, one or both: (1 · 0 + 4 · 1/3 + 1 · 1) / 6.
    assert (row["head_share"], row["depth"]) == (0.25, 1.0)
    assert (row["stability"], row["stability_low"], row["stability_high"]) == (1.0, 1.0, 1.0)
    assert row["stability_null"] == pytest.approx((4 / 3 + 1) / 6)
    scores = {name: row[name] for name in row if name.startswith(("pref", "gain", "twin", "p_tr"))}
    assert scores == pytest.approx(
        {
            **{"preference": 0.25, "preference_low": 0.15, "preference_high": 0.35},
            **{"preference_told": 0.75, "preference_told_low": 0.65, "preference_told_high": 0.85},
            **{"twin_cost_told": 1.0 - 0.9, "p_true_fall_told": 0.875 - 0.625},
            "preference_gated": 0.65,
            **{"preference_gated_low": 0.55, "preference_gated_high": 0.75},
            **{"gain_kept": 0.4 / 0.5, "twin_cost_gated": 0.0, "p_true_fall_gated": 0.01},
        }
    )
    assert (row["random_mean"], row["random_p95"]) == (0.26, 0.375)
    assert (row["fired_on_false"], row["fired_on_twins"]) == (0.9, 0.01)


def test_an_early_run_without_an_evaluation_has_empty_cells(run_directory: Path) -> None:
    for path in run_directory.iterdir():
        if path.name not in ("manifest.json", "heads.csv"):
            path.unlink()
    found = interp.atlas([run_directory])  # its manifest names the model, and nothing more of it
    row = {name: value for name, value in row_of(found).items() if value is not None}
    del row["written"]
    assert row == {
        **{"run": "run", "kind": "search", "model": "tiny", "site": "attention"},
        **{"n_heads": 1, "head_share": 0.25, "heads": "1.0", "depth": 1.0},
    }
    assert list(found.to_dataframe()) == list(COLUMNS)
    assert "## What constraining them does" not in render_atlas(found)


def test_relations_left_out_and_never_searched(run_directory: Path) -> None:
    """Two relations left out, 0.9 and 0.5; no setting has the row's one head: the largest is it."""
    header = ["searched", "scored", "site", "mode", "n_heads", "n", "baseline"]
    measures = ["preference_accuracy", "gain", "cost", "p_true_cost"]
    header += [f"{name}{end}" for name in measures for end in ("", "_low", "_high")]
    rows = [
        ["all others", "a", "attention", "zero", 3, 20, 0.2, *[0.9] * 3, *[0.7] * 6, *[0.3] * 3],
        ["all others", "b", "attention", "zero", 3, 20, 0.4, *[0.5] * 3, *[0.1] * 6, *[0.1] * 3],
        ["all others", "b", "attention", "zero", 2, 20, 0.4, *[0.0] * 3, *[0.1] * 6, *[0.1] * 3],
        ["a", "b", "attention", "zero", 3, 20, 0.4, *[0.0] * 3, *[0.1] * 6, *[0.1] * 3],
    ]
    pd.DataFrame(rows, columns=header).to_csv(run_directory / "transfer.csv", index=False)
    pd.DataFrame(
        [
            ("a", "b", 0.5, 0.1, 0.6, 0.0, "attention"),
            ("a", "c", 0.3, 0.3, 0.4, 0.2, "attention"),
            ("a", "b", 0.9, 0.9, 0.9, 0.9, "output"),
        ],
        columns=["a", "b", "jaccard", "jaccard_null", "spearman", "spearman_null", "site"],
    ).to_csv(run_directory / "stability.csv", index=False)
    scored = run_directory / "scored" / "languages"
    scored.mkdir(parents=True)
    shutil.copy(run_directory / "evaluation.json", scored)
    row = row_of(interp.atlas([run_directory]))
    assert (row["left_out_relations"], row["left_out_heads"]) == (2, 3)
    assert (row["left_out"], row["left_out_told"]) == pytest.approx((0.3, 0.7))
    assert (row["left_out_told_low"], row["left_out_told_high"]) == pytest.approx((0.5, 0.9))
    assert (row["left_out_worst"], row["left_out_worst_in"]) == (0.5, "b")
    assert row["left_out_p_true_fall"] == pytest.approx(0.2)
    assert row["other_relations"] == "languages 0.25 → 0.75"
    assert (row["stability_over"], row["stability"]) == ("relations", pytest.approx(0.4))
    assert (row["stability_null"], row["rank_correlation"]) == (pytest.approx(0.2), 0.5)
    assert row["rank_correlation_null"] == pytest.approx(0.1)


def write_training(run: Path, method: str = "moelora") -> Path:
    run.mkdir()
    write_manifest(run)
    settings = {"experts": 8, "rank": 4, "top_k": 2, "data": ["sets/facts", "arithmetic"]}
    (run / "training.json").write_text(json.dumps(settings))
    content = {
        **{"method": method, "trainable_parameters": 100, "base_parameters": 5000, "steps": 20},
        "accuracy": {"facts": {"value": 0.5}, "mean": {"value": 0.25}},
        "expert_cosine": 0.125,
    }
    (run / "metrics.json").write_text(json.dumps(content))
    return run


def write_analysis(run: Path) -> Path:
    run.mkdir()
    write_manifest(run)
    (run / "analyze.json").write_text(json.dumps({"data": ["facts"], "adapter_config": "ab"}))
    (run / "routing.csv").write_text("layer,target,expert\n0,q,0\n0,q,1\n1,q,0\n1,q,1\n")
    content = {
        "measures": {"task_information": {"texts": {"value": 0.5, "null_mean": 0.125}}},
        **{"projections": 2, "dead_experts": 0},
        "experts": {"experts": 4, "tested": 8, "significant": 3},
        "effects": {"tested": 4, "significant": 1},
    }
    (run / "measures.json").write_text(json.dumps(content))
    return run


def test_adapters_have_their_experts(tmp_path: Path) -> None:
    runs = [write_training(tmp_path / "moe"), write_training(tmp_path / "plain", "lora")]
    found = interp.atlas([*runs, write_analysis(tmp_path / "analysis")])
    rows = [row_of(found, number) for number in range(3)]
    assert [row["kind"] for row in rows] == ["training", "training", "analysis"]
    assert [row["adapter"] for row in rows] == ["moelora", "lora", "moelora"]
    assert [row["experts"] for row in rows] == [8, None, 2]
    assert [row["top_k"] for row in rows] == [2, None, None]
    assert [row["accuracy"] for row in rows] == [0.25, 0.25, None]
    assert rows[0]["relations"] == "facts arithmetic"
    assert (rows[0]["trainable_parameters"], rows[0]["parameters"]) == (100, 5000)
    last = rows[2]
    assert (last["task_information"], last["task_information_null"]) == (0.5, 0.125)
    assert (last["task_experts"], last["tested_experts"], last["dead_experts"]) == (3, 8, 0)
    assert (last["effective_experts"], last["switched_off_experts"]) == (1, 4)
    assert "3 of 8" in render_atlas(found)
    with pytest.raises(UserError, match="no run of the atlas has heads"):
        found.plot()


def test_runs_of_one_architecture_are_compared(gated_run: Path, tmp_path: Path) -> None:
    """The same effects agree wholly; those in reverse have the other two heads, and −1."""
    reverse, other = tmp_path / "reverse", tmp_path / "other"
    for run, named in ((reverse, "Tiny"), (other, "Another")):
        shutil.copytree(gated_run, run)
        write_manifest(run, architecture=named)
    write_effects(reverse, (4.0, 3.0, 2.0, 1.0))
    same = shutil.copytree(gated_run, tmp_path / "same")
    write_manifest(same, architecture="Tiny")
    found = interp.atlas([gated_run, same, reverse, other])
    table = found.comparisons.set_index(["a", "b"])
    assert list(table.index) == [("run", "same"), ("run", "reverse"), ("same", "reverse")]
    assert table["jaccard"].tolist() == [1.0, 0.0, 0.0]
    assert table["spearman"].tolist() == pytest.approx([1.0, -1.0, -1.0])
    assert set(table["n_heads"]) == {2}
    # The first run's two heads are all of their layer: there is no other set of as many in it.
    assert table["jaccard_null"].tolist() == [1.0, 0.0, 0.0]
    assert "| run |  | 1.00 (1.00) | 0.00 (0.00) |" in render_atlas(found)


def test_what_cannot_be_read_is_named_and_the_others_go_on(
    gated_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = shutil.copytree(gated_run, tmp_path / "damaged")
    (damaged / "heads.csv").write_text("site,layer\n")
    begun = write_training(tmp_path / "begun")
    (begun / "metrics.json").unlink()
    (tmp_path / "empty").mkdir()
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "patch.json").write_text("{}")
    names = ["damaged", "begun", "empty", "patched", "nothing"]
    found = interp.atlas([gated_run, *(tmp_path / name for name in names), f"{gated_run}/../run"])
    assert found.to_dataframe()["run"].tolist() == ["run"]  # given twice, once by another path
    whys = ("lacks the columns", "not finished", "not a run", "interp patch", "not a directory")
    assert [name for name, _ in found.skipped] == names
    for (_, said), why in zip(found.skipped, whys, strict=True):
        assert why in said
        assert len(said.splitlines()) == 1
    assert len(caplog.records) == len(names)
    page = render_atlas(found)
    assert all(f"- {name}: " in page for name in names)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("manifest.json", '"model": {', '"model": [], "one": {'),
        ("manifest.json", '"parameters": 12345678', '"parameters": "many"'),
        ("known.json", '"subjects": [', '"subject": ['),
        ("evaluation.json", '"heads": [[1, 0]]', '"heads": [[7, 0]]'),
    ],
)
def test_a_damaged_file_is_named(file: str, old: str, new: str, gated_run: Path) -> None:
    text = (gated_run / file).read_text("utf-8")
    assert old in text
    (gated_run / file).write_text(text.replace(old, new), "utf-8")
    with pytest.raises(UserError, match=file):
        interp.atlas([gated_run])


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one run directory"):
        interp.atlas([])
    with pytest.raises(UserError, match=r"none of these 1 can be read; the first: .*not a run"):
        interp.atlas([tmp_path])


def test_the_command_writes_page_tables_and_figure(
    gated_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["atlas", str(gated_run), "--out", str(tmp_path / "there")])
    there = tmp_path / "there"
    assert {path.name for path in there.iterdir()} == {"atlas.md", "atlas.csv", "atlas.html"}
    table = pd.read_csv(there / "atlas.csv")
    assert list(table) == list(COLUMNS)
    assert table["known"].tolist() == [3]
    assert "](atlas.html)" in (there / "atlas.md").read_text("utf-8")
    assert "tiny" in capsys.readouterr().out
    main(["atlas", str(gated_run), "--out", str(tmp_path / "page.md")])
    assert (tmp_path / "page.csv").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["atlas", "--out", str(tmp_path / "none")])
    assert stop.value.code == 2
    assert not (tmp_path / "none").exists()


def test_hostile_text_stays_text(run_directory: Path) -> None:
    write_manifest(run_directory, architecture=TAG, quantization="a|b\n# c [x](javascript:y)")
    content = json.loads((run_directory / "manifest.json").read_text("utf-8"))
    content["model"]["spec"] = f"tiny {BREAKOUT}"
    (run_directory / "manifest.json").write_text(json.dumps(content))
    found = interp.atlas([run_directory])
    page = render_atlas(found)
    assert "<" not in page
    assert r"a\|b \# c \[x\](javascript:y)" in page
    assert "<script" not in text_html(found._shown())


def test_the_figure_draws_the_largest_heads_of_each_run() -> None:
    table = pd.DataFrame(
        {
            "run": ["a", "a", "a", "<b>"],
            **{"layer": [0, 1, 1, 0], "head": [0, 0, 1, 0], "depth": [0.0, 1.0, 1.0, 0.0]},
            **{"place": [0.0, 0.0, 1.0, 0.0], "effect": [2.0, 0.2, -1.0, 3.0]},
            **{"share": [1.0, 0.1, -0.5, 1.0], "selected": [True, False, False, False]},
        }
    )
    figure = heads_by_depth(table, count=2)
    dots: Any = figure.data[0]
    drawn = dict(zip([tuple(one[:2]) for one in dots.customdata], dots.y, strict=True))
    assert drawn == pytest.approx(
        {("a", "0.0"): -0.35, ("a", "1.1"): 0.35, ("&lt;b&gt;", "0.0"): 0.65}
    )
    symbols = dict(zip([one[1] for one in dots.customdata], dots.marker.symbol, strict=True))
    assert symbols["1.1"] == "x"
    assert figure.layout.yaxis.ticktext == ("a", "&lt;b&gt;")
