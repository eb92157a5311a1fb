"""``interp moelora train|compare``: train an adapter, or compare three of equal size."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml
from rich.console import Console

from interp.errors import UserError
from interp.moelora.adapters import METHOD_NAMES, Method
from interp.moelora.compare import CompareSettings, compare_moelora
from interp.moelora.comparison_page import accuracy_table, cost_table, summary
from interp.moelora.training import TrainingSettings
from interp.report.tables import rich_table
from interp.runs.moelora import train_moelora
from interp.runs.store import read_json


@dataclass(frozen=True)
class TrainOptions(TrainingSettings):
    """Train a MoELoRA or LoRA adapter on questions and score it on held-out ones."""

    out: Path = Path("runs/moelora")
    """The run directory; the same command again takes up what is there."""
    device: str | None = None
    """cpu, or by default a GPU if there is one."""


@dataclass(frozen=True)
class CompareOptions(TrainingSettings):
    """LoRA, experts, and experts with the contrastive loss, at equal trainable parameters."""

    out: Path = Path("runs/moelora-compare")
    """The directory; the same command again takes up what is there."""
    device: str | None = None
    """cpu, or by default a GPU if there is one."""
    methods: tuple[Method, ...] = ("lora", "moe", "moelora")
    """What is compared."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each method is trained once with each."""
    method: tyro.conf.Suppress[Method] = "moelora"
    seed: tyro.conf.Suppress[int] = 0


OPTIONS: dict[Literal["train", "compare"], type] = {
    "train": TrainOptions,
    "compare": CompareOptions,
}


def moelora(words: list[str], console: Console) -> None:
    """Run ``interp moelora`` with the words behind it. Raises `UserError` for a user's mistake."""
    actions: dict[str, Callable[[Any, Console], None]] = {"train": train, "compare": compare}
    if not words or words[0] in ("-h", "--help"):
        console.print("interp moelora: train adapters and compare them\n")
        for name, options in OPTIONS.items():
            console.print(f"  interp moelora {name:8}  {options.__doc__}", highlight=False)
        console.print("\ninterp moelora COMMAND --help shows a command's options.")
        return
    if words[0] not in actions:
        raise UserError(f"unknown command 'moelora {words[0]}'; known: {', '.join(actions)}")
    actions[words[0]](parse(words[0], words[1:]), console)


def parse(command: str, arguments: list[str]) -> Any:
    """Options of one command: defaults, then ``--config FILE.yaml``, then the command line."""
    kind = OPTIONS[command]  # type: ignore[index]
    words: list[str] = []
    rest = iter(arguments)
    configured: list[str] = []
    for word in rest:
        if word.partition("=")[0] != "--config":
            words.append(word)
            continue
        value = word.partition("=")[2] or next(rest, None)
        if value is None:
            raise UserError("--config needs a YAML file")
        configured = config_words(kind, Path(value))
    summary = f"{kind.__doc__}\n\nEvery option can also be a key of a YAML file: --config FILE."
    return tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(kind),
        args=[*configured, *words],
        prog=f"interp moelora {command}",
        description=summary,
    )


def config_words(kind: type, path: Path) -> list[str]:
    """A YAML file's options as words of the command line, where later ones win."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--config {path}: cannot be read as YAML ({first})") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must hold options as keys, such as `seed: 1`")
    known = [one.name for one in fields(kind)]
    words: list[str] = []
    for key, value in content.items():
        if key not in known:
            raise UserError(f"--config {path}: unknown option {key!r}; known: {', '.join(known)}")
        name = str(key).replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            raise UserError(f"--config {path}: {key} must be a value or a list, not keys")
        else:
            words.append(f"--{name}={value}")
    return words


def train(options: TrainOptions, console: Console) -> None:
    """One adapter; see ``interp.runs.moelora``."""
    run = train_moelora(_settings(options), options.out, device=options.device)
    metrics = read_json(run / "metrics.json")
    name = METHOD_NAMES[metrics["method"]]
    console.print(
        f"{name}: {metrics['trainable_parameters']:,} trainable parameters, "
        f"{metrics['steps']} steps of {metrics['seconds_per_step']:.2f} s",
        highlight=False,
    )
    for task, one in metrics["accuracy"].items():
        low, high = one["ci_low"], one["ci_high"]
        console.print(
            f"• {task}: {one['value']:.3f} [{low:.3f}, {high:.3f}], {one['n']} held-out questions",
            highlight=False,
            markup=False,
        )
    dead = metrics["last_step"].get("dead_experts")
    if dead is not None:
        console.print(f"• dead experts in the last steps: {dead:.0f}", highlight=False)
    console.print(f"\nadapter: {run / 'adapter'}", highlight=False, soft_wrap=True)


def compare(options: CompareOptions, console: Console) -> None:
    """Three adapters of equal size; see ``interp.moelora.compare``."""
    settings = CompareSettings(
        training=_settings(options), methods=options.methods, seeds=options.seeds
    )
    content = compare_moelora(settings, options.out, device=options.device)
    console.print(rich_table(accuracy_table(content), title="accuracy on held-out questions"))
    console.print(rich_table(cost_table(content), title="size and experts"))
    for sentence in summary(content):
        console.print(f"• {sentence}", markup=False, highlight=False)
    console.print(f"\nreport: {options.out / 'report.html'}", highlight=False, soft_wrap=True)


def _settings(options: TrainingSettings) -> TrainingSettings:
    return TrainingSettings(
        **{one.name: getattr(options, one.name) for one in fields(TrainingSettings)}
    )
