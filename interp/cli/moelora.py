"""``interp moelora train|compare|analyze``: train adapters, compare them, analyze their experts."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from interp.cli.commands import print_next, print_sentences
from interp.cli.config import settings_of, to_config
from interp.cli.options import (
    EngineOptions,
    PlacementOptions,
    PlanOptions,
    WeightsOptions,
    parse_as,
)
from interp.cli.plan import print_plan
from interp.commands.analyze import AnalyzeSettings, analyze_adapter
from interp.commands.compare import ComparedMethods, CompareSettings, compare_moelora
from interp.commands.plan_adapter import plan_analyze, plan_training
from interp.commands.train import train_moelora
from interp.errors import UserError
from interp.figures.tables import rich_table
from interp.files.documents import read_json, write_yaml
from interp.moelora.training.adapters import METHOD_NAMES, Method
from interp.moelora.training.training import TrainingSettings
from interp.report.comparison_page import accuracy_table, cost_table, summary
from interp.report.experts_page import sentences, summary_table
from interp.runs.engines import check_engine
from interp.runs.lock import check_free
from interp.runs.usage import process_seconds


@dataclass(frozen=True)
class TrainOptions(PlanOptions, PlacementOptions, WeightsOptions, TrainingSettings):
    """Train a MoELoRA or LoRA adapter on questions and score it on held-out ones."""

    out: Path = Path("runs/moelora")
    """The run directory; the same command again takes up what is there."""
    device: str | None = None
    """cpu, or by default a GPU if there is one."""


@dataclass(frozen=True)
class CompareOptions(PlacementOptions, WeightsOptions, ComparedMethods, TrainingSettings):
    """LoRA, experts, and experts with the contrastive loss, at equal trainable parameters."""

    out: Path = Path("runs/moelora-compare")
    """The directory; the same command again takes up what is there."""
    device: str | None = None
    """cpu, or by default a GPU if there is one."""
    method: tyro.conf.Suppress[Method] = "moelora"
    seed: tyro.conf.Suppress[int] = 0

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        ComparedMethods.__post_init__(self)


@dataclass(frozen=True)
class AnalyzeOptions(PlanOptions, EngineOptions, PlacementOptions, WeightsOptions, AnalyzeSettings):
    """What the experts of an adapter are used for and what they do, against chance."""

    adapter: tyro.conf.Positional[Path] = Path("runs/moelora")
    """The directory of an adapter, or of the run of `interp moelora train` that made it."""
    out: Path = Path("runs/analyze")
    """The run directory; the same command again takes up what is there."""
    device: str | None = None
    """cpu, or another torch device; by default cpu."""


OPTIONS: dict[str, type] = {
    "train": TrainOptions,
    "compare": CompareOptions,
    "analyze": AnalyzeOptions,
}


def moelora(words: list[str], console: Console) -> None:
    """Run ``interp moelora`` with the given words. Raises `UserError` for a user's mistake."""
    actions: dict[str, Callable[[Any, Console], None]]
    actions = {"train": train, "compare": compare, "analyze": analyze}
    if not words or words[0] in ("-h", "--help"):
        console.print("interp moelora: train adapters, compare them, see what experts do\n")
        for name, options in OPTIONS.items():
            console.print(f"  interp moelora {name:8}  {options.__doc__}", highlight=False)
        console.print("\ninterp moelora COMMAND --help shows a command's options.")
        return
    if words[0] not in actions:
        raise UserError(f"unknown command 'moelora {words[0]}'; known: {', '.join(actions)}")
    actions[words[0]](parse(words[0], words[1:]), console)


def parse(command: str, arguments: list[str]) -> Any:
    """Options of one command: defaults, then ``--config FILE.yaml``, then the command line."""
    kind = OPTIONS[command]
    return parse_as(kind, f"moelora {command}", arguments, summary=kind.__doc__)


def _reading(options: Any) -> dict[str, Any]:
    """How the base model is read, and where its parts go."""
    return {
        "device": options.device,
        "allow_pickle": options.allow_pickle,
        "device_map": options.device_map,
        "max_memory": options.max_memory,
    }


def train(options: TrainOptions, console: Console) -> None:
    """Train an adapter; see ``interp.commands.train``."""
    settings = settings_of(TrainingSettings, options)
    check_free(options.out)
    reading = _reading(options)
    if options.plan:
        before = process_seconds()
        print_plan(plan_training(settings, options.out, before=before, **reading), console)
        return
    run = train_moelora(settings, options.out, **reading)
    metrics = read_json(run / "metrics.json")
    name = METHOD_NAMES[metrics["method"]]
    console.print(
        f"{name}: {metrics['trainable_parameters']:,} trainable parameters, "
        f"{metrics['steps']} steps of {metrics['seconds_per_step']:.2f} s",
        highlight=False,
    )
    sentences = [
        f"{task}: {score['value']:.3f} [{score['ci_low']:.3f}, {score['ci_high']:.3f}], "
        f"{score['n']} held-out questions"
        for task, score in metrics["accuracy"].items()
    ]
    if (dead := metrics["last_step"].get("dead_experts")) is not None:
        sentences.append(f"dead experts in the last steps: {dead:.0f}")
    print_sentences(sentences, console)
    print_next(f"adapter: {run / 'adapter'}", console)


def compare(options: CompareOptions, console: Console) -> None:
    """Compare adapters of equal size; see ``interp.commands.compare``."""
    settings = CompareSettings(
        settings_of(TrainingSettings, options), **asdict(settings_of(ComparedMethods, options))
    )
    check_free(options.out)
    content = compare_moelora(settings, options.out, **_reading(options))
    console.print(rich_table(accuracy_table(content), title="accuracy on held-out questions"))
    console.print(rich_table(cost_table(content), title="size and experts"))
    print_sentences(summary(content), console)
    print_next(f"report: {options.out / 'report.html'}", console)


def analyze(options: AnalyzeOptions, console: Console) -> None:
    """Analyze the experts of an adapter; see ``interp.commands.analyze``."""
    check_engine(options.engine, options.gpus_per_worker)
    check_free(options.out)
    settings = settings_of(AnalyzeSettings, options)
    reading = _reading(options)
    if options.plan:
        where: Any = {"before": process_seconds(), **reading}
        print_plan(plan_analyze(options.adapter, settings, options.out, **where), console)
        return
    content = analyze_adapter(
        options.adapter,
        settings,
        options.out,
        engine=options.engine,
        address=options.address,
        workers=options.workers,
        gpus_per_worker=options.gpus_per_worker,
        **reading,
    )
    write_yaml(options.out / "config.yaml", to_config(options))
    title = "means over projections; of a null: its mean, and how many projections are significant"
    console.print(rich_table(summary_table(content), title=title))
    print_sentences(sentences(content), console)
    print_next(f"report: {options.out / 'report.html'}", console)
