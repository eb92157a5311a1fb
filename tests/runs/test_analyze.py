"""``interp moelora analyze`` on a tiny model: the run directory, taking it up again, refusals."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import interp.commands.expert_passes as passes_module
from interp.cli.moelora import AnalyzeOptions, moelora, parse
from interp.commands.analyze import analyze_adapter
from interp.commands.plan_adapter import plan_analyze
from interp.errors import UserError
from interp.experts import RoutingRecords, Specialization
from interp.files.documents import read_json
from interp.patching.result import PatchEffects
from interp.runs.usage import PassCounter, folder_bytes
from tests.report.pages import Page
from tests.runs.analysis import ROUTED, SWITCHED, quick_analysis

OLD_NAMES = "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning"
pytestmark = pytest.mark.filterwarnings(
    OLD_NAMES, "ignore::ResourceWarning", "ignore::FutureWarning:ray"
)


@pytest.mark.bridge_only  # the effects of experts
def test_run_directory(adapter_files: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    content = analyze_adapter(
        adapter_files / "run", quick_analysis(adapter_files, tokens=True), run, progress=False
    )
    assert {one.name for one in run.iterdir()} == {
        *("routing.safetensors", "routing.csv", "specialization.csv", "similarity.csv"),
        *("effects.safetensors", "effects_accuracy.safetensors", "effects.csv"),
        *("agreement.csv", "tokens.parquet"),
        *("measures.json", "manifest.json", "analyze.json", "report.html"),
    }
    assert content == read_json(run / "measures.json")
    assert list(content["tasks"]) == ["sums", "cities"]
    assert content["projections"] == 4
    assert content["effects"]["tested"] == 3 * 2
    records = RoutingRecords.load(run / "routing.safetensors")
    assert (
        records.n_tokens
        == content["tokens"]
        == sum(one["tokens"] for one in content["tasks"].values())
    )
    table = Specialization.load(run).to_dataframe()
    task = table[(table["measure"] == "task_information") & (table["null"] == "texts")]
    assert content["measures"]["task_information"]["texts"]["value"] == pytest.approx(
        task["value"].mean()
    )
    loss = PatchEffects.load(run / "effects.safetensors")
    accuracy = PatchEffects.load(run / "effects_accuracy.safetensors")
    assert len(loss) == len(accuracy) == 12
    assert accuracy.metric == "accuracy (teacher-forced)"
    assert len(pd.read_parquet(run / "tokens.parquet")) == 4 * records.n_tokens
    manifest = read_json(run / "manifest.json")
    assert len(manifest["adapter_sha256"]) == 64
    assert manifest["settings"]["effects"] == 6
    page = (run / "report.html").read_text()
    for heading in ("Summary", "Load", "Measures", "Experts and tasks", "Effects", "Outputs"):
        assert f"<h2>{heading}</h2>" in page
    assert "http://" not in page.split("<script>")[0]
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_run_is_taken_up_and_kept_apart(adapter_files: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", quick_analysis(adapter_files, effects=0)
    first = analyze_adapter(adapter_files / "run", settings, run, progress=False)
    assert first["effects"] is None
    written = (run / "routing.safetensors").stat().st_mtime_ns
    (run / "report.html").unlink()
    assert (
        analyze_adapter(adapter_files / "run" / "adapter", settings, run, progress=False) == first
    )
    assert (run / "routing.safetensors").stat().st_mtime_ns == written
    assert (run / "report.html").is_file()
    with pytest.raises(UserError, match="another run \\(draws was 39, now 49\\)"):
        analyze_adapter(
            adapter_files / "run",
            quick_analysis(adapter_files, effects=0, draws=49),
            run,
            progress=False,
        )


def test_parts_are_taken_up_and_give_the_same_bytes(
    adapter_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = quick_analysis(adapter_files, effects=0)
    hashes = {}
    for name, tokens in (("whole", False), ("tokens", True)):
        analyze_adapter(
            adapter_files / "run",
            quick_analysis(adapter_files, effects=0, tokens=tokens),
            tmp_path / name,
            progress=False,
        )
        hashes[name] = routed(tmp_path / name)
    assert hashes["tokens"] == hashes["whole"]  # written in one go, with a file beside it
    real, made = passes_module.routing_shard, []

    def stops(model: Any, job: Any) -> Any:
        made.append(job.number)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(model, job)

    monkeypatch.setattr(passes_module, "routing_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        analyze_adapter(adapter_files / "run", settings, tmp_path / "run", progress=False)
    analyze_adapter(adapter_files / "run", settings, tmp_path / "run", progress=False)
    assert made == [0, 1, 2, 2, 3]
    assert routed(tmp_path / "run") == hashes["whole"]
    assert not (tmp_path / "run" / "shards").exists()
    counts = tmp_path / "run" / "routing.safetensors"
    counts.write_bytes(counts.read_bytes()[:-1])
    analyze_adapter(adapter_files / "run", settings, tmp_path / "run", progress=False)
    assert routed(tmp_path / "run") == hashes["whole"]


@pytest.mark.bridge_only
def test_effects_are_taken_up_and_give_the_same_bytes(
    adapter_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = quick_analysis(
        adapter_files, limit=20, effects=20
    )  # of two tasks: 40 questions, two shards
    analyze_adapter(adapter_files / "run", settings, tmp_path / "whole", progress=False)
    whole = switched(tmp_path / "whole")
    asked = interrupted_at(monkeypatch, {"estimate_experts": 2, "measure_experts": 2})
    run = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            analyze_adapter(adapter_files / "run", settings, run, progress=False)
    analyze_adapter(adapter_files / "run", settings, run, progress=False)
    # The first of each was there, and is not made again.
    assert asked == {"estimate_experts": 3, "measure_experts": 3}
    assert switched(run) == whole
    assert not (run / "shards").exists()
    analyze_adapter(adapter_files / "run", settings, run, progress=False)
    assert asked == {"estimate_experts": 3, "measure_experts": 3}
    assert switched(run) == whole
    config = adapter_files / "run" / "adapter" / "adapter_config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "lora_alpha": 64}))
    with pytest.raises(UserError, match=r"another run \(adapter_config was "):
        analyze_adapter(adapter_files / "run", settings, run, progress=False)
    config.write_text(before)
    for name in ("effects.safetensors", "effects_accuracy.safetensors"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with caplog.at_level("WARNING"):
            analyze_adapter(adapter_files / "run", settings, run, progress=False)
        assert "the effects are measured again" in caplog.text
        caplog.clear()
        assert switched(run) == whole


def test_a_name_that_is_markup_is_text_in_the_page(adapter_files: Path, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    (tmp_path / f"{name}.jsonl").write_text((adapter_files / "sums.jsonl").read_text())
    data = (str(tmp_path / f"{name}.jsonl"), str(adapter_files / "cities.jsonl"))
    run = tmp_path / "run"
    analyze_adapter(
        adapter_files / "run",
        quick_analysis(adapter_files, data=data, effects=0),
        run,
        progress=False,
    )
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert not any(tag == "img" for tag, _ in page.tags)
    assert name in page.shown
    figures = json.dumps(page.figures())
    assert "&lt;img" in figures
    assert "<img" not in figures
    for table in run.glob("*.csv"):
        assert list(pd.read_csv(table))


def interrupted_at(monkeypatch: pytest.MonkeyPatch, at: dict[str, int]) -> dict[str, int]:
    """Interrupt these works at that call of theirs; the counts of their calls."""
    import interp.experts.effects.effects as effects_module

    asked = dict.fromkeys(at, 0)

    def stop(name: str, real: Any) -> None:
        def work(model: Any, job: Any, *, progress: bool = False) -> Any:
            asked[name] += 1
            if asked[name] == at[name]:
                raise KeyboardInterrupt
            return real(model, job, progress=progress)

        work.__name__ = name
        monkeypatch.setattr(effects_module, name, work)

    for name in at:
        stop(name, getattr(effects_module, name))
    return asked


def switched(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in SWITCHED]


def routed(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ROUTED]


def test_refusals(adapter_files: Path, tmp_path: Path) -> None:
    def refused(match: str, adapter: Path = adapter_files / "run", **changed: Any) -> None:
        with pytest.raises(UserError, match=match):
            analyze_adapter(
                adapter, quick_analysis(adapter_files, **changed), tmp_path / "no", progress=False
            )
        assert not (tmp_path / "no").exists()

    refused("all texts are of one task \\('sums'\\)", data=(str(adapter_files / "sums.jsonl"),))
    refused("task 'sums' has .* at least 100000 tokens in 8 texts", least_tokens=100_000)
    refused("at least 50 tokens in 8 texts are needed", limit=3)
    refused("holds a LORA adapter, not MoELoRA", adapter=adapter_files / "run" / "lora")
    refused("another base model", model=str(adapter_files / "larger"))
    refused("no saved adapter", adapter=adapter_files)
    refused("no data at", data=("nowhere",))
    with pytest.raises(UserError, match="draws is 3"):
        quick_analysis(adapter_files, draws=3)


def test_an_adapter_without_a_base_needs_one(adapter_files: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    content = json.loads((adapter_files / "run" / "adapter" / "adapter_config.json").read_text())
    path.write_text(json.dumps({**content, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not name its base model: give --model"):
        analyze_adapter(tmp_path, quick_analysis(adapter_files), tmp_path / "out", progress=False)
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        analyze_adapter(tmp_path, quick_analysis(adapter_files), tmp_path / "out", progress=False)


def words_of(adapter_files: Path, run: Path, *, routers: int) -> list[str]:
    """A quick analysis on the command line."""
    return [
        "analyze",
        str(adapter_files / "run"),
        "--data",
        str(adapter_files / "sums.jsonl"),
        str(adapter_files / "cities.jsonl"),
        "--part",
        "both",
        "--limit",
        "12",
        "--least-tokens",
        "50",
        "--draws",
        "39",
        "--token-draws",
        "0",
        "--routers",
        str(routers),
        "--effects",
        "0",
        "--out",
        str(run),
    ]


def test_nulls_that_are_left_out_are_not_told_of(
    adapter_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moelora(words_of(adapter_files, tmp_path / "run", routers=0), Console(width=200))
    said = capsys.readouterr().out
    assert "• Against " in said
    assert "• Against untrained routers" not in said


def test_command_line(
    adapter_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moelora(words_of(adapter_files, tmp_path / "run", routers=3), Console(width=200))
    out = capsys.readouterr().out
    assert "task information" in out
    assert "untrained routers" in out
    assert "nats about the task" in out
    assert "report: " in out
    again = parse("analyze", ["--config", str(tmp_path / "run" / "config.yaml")])
    assert (again.draws, again.routers, again.adapter) == (39, 3, adapter_files / "run")
    assert parse("analyze", []) == AnalyzeOptions()


@pytest.mark.bridge_only  # the effects of experts
def test_a_plan_counts_what_the_run_does(adapter_files: Path, tmp_path: Path) -> None:
    plan = plan_analyze(adapter_files / "run", quick_analysis(adapter_files), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with PassCounter() as counter:
        analyze_adapter(
            adapter_files / "run", quick_analysis(adapter_files), tmp_path / "run", progress=False
        )
    assert plan.passes.forward == pytest.approx(counter.passes.forward, rel=0.3)
    assert plan.passes.backward == pytest.approx(counter.passes.backward, rel=0.3)
    assert plan.disk == pytest.approx(folder_bytes(tmp_path / "run"), rel=0.1)
    names = [stage.name for stage in plan.stages]
    assert {"routing", "gradients of the experts' gates", "experts switched off"} < set(names)
