"""A run in less than float32 says how far it is from it, and the model is left as it was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interp.commands.locate as locate_module
import interp.commands.patch as patch_module
import interp.models
from interp.commands.dtype_check import dtype_check, widened
from interp.commands.locate import LocateSettings, locate_run
from interp.commands.patch import PatchSettings, patch_run
from interp.commands.report import report_run
from interp.errors import UserError
from interp.models import HookedModel, load
from interp.models.versions import wraps_transformers
from interp.report import write_report
from interp.report.patch_page import render_patch


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


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
    UserError("out of memory with one prompt"),
]


# Both commands leave it to `dtype_check` to tell what the error is.
@pytest.mark.parametrize(
    ("kind", "error"),
    [*(("locate", error) for error in OUT), ("patch", OUT[-1])],
    ids=["gpu", "cpu", "python", "one prompt", "patch"],
)
def test_a_run_stands_when_memory_runs_out(
    kind: str,
    error: Exception,
    hf_factory: Any,
    planted: HookedModel,
    planted_run: Path,
    pairs_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = pairs_file.parent / "run"
    recorded = replace(interp.models.model_info(planted), dtype="bfloat16")
    monkeypatch.setitem(load._INFO, planted, recorded)
    module = locate_module if kind == "locate" else patch_module
    there: list[set[str]] = []

    def fails(*_: Any) -> Any:
        there.append({path.name for path in run.iterdir()})
        raise error

    monkeypatch.setattr(module, "_on_a_few", lambda *_: fails)
    if kind == "locate":
        facts = str(planted_run.parent / "planted.csv")
        locate_run(planted, LocateSettings(facts, site="output"), run, progress=False)
    else:
        patch_run(planted, PatchSettings(pairs=str(pairs_file)), run, progress=False)
    assert {"manifest.json", "effects.safetensors"} <= there[0]
    assert "shards" not in there[0]
    found = manifest(run)["dtype_check"]
    assert found.keys() == {"dtype", "left_out"}
    assert "memory" in found["left_out"]
    assert "\n" not in found["left_out"]
    assert f"left out ({found['left_out']}); the results stand" in caplog.text
    page = report_run(run).read_text(encoding="utf-8")
    assert "Computed in bfloat16; the comparison with float32 was left out: " in page


def test_any_other_error_is_raised(hf_factory: Any, plain_tokenizer: Any) -> None:
    def fails(model: Any) -> Any:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        dtype_check(in_bfloat16(hf_factory, plain_tokenizer), fails)


def test_a_mistake_in_float32_only_is_told_too(hf_factory: Any, plain_tokenizer: Any) -> None:
    model = in_bfloat16(hf_factory, plain_tokenizer)

    def measure(one: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if next(one.parameters()).dtype is torch.float32:
            raise UserError("too large")
        return torch.ones(2), torch.ones(2, 1)

    assert dtype_check(model, measure) == {
        "dtype_check": {"dtype": "bfloat16", "left_out": "too large"}
    }
    assert next(model.parameters()).dtype is torch.bfloat16


def test_it_can_be_left_out(hf_factory: Any, word_tokenizer: Any, pairs_file: Path) -> None:
    run, settings = pairs_file.parent / "run", PatchSettings(pairs=str(pairs_file), limit=2)
    model = in_bfloat16(hf_factory, word_tokenizer)
    patch_run(model, settings, run, check_dtype=False, progress=False)
    said = {"dtype": "bfloat16", "left_out": "as was asked for"}
    assert manifest(run)["dtype_check"] == said
    patch_run(model, settings, run, progress=False)
    assert "largest_effect_difference" in manifest(run)["dtype_check"]


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
    run, settings = tmp_path / "run", PatchSettings(pairs="ioi", method="attribution", limit=1)
    result = patch_run(model, settings, run, progress=False)
    recorded = manifest(run)
    assert recorded["dtype"] == "bfloat16"
    found = recorded["dtype_check"]
    assert (found["n_prompts"], found["against"]) == (1, "float32")
    assert 0.001 < found["largest_metric_difference"] < 1.0
    assert 0.0001 < found["largest_effect_difference"] < 0.3
    assert bool(result.values.isfinite().all())
    page = report_run(run).read_text(encoding="utf-8")
    assert "Computed in bfloat16: on 1 prompt the unedited metric is at most 0." in page


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
