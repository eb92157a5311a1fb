"""``interp patch`` as a function: the planted heads come out, and a run is whole and repeatable."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interp.commands.patch as patch_module
from interp.commands.pairs import load_pairs
from interp.commands.patch import PatchSettings, patch_run
from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import PatchEffects
from interp.tasks import read_pairs
from interp.tasks.patching import metric_of, patch_pairs, positions_of
from tests.unchecked import unchecked

FILES = {
    "effects.safetensors",
    "manifest.json",
    "pairs.jsonl",
    "patch.json",
    "report.html",
    "summary.json",
    "units.csv",
}


def settings_of(path: Path, **changes: Any) -> PatchSettings:
    arguments: dict[str, Any] = {"pairs": str(path)} | changes
    return PatchSettings(**arguments)


def test_the_planted_heads_come_out_on_top(
    planted: HookedModel,
    planted_heads: dict[str, tuple[int, int]],
    pairs_file: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    result = patch_run(planted, settings_of(pairs_file), run, progress=False)
    assert set(result.top_k(2, by="signed")) == set(planted_heads.values())
    assert {path.name for path in run.iterdir()} == FILES
    units = pd.read_csv(run / "units.csv")
    assert set(zip(units["layer"][:2], units["head"][:2], strict=True)) == set(
        planted_heads.values()
    )
    assert (units["q_value"][:2] < 0.05).all()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["n_prompts"], summary["n_units"], summary["n_groups"]) == (12, 12, 12)
    clean, low, high = summary["mean_metric"]["clean"]
    assert low <= clean <= high
    assert clean == pytest.approx(float(result.clean.mean()), abs=1e-6)  # type: ignore[union-attr]
    page = (run / "report.html").read_text()
    assert "Plotly.newPlot" in page
    assert "clean texts are answered rightly" in page


def test_the_honest_model_has_no_such_head(
    honest: HookedModel,
    planted: HookedModel,
    planted_heads: dict[str, tuple[int, int]],
    pairs_file: Path,
) -> None:
    """The negative control: nothing copies the country, so no head carries it."""
    pairs = read_pairs(pairs_file)
    found = patch_pairs(planted, pairs, progress=False).mean
    none = patch_pairs(honest, pairs, progress=False).mean
    for head in planted_heads.values():
        assert abs(float(none[head])) < 0.02 * float(found[head])


def test_at_spans_each_head_acts_where_it_writes(
    planted: HookedModel, planted_heads: dict[str, tuple[int, int]], pairs_file: Path
) -> None:
    result = patch_pairs(planted, read_pairs(pairs_file), positions="spans", progress=False)
    assert result.axes == ("prompt", "layer", "head", "span")
    writer, reader = planted_heads["output"], planted_heads["attention"]
    assert set(result.top_k(2)) == {(*writer, "object"), (*reader, "end")}


@pytest.mark.parametrize(
    ("changes", "axes"),
    [
        ({"method": "attribution"}, ("prompt", "layer", "head")),
        ({"method": "ig", "steps": 2}, ("prompt", "layer", "head")),
        ({"method": "atp*"}, ("prompt", "layer", "head")),
        ({"method": "screen", "top_k": 3}, ("prompt", "layer", "head")),
        ({"component": "v", "positions": "each"}, ("prompt", "layer", "kv_head", "position")),
        ({"component": "resid_pre", "positions": "each"}, ("prompt", "layer", "position")),
        ({"component": "mlp_out", "positions": "spans"}, ("prompt", "layer", "span")),
        ({"component": "attn_out", "source": "mean"}, ("prompt", "layer")),
        ({"source": "resample", "seed": 3}, ("prompt", "layer", "head")),
        ({"source": "zero", "memory": 4.0}, ("prompt", "layer", "head")),
    ],
)
def test_every_kind_of_run_leaves_the_same_files(
    changes: dict[str, Any],
    axes: tuple[str, ...],
    planted: HookedModel,
    pairs_file: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    result = patch_run(planted, settings_of(pairs_file, limit=6, **changes), run, progress=False)
    assert result.axes == axes
    assert {path.name for path in run.iterdir()} == FILES
    units = pd.read_csv(run / "units.csv")
    assert list(units.columns[: len(axes) - 1]) == list(axes[1:])
    assert len(units) == int((~result.values.isnan().all(dim=0)).sum())
    if changes.get("method") == "screen":
        assert len(units) == 3  # the others were not verified
    assert units["effect"].notna().all()


def test_slices_are_the_same_as_the_whole(
    planted: HookedModel, pairs_file: Path, tmp_path: Path
) -> None:
    whole = patch_run(planted, settings_of(pairs_file), tmp_path / "whole", progress=False)
    sliced = patch_run(
        planted, settings_of(pairs_file, shard=5), tmp_path / "sliced", progress=False
    )
    torch.testing.assert_close(sliced.values, whole.values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sliced.clean, whole.clean, atol=1e-5, rtol=1e-5)
    assert sliced.groups == whole.groups


def test_an_interrupted_run_takes_up_what_is_there(
    planted: HookedModel, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(pairs_file, shard=5)
    real, calls = patch_module.patch_pairs, []

    def stops(model: Any, encoded: Any, **options: Any) -> PatchEffects:
        calls.append(len(encoded))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, encoded, **options)

    run = tmp_path / "run"
    monkeypatch.setattr(patch_module, "patch_pairs", stops)
    with pytest.raises(KeyboardInterrupt):
        patch_run(planted, settings, run, progress=False)
    assert len(list((run / "shards" / "patch").iterdir())) == 1
    result = patch_run(planted, settings, run, progress=False)
    assert calls == [5, 5, 5, 2]  # the first five were not made again
    assert len(result) == 12
    again = patch_run(planted, settings, run, progress=False)
    assert calls == [5, 5, 5, 2]
    assert torch.equal(again.values, result.values)
    assert {path.name for path in run.iterdir()} == FILES


def test_a_run_is_repeated_from_its_own_pairs(
    planted: HookedModel, pairs_file: Path, tmp_path: Path
) -> None:
    first = patch_run(planted, settings_of(pairs_file, limit=7), tmp_path / "a", progress=False)
    own = settings_of(tmp_path / "a" / "pairs.jsonl")
    again = patch_run(planted, own, tmp_path / "b", progress=False)
    assert torch.equal(first.values, again.values)
    assert first.groups == again.groups


def test_another_run_in_the_directory_is_refused(
    planted: HookedModel, honest: HookedModel, pairs_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    patch_run(planted, settings_of(pairs_file), run, progress=False)
    with pytest.raises(UserError, match="component was 'z', now 'q'"):
        patch_run(planted, settings_of(pairs_file, component="q"), run, progress=False)
    with pytest.raises(UserError, match="fingerprint was"):
        patch_run(honest, settings_of(pairs_file), run, progress=False)
    pairs_file.write_text("\n".join(pairs_file.read_text().split("\n")[::-1]))
    with pytest.raises(UserError, match="was made with other pairs"):
        patch_run(planted, settings_of(pairs_file), run, progress=False)


def test_only_rightly_answered_pairs_are_kept(
    planted: HookedModel, pairs_file: Path, tmp_path: Path
) -> None:
    """Two pairs with their answers turned round are answered wrongly."""
    rows = [json.loads(line) for line in pairs_file.read_text().split("\n")]
    for row in rows[:2]:
        row["answer"], row["wrong_answer"] = row["wrong_answer"], row["answer"]
    pairs_file.write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    result = patch_run(planted, settings_of(pairs_file, keep="right"), run, progress=False)
    assert len(result) == 10
    assert result.clean is not None
    assert bool((result.clean > 0).all())
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["n_pairs"], summary["n_right"], summary["n_prompts"]) == (12, 10, 10)
    assert len(read_pairs(run / "pairs.jsonl")) == 10
    pairs_file.write_text("\n".join(map(json.dumps, rows[:2])))
    with pytest.raises(UserError, match="none of the 2 pairs rightly"):
        patch_run(planted, settings_of(pairs_file, keep="right"), tmp_path / "no", progress=False)
    assert not (tmp_path / "no").exists()


def test_metrics_by_name(planted: HookedModel, pairs_file: Path, tmp_path: Path) -> None:
    pairs = read_pairs(pairs_file)
    results = {
        metric: patch_pairs(planted, pairs, metric=metric, progress=False)
        for metric in ("logit_difference", "probability", "log_probability", "kl")
    }
    reader = (1, 2)
    for metric in ("logit_difference", "probability", "log_probability"):
        assert results[metric].mean[reader] > 0
    assert results["kl"].mean[reader] < 0  # closer to the clean run
    assert results["kl"].clean is not None
    assert float(results["kl"].clean.abs().max()) < 1e-5
    torch.testing.assert_close(
        results["log_probability"].corrupted.exp(), results["probability"].corrupted
    )
    assert results["probability"].resolution < results["log_probability"].resolution


def test_what_does_not_fit_leaves_nothing_behind(
    planted: HookedModel, pairs_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in pairs_file.read_text().split("\n")]
    run = tmp_path / "run"
    bare = [{key: row[key] for key in row if key != "spans"} for row in rows]
    pairs_file.write_text("\n".join(map(json.dumps, bare)))
    with pytest.raises(UserError, match="these pairs have no spans"):
        patch_run(planted, settings_of(pairs_file, positions="spans"), run, progress=False)
    bare[0]["corrupted"] = "Why, why is city0 the capital of land2?"
    pairs_file.write_text("\n".join(map(json.dumps, bare)))
    with pytest.raises(UserError, match="differ in length: give the pairs spans"):
        patch_run(planted, settings_of(pairs_file), run, progress=False)
    assert not run.exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "one.txt").write_text("mine")
    bare[0] = rows[1]
    bare[0].pop("spans")
    pairs_file.write_text("\n".join(map(json.dumps, bare)))
    with pytest.raises(UserError, match="is not empty and not a run"):
        patch_run(planted, settings_of(pairs_file), tmp_path / "thesis", progress=False)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["one.txt"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"component": "w"}, "unknown component 'w'; known: z, q"),
        ({"method": "guess"}, "unknown method 'guess'; known: exact"),
        ({"source": "moon"}, "unknown source 'moon'; known: run"),
        ({"limit": 0}, "limit is 0: it must be at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"memory": -1.0}, "memory is -1.0 MiB"),
        ({"component": "pattern", "source": "mean"}, "mean attention pattern"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        unchecked(PatchSettings, **wrong)


def test_unknown_names_are_told(planted: HookedModel, pairs_file: Path) -> None:
    from interp.tasks import encode_pairs

    encoded = encode_pairs(planted.tokenizer, read_pairs(pairs_file))
    with pytest.raises(UserError, match="unknown metric 'loss'; known: logit_difference"):
        metric_of(planted, encoded, "loss")
    with pytest.raises(UserError, match="unknown positions 'some'; known: all, each, spans"):
        positions_of(encoded, "some")


def test_made_pairs_follow_the_seed_and_the_limit() -> None:
    assert len(load_pairs(PatchSettings())) == 32
    three = load_pairs(PatchSettings(limit=3, seed=1))
    assert len(three) == 3
    assert three != load_pairs(PatchSettings(limit=3, seed=2))
