"""Plans: a rehearsal on few prompts says what the run then takes, and leaves nothing behind."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp.cli.commands
from interp.cli import main
from interp.cli.config import from_config, to_config
from interp.cli.options import LocateOptions, parse
from interp.cli.plan import duration
from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import LocateSettings, load_run, locate_run
from interp.commands.patch import PatchSettings, patch_run
from interp.commands.plan import plan_evaluate, plan_locate, plan_patch
from interp.errors import UserError
from interp.forward.batch import in_batches
from interp.jobs import OutputSpec, Shard
from interp.models import HookedModel
from interp.runs import rehearsal as rehearsal_module
from interp.runs.job_runner import StoredJobRunner
from interp.runs.plan import REST, Cost, Plan
from interp.runs.rehearsal import Ledger, PlanningEngine, Rehearsal, evenly, repeated
from interp.runs.shards import InProcess, ShardStore, finish_shards
from interp.runs.usage import (
    PassCounter,
    Passes,
    folder_bytes,
    measuring,
    peak_memory,
    sized,
)
from tests.runs.conftest import write_pairs
from tests.runs.killing import write_premises


@dataclass(frozen=True)
class Numbers:
    """A job whose prompts are numbers; ``asked`` notes how many ran together each time."""

    numbers: tuple[int, ...]
    asked: list[int]
    prompts_per_shard: int = 10

    def order(self) -> Sequence[int]:
        return range(len(self.numbers))

    def take(self, prompts: Sequence[int]) -> "Numbers":
        some = tuple(self.numbers[index] for index in prompts)
        return Numbers(some, self.asked, self.prompts_per_shard)

    def identity(self) -> dict[str, Any]:
        return {"numbers": self.numbers}


def squares(model: Any, job: Numbers, *, progress: bool = False) -> Shard:
    job.asked.append(len(job.numbers))
    values = torch.tensor(job.numbers, dtype=torch.float32) ** 2
    return Shard({"values": values}, texts=[str(number) for number in job.numbers])


def stage_of(plan: Plan, name: str) -> Any:
    return next(stage for stage in plan.stages if stage.name == name)


def test_the_line_through_two_measurements_by_hand() -> None:
    line = Cost.through((2, 5.0), (10, 9.0))
    assert (line.fixed, line.each) == (4.0, 0.5)
    assert line.of(16) == 12.0
    # More prompts took less: all of it is taken to be the call's.
    assert Cost.through((2, 5.0), (10, 4.0)) == Cost(4.0, 0.0)
    # A line that begins below zero: all of it is taken to be the prompts'.
    assert Cost.through((2, 1.0), (10, 20.0)) == Cost(0.0, 2.0)
    assert Cost.through((3, 6.0), (3, 6.0)) == Cost(0.0, 2.0)


@given(
    fixed=st.floats(0, 100),
    each=st.floats(0.01, 100),
    small=st.integers(1, 5),
    more=st.integers(1, 60),
    n=st.integers(1, 1000),
)
def test_what_is_linear_is_found(fixed: float, each: float, small: int, more: int, n: int) -> None:
    large = small + more
    points = [(m, fixed + each * m) for m in (small, large)]
    found = Cost.through(*points)
    assert found.of(n) == pytest.approx(fixed + each * n, rel=1e-6, abs=1e-6)


def test_samples_are_evenly_spaced() -> None:
    assert evenly(10, 2) == [2, 7]
    assert evenly(4, 4) == [0, 1, 2, 3]
    assert evenly(5, 1) == [2]


def test_results_are_repeated_for_every_prompt() -> None:
    kept = {"groups": ["a", "b"], "axes": ["x", "y"]}
    shard = Shard({"values": torch.tensor([[1.0], [2.0]])}, texts=["one", "two"], kept=kept)
    many = repeated(shard, 5, 2)
    assert many.tensors["values"][:, 0].tolist() == [1, 2, 1, 2, 1]
    assert many.texts == ["one", "two", "one", "two", "one"]
    assert many.kept == {"groups": ["a", "b", "a", "b", "a"], "axes": ["x", "y"]}
    assert repeated(shard, 1, 2).texts == ["one"]


def planned_numbers(job: Numbers, folder: Path) -> tuple[Ledger, Shard]:
    ledger = Ledger(folder)
    engine = PlanningEngine(ledger, InProcess(torch.nn.Identity()), str.upper)  # type: ignore[arg-type]
    runner = StoredJobRunner(folder, engine)
    options: Any = {"description": "", "output": OutputSpec({"values": 1}, texts=True)}
    return ledger, runner.run(squares, None, job, progress=False, **options)


def test_an_engine_runs_few_prompts_and_answers_for_all(tmp_path: Path) -> None:
    job = Numbers(tuple(range(100)), [])
    ledger, whole = planned_numbers(job, tmp_path)
    assert whole.tensors["values"].shape == (100,)
    assert len(whole.texts) == 100
    assert job.asked == [2, 2, 10]  # a warm-up, and two measurements: the larger one a whole shard
    stage = ledger.stages["SQUARES"]
    assert (stage.name, stage.prompts) == ("SQUARES", 100)
    assert stage.seconds > 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 10
    assert ledger.disk_while == folder_bytes(tmp_path)
    # What is there already is not planned again.
    again = Numbers(job.numbers, [])
    ledger, _ = planned_numbers(again, tmp_path)
    assert (again.asked, ledger.stages) == ([], {})


def test_few_prompts_are_all_run(tmp_path: Path) -> None:
    job = Numbers((3, 4, 5), [])
    ledger, whole = planned_numbers(job, tmp_path)
    assert whole.tensors["values"].tolist() == [9, 16, 25]
    assert job.asked == [3]
    assert ledger.stages["SQUARES"].prompts == 3


def test_shards_that_cannot_be_cut_are_all_run(tmp_path: Path) -> None:
    job = Numbers(tuple(range(4)), [], prompts_per_shard=1)
    ledger, whole = planned_numbers(job, tmp_path)
    assert job.asked == [1, 1, 1, 1]
    assert len(whole.tensors["values"]) == ledger.stages["SQUARES"].prompts == 4


def test_slow_prompts_are_measured_on_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal_module, "PROBE_SECONDS", 0.0)
    job = Numbers(tuple(range(100)), [])
    planned_numbers(job, tmp_path)
    assert job.asked == [2, 2, 3]


def test_what_decides_the_number_of_prompts_runs_as_far_as_a_few_seconds_go() -> None:
    ledger, asked = Ledger(Path()), []
    ledger.estimate("known", [185], lambda rows: asked.append(len(rows)), deciding=True)
    assert asked == [2, 2, 185]


def test_passes_are_counted_by_rows(tiny_llama: HookedModel) -> None:
    tokens = torch.randint(2, 300, (3, 7))
    model = tiny_llama.original_model
    with PassCounter() as counter:
        model(tokens)
        assert counter.passes == Passes(forward=3)
        model.model(tokens[:2])  # without its unembedding
        assert counter.passes == Passes(forward=5)
        with pytest.raises(IndexError):
            model(torch.full((1, 3), 10**6))
        embedded = model.get_input_embeddings()(tokens).requires_grad_()
        model(inputs_embeds=embedded).logits.sum().backward()
    assert counter.passes == Passes(forward=8, backward=3)
    model(tokens)
    assert counter.passes == Passes(forward=8, backward=3)
    assert Passes(6, 2).times(2.5) == Passes(15, 5)


def test_measuring_sees_memory_and_passes(tiny_llama: HookedModel) -> None:
    with PassCounter() as counter, measuring(counter) as found:
        tiny_llama(torch.randint(2, 300, (2, 5)))
        block = torch.ones(2**24)  # 64 MiB
        while found.memory < 2**26:
            pass
    assert found.passes.forward == 2
    assert found.seconds > 0
    assert found.memory >= 4 * block.numel()
    assert peak_memory()["cpu"] >= 0.9 * found.memory


def test_bytes_and_seconds_in_words(tmp_path: Path) -> None:
    assert [sized(n) for n in (0, 512, 2048, 7 * 2**19, 3 * 2**30)] == [
        *("0 bytes", "512 bytes", "2.0 KiB", "3.5 MiB", "3.00 GiB")
    ]
    words = [duration(seconds) for seconds in (0.4, 59.4, 61.0, 3725.0)]
    assert words == ["0 s", "59 s", "1 min 1 s", "1 h 2 min"]
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"12345")
    (tmp_path / "d").write_bytes(b"67")
    assert folder_bytes(tmp_path) == 7
    assert folder_bytes(tmp_path / "missing") == 0


@pytest.fixture
def settings(tmp_path: Path) -> LocateSettings:
    return LocateSettings(premises=str(write_premises(tmp_path)), method="activation", shard=5)


def test_a_plan_of_locate_is_what_the_run_does(
    planted: HookedModel, settings: LocateSettings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    files = sorted(tmp_path.rglob("*"))
    plan = plan_locate(planted, settings, run, before=3.0)
    assert sorted(tmp_path.rglob("*")) == files  # nothing was written here
    with PassCounter() as counter:
        effects = locate_run(planted, settings, run, progress=False)
    prompts = len(effects["output"].values)
    assert stage_of(plan, "known facts").prompts == 16
    assert stage_of(plan, "effects of heads").prompts == 2 * prompts
    assert plan.passes.forward == pytest.approx(counter.passes.forward, rel=0.3)
    assert plan.disk == pytest.approx(folder_bytes(run), rel=0.1)
    assert plan.disk_while >= plan.disk
    assert plan.seconds > 3.0
    assert plan.to_dict()["seconds"] == plan.seconds
    # The finished run: nothing but reading it is left.
    again = plan_locate(planted, settings, run)
    assert [stage.name for stage in again.stages[1:]] == [REST]
    assert again.disk == folder_bytes(run)


def test_what_remains_of_a_run_is_planned(
    planted: HookedModel, settings: LocateSettings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    whole = stage_of(plan_locate(planted, settings, run), "effects of heads").prompts

    class Stops(InProcess):
        def run(self, work: Any, jobs: Any) -> Any:
            yield next(iter(super().run(work, jobs)))
            raise UserError("stopped")

    with pytest.raises(UserError, match="stopped"):
        locate_run(planted, settings, run, engine=Stops(planted), progress=False)
    before = sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    plan = plan_locate(planted, settings, run)
    assert stage_of(plan, "effects of heads").prompts == whole - settings.shard
    assert not any(stage.name == "known facts" for stage in plan.stages)
    assert before == sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())


def test_a_plan_fails_as_the_run_does(
    planted: HookedModel, settings: LocateSettings, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    level = logging.getLogger("interp").level
    with pytest.raises(UserError) as run:
        locate_run(planted, settings, other, progress=False)
    with pytest.raises(UserError) as plan:
        plan_locate(planted, settings, other)
    assert str(plan.value) == str(run.value)
    assert logging.getLogger("interp").level == level
    with pytest.raises(UserError, match="too few facts"):
        plan_locate(planted, LocateSettings(settings.premises, minimum=99), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_rehearsal_leaves_nothing(tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path / "run", names=str)

    def fail() -> None:
        with rehearsal:
            rehearsal.folder.mkdir()
            raise UserError(f"{rehearsal.folder} is wrong")

    with pytest.raises(UserError) as error:
        fail()
    assert str(error.value) == f"{tmp_path / 'run'} is wrong"
    assert not rehearsal.folder.parent.exists()
    assert not list(tmp_path.iterdir())


def test_a_plan_of_evaluate_counts_what_the_run_does(
    planted: HookedModel, planted_run: Path
) -> None:
    _, split, effects = load_run(planted_run)
    settings = EvaluateSettings(heads=1.0, counts=(1,), site="output", mode="zero")
    where: Any = {"settings": settings, "run": planted_run}
    plan = plan_evaluate(planted, split, effects, **where)
    with Rehearsal(planted_run, names=str) as copy, PassCounter() as counter:
        evaluate_run(planted, split, effects, settings=settings, run=copy.folder, progress=False)
        size = folder_bytes(copy.folder)
    assert plan.passes.forward == pytest.approx(counter.passes.forward, rel=0.3)
    assert plan.disk == pytest.approx(size, rel=0.1)
    assert not (planted_run / "evaluation.json").exists()
    held_out = len(split.held_out.questions())
    # Of both kinds, without and with the constraint.
    assert stage_of(plan, "greedy answers").prompts == 4 * held_out


@pytest.mark.parametrize(
    "changed",
    [{}, {"method": "screen", "top_k": 3}, {"source": "resample"}, {"positions": "spans"}],
    ids=str,
)
def test_a_plan_of_patch_counts_what_the_run_does(
    planted: HookedModel, tmp_path: Path, changed: dict[str, Any]
) -> None:
    settings = PatchSettings(pairs=str(write_pairs(tmp_path / "pairs.jsonl")), shard=3, **changed)
    plan = plan_patch(planted, settings, tmp_path / "run")
    with PassCounter() as counter:
        patch_run(planted, settings, tmp_path / "run", progress=False)
    assert stage_of(plan, "effects of units").prompts == 12
    assert plan.passes.forward == pytest.approx(counter.passes.forward, rel=0.35)
    assert plan.passes.backward == pytest.approx(counter.passes.backward, rel=0.35)
    assert plan.disk == pytest.approx(folder_bytes(tmp_path / "run"), rel=0.1)


def test_the_command_line_prints_a_plan_and_writes_nothing(
    planted: HookedModel,
    settings: LocateSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interp.cli.commands, "load_model", lambda *args, **kwargs: planted)
    out = tmp_path / "run"
    words = ["locate", "--premises", settings.premises, "--out", str(out), "--plan"]
    main(words)
    captured = capsys.readouterr()
    for shown in ("effects of heads", "backward", "peak memory: cpu", "planning took"):
        assert shown in captured.out
    assert captured.err == ""
    assert not out.exists()
    with pytest.raises(SystemExit) as stop:
        main([*words, "--premises", str(tmp_path / "missing.csv")])
    assert stop.value.code == 2
    assert "no such file" in capsys.readouterr().err


def test_a_plan_is_no_setting_of_the_run(tmp_path: Path) -> None:
    options = parse("locate", ["--plan"])
    assert options.plan
    assert "plan" not in to_config(options)
    (tmp_path / "config.yaml").write_text("plan: true\n")
    with pytest.raises(UserError, match="unknown option 'plan'"):
        from_config(LocateOptions, tmp_path / "config.yaml")


def test_a_run_shows_memory_and_disk_beside_its_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Numbers(tuple(range(6)), [])
    parts = in_batches(job.order(), 3)
    store = ShardStore(tmp_path, {}, len(parts))
    finish_shards(store, InProcess(None), squares, job=lambda n: job.take(parts[n]))  # type: ignore[arg-type]
    shown = capsys.readouterr().err
    assert "cpu " in shown
    assert f"disk {sized(folder_bytes(tmp_path))}" in shown
