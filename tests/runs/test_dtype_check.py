"""A run in less than float32 says how far it is from it, and the model is left as it was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.models import HookedModel, load
from interp.models.majors import wraps_transformers
from interp.report import write_report
from interp.report.patch_page import render_patch
from interp.runs.dtype_check import dtype_check, widened
from interp.runs.locate import LocateSettings, locate_run
from interp.runs.patch import PatchSettings, patch_run


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text(encoding="utf-8"))


def in_bfloat16(hf_factory: Any, tokenizer: Any) -> HookedModel:
    return interp.models.from_hf(
        hf_factory("llama", tokenizer, seed=3).to(torch.bfloat16), tokenizer
    )


def test_float32_needs_no_check(tiny_llama: HookedModel) -> None:
    def never(model: object) -> Any:
        raise AssertionError("measured")

    assert dtype_check(tiny_llama, never) == {}


def test_the_difference_is_the_largest_of_those_measured(
    hf_factory: Any, plain_tokenizer: Any
) -> None:
    model = in_bfloat16(hf_factory, plain_tokenizer)
    seen = []

    def measure(one: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(next(one.parameters()).dtype)
        rough = seen[-1] is torch.bfloat16
        metric = torch.tensor([1.0, 2.0]) if rough else torch.tensor([1.25, 1.5])
        nan = torch.nan
        effects = torch.tensor([[0.5, nan]]) if rough else torch.tensor([[0.375, nan]])
        return metric, effects

    found = dtype_check(model, measure)
    assert seen == [torch.bfloat16, torch.float32]
    assert found["dtype_check"] == {
        "n_prompts": 2,
        "dtype": "bfloat16",
        "against": "the same weights in float32",
        "largest_metric_difference": 0.5,
        "largest_effect_difference": 0.125,
    }


def test_widening_changes_no_bit(hf_factory: Any, plain_tokenizer: Any) -> None:
    model = in_bfloat16(hf_factory, plain_tokenizer)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with widened(model):
        assert all(one.dtype != torch.bfloat16 for one in model.state_dict().values())
    after = model.state_dict()
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    assert all(one.dtype == after[name].dtype for name, one in before.items())


def test_a_run_of_patch_says_it(hf_factory: Any, word_tokenizer: Any, pairs_file: Path) -> None:
    run = pairs_file.parent / "run"
    model = in_bfloat16(hf_factory, word_tokenizer)
    result = patch_run(model, PatchSettings(pairs=str(pairs_file)), run, progress=False)
    found = manifest(run)["dtype_check"]
    assert found["n_prompts"] == 4
    # Sweeps compute in float32 with the very weights that are compared with.
    close = 1e-4 if wraps_transformers(model) else 0.1 * float(result.corrupted.abs().max())
    assert 0 <= found["largest_metric_difference"] <= close
    assert 0 <= found["largest_effect_difference"] <= close
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert "Computed in bfloat16: on 4 prompts" in render_patch(result, summary, manifest(run))


def test_a_run_of_the_embedded_model_in_bfloat16_says_it(tmp_path: Path) -> None:
    model = interp.models.load_model("smollm2-135m", device="cpu", dtype="bfloat16")
    settings = LocateSettings(site="output", limit=24, minimum=4)
    effects = locate_run(model, settings, tmp_path / "run", progress=False)["output"]
    recorded = manifest(tmp_path / "run")
    assert recorded["dtype"] == "bfloat16"
    found = recorded["dtype_check"]
    assert (found["n_prompts"], found["against"]) == (4, "float32")
    # Measured 0.32 and 0.065 nats, of logit differences of several and a largest effect above 0.5.
    assert 0.01 < found["largest_metric_difference"] < 1.0
    assert 0.001 < found["largest_effect_difference"] < 0.3
    assert bool(effects.values.isfinite().all())
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Computed in bfloat16: on 4 prompts the unedited metric is at most 0." in page


def test_a_run_of_another_dtype_is_another_run(
    hf_factory: Any, word_tokenizer: Any, pairs_file: Path
) -> None:
    run, settings = pairs_file.parent / "run", PatchSettings(pairs=str(pairs_file), limit=2)
    exact = interp.models.from_hf(hf_factory("llama", word_tokenizer, seed=3), word_tokenizer)
    patch_run(exact, settings, run, progress=False)
    before = (run / "effects.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"another run \(dtype was 'float32', now 'bfloat16'\)"):
        patch_run(in_bfloat16(hf_factory, word_tokenizer), settings, run, progress=False)
    assert (run / "effects.safetensors").read_bytes() == before


def test_a_run_of_locate_says_it(
    planted_run: Path, planted: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "dtype_check" not in manifest(planted_run)
    facts = planted_run.parent / "planted.csv"
    settings = LocateSettings(premises=str(facts), method="attribution", site="output")
    # Recorded as bfloat16 though its weights are float32, so there is no difference to find.
    recorded = replace(interp.models.model_info(planted), dtype="bfloat16")
    monkeypatch.setitem(load._INFO, planted, recorded)
    locate_run(planted, settings, tmp_path / "run", progress=False)
    found = manifest(tmp_path / "run")["dtype_check"]
    assert found["largest_metric_difference"] == found["largest_effect_difference"] == 0.0
    assert found["n_prompts"] == 4
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Computed in bfloat16: on 4 prompts the unedited metric is at most 0 from" in page
