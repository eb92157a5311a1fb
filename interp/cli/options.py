"""Options of the commands: frozen dataclasses that tyro turns into a command line.

A command's options inherit its settings (`interp.commands`), and add the model and where to run it.
The same dataclass gives the command's help, the keys of its config file, and the ``config.yaml`` in
the run directory, from which the run can be repeated.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from interp.cli import summaries
from interp.cli.config import from_config, take_config
from interp.commands.ask import AskSettings
from interp.commands.card import CardSettings
from interp.commands.circuit import CircuitSettings
from interp.commands.demo import DemoSettings
from interp.commands.detect import DetectSettings
from interp.commands.evaluate import EvaluateSettings
from interp.commands.evaluate_questions import QuestionSettings
from interp.commands.export import ExportSettings
from interp.commands.harness import HarnessSettings
from interp.commands.locate import LocateSettings
from interp.commands.patch import PatchSettings
from interp.commands.probe import ProbeSettings
from interp.errors import UserError
from interp.premises.knowledge import KnowledgeCheck
from interp.premises.questions import FalseObjectDistance
from interp.runs.engines import EngineName

Options = TypeVar("Options")


@dataclass(frozen=True)
class WeightsOptions:
    """How weights are read."""

    allow_pickle: bool = False
    """Read a model whose weights are pickle files only, which can run code: if you trust it."""


@dataclass(frozen=True)
class PlacementOptions:
    """Where the parts of a model go that is larger than one device."""

    device_map: str | None = None
    """auto, balanced or sequential divide the layers over all devices; or the device of each part,
    such as model.embed_tokens=cuda:0,model.layers.0=cuda:0,model.layers.1=disk,..."""
    max_memory: str | None = None
    """How much of the model each device may hold, such as cuda:0=20GiB,cpu=60GiB,disk=200GiB."""


@dataclass(frozen=True)
class ModelOptions(PlacementOptions, WeightsOptions):
    """Which model, and how it runs."""

    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a hub id, a directory, or a .gguf file."""
    device: str | None = None
    """A torch device such as cpu or cuda:0; by default a GPU if there is one."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    quantization: str | None = None
    """bnb-4bit or bnb-8bit: weights are quantized while they are read (package bitsandbytes)."""


@dataclass(frozen=True)
class EngineOptions:
    """Where the shards of a run are computed."""

    engine: EngineName = "local"
    """local: in this process; ray: by workers that each hold the model (pip install
    'faithlens[ray]'); the results are the same bytes."""
    address: str | None = None
    """ray: the cluster's address; by default one is started on this machine, and ended."""
    workers: int | None = None
    """ray: how many workers; by default as many as the cluster has room for."""
    gpus_per_worker: int | None = None
    """ray: GPUs of a worker, all of one machine; by default those that the model is on."""


@dataclass(frozen=True)
class DtypeCheckOptions:
    """The check of a run's dtype."""

    dtype_check: bool = True
    """In less than float32: compare a few prompts with float32 at the end, by a second model."""


@dataclass(frozen=True)
class PlanOptions:
    """A plan in place of the run; no part of the run's config."""

    plan: bool = False
    """Only print what the run will take: passes, memory, disk and time, from a few prompts."""


@dataclass(frozen=True)
class DemoOptions(ModelOptions, DemoSettings):
    """Options of ``interp demo``."""

    out: Path = Path("runs/demo")
    """The run directory; the same command again takes up what is there."""


@dataclass(frozen=True)
class LocateOptions(PlanOptions, DtypeCheckOptions, EngineOptions, ModelOptions, LocateSettings):
    """Options of ``interp locate``."""

    premises: Annotated[str | tuple[str, ...], tyro.conf.arg(metavar="STR [STR ...]")] = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file. Several are searched
    one by one, and their effects pooled with equal weight."""
    out: Path = Path("runs/locate")
    """The run directory; the same command again takes up what is there."""


@dataclass(frozen=True)
class EvaluateOptions(PlanOptions, EngineOptions, ModelOptions, QuestionSettings, EvaluateSettings):
    """Options of ``interp evaluate``."""

    run: tyro.conf.Positional[Path] = Path("runs/locate")
    """The run directory of `interp locate`."""
    model: str | None = None  # type: ignore[assignment]
    """By default the run's model; it must be the same, wherever it is read from."""

    def __post_init__(self) -> None:
        QuestionSettings.__post_init__(self)
        EvaluateSettings.__post_init__(self)
        if self.questions is not None and (self.leave_one_out or self.premises is not None):
            raise UserError("--questions are asked of the run: no --premises, no --leave-one-out")
        if self.plan and (self.leave_one_out or self.premises is not None):
            raise UserError("a plan is of the run's own evaluation: leave the other options out")


@dataclass(frozen=True)
class ProbeOptions(ModelOptions, ProbeSettings):
    """Options of ``interp probe``."""

    out: Path = Path("runs/probe")
    """The run directory; the same command again takes up what is there."""


@dataclass(frozen=True)
class DetectOptions(ModelOptions, DetectSettings):
    """Options of ``interp detect``."""

    file: tyro.conf.Positional[Path | None] = None
    """A file of questions: .csv, .json, .jsonl, or .txt with a question a line."""
    run: Path | None = None
    """Use this run's detector, which is trained the first time, and its model; by default the
    model's own detector."""
    model: str | None = None  # type: ignore[assignment]
    """By default the run's model, or smollm2-135m (embedded)."""
    out: Path | None = None
    """A CSV file to write, besides the table."""
    json: bool = False
    """Print a JSON object a question, in place of the table."""
    seed: int = 0
    """Draws nothing; every command takes it."""

    def __post_init__(self) -> None:
        DetectSettings.__post_init__(self)
        if self.run is not None and self.detector is not None:
            raise UserError("a run has a detector of its own: leave --run or --detector out")


@dataclass(frozen=True)
class AskOptions(ModelOptions, AskSettings):
    """Options of ``interp ask``."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")] = "smollm2-135m"
    """The directory of a run that was evaluated, a saved intervention, or smollm2-135m: the heads
    and the detector that ship for it."""
    question: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="QUESTION ...")
    ] = ()
    """Questions; - asks those of standard input, a line each, as they come."""
    model: str | None = None  # type: ignore[assignment]
    """By default the run's model; it must be the same, wherever it is read from."""
    json: bool = False
    """Print a JSON object a question, in place of text."""
    seed: int = 0
    """Draws nothing; every command takes it."""


@dataclass(frozen=True)
class PatchOptions(PlanOptions, DtypeCheckOptions, EngineOptions, ModelOptions, PatchSettings):
    """Options of ``interp patch``."""

    out: Path = Path("runs/patch")
    """The run directory; the same command again takes up what is there."""


@dataclass(frozen=True)
class CircuitOptions(PlanOptions, DtypeCheckOptions, EngineOptions, ModelOptions, CircuitSettings):
    """Options of ``interp circuit``."""

    out: Path = Path("runs/circuit")
    """The run directory; the same command again takes up what is there."""


@dataclass(frozen=True)
class CardOptions(ModelOptions, CardSettings):
    """Options of ``interp card``."""

    run: tyro.conf.Positional[Path] = Path("runs/locate")
    """The run directory of `interp locate`, `interp patch` or `interp circuit`."""
    head: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[LAYER.HEAD ...]")] = ()
    """Heads as layer.head, such as 23.3; by default the first of the run."""
    model: str | None = None  # type: ignore[assignment]
    """By default the run's model; it must be the same, wherever it is read from."""
    seed: int = 0
    """Draws nothing; every command takes it."""


@dataclass(frozen=True)
class ReportOptions:
    """Options of ``interp report``."""

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """The run directory."""


@dataclass(frozen=True)
class ExportOptions(WeightsOptions, ExportSettings):
    """Options of ``interp export``."""

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """The run directory, after `interp evaluate` or `interp demo`."""
    to: Path | None = None
    """The directory to write; it must not hold anything yet."""
    model: str | None = None
    """The base model, by default the run's; it must be the same, wherever it is read from, or a
    relative of it (--transfer)."""
    device: str | None = None
    """Where the cost of baked weights is measured; by default a GPU if there is one."""
    seed: int = 0
    """Draws nothing; every command takes it."""


@dataclass(frozen=True)
class AtlasOptions:
    """Options of ``interp atlas``."""

    runs: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")
    ] = ()
    """Run directories of locate, evaluate, demo, moelora train and moelora analyze."""
    out: Path = Path("runs/atlas")
    """A directory for atlas.md, its tables and its figure, or the name of the page (.md)."""


@dataclass(frozen=True)
class ExploreOptions(ModelOptions):
    """Options of ``interp explore``."""

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """The run directory of `interp locate` or `interp demo`."""
    model: str | None = None  # type: ignore[assignment]
    """By default the run's model; it must be the same, wherever it is read from."""
    seed: int = 0
    """Draws nothing; every command takes it."""
    port: int = 0
    """The port on this machine; 0 takes a free one."""
    open: bool = True
    """Open the page in a browser."""


@dataclass(frozen=True)
class HarnessOptions(HarnessSettings):
    """Options of ``interp harness``."""

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """The run directory; it must have been evaluated."""
    output: Path | None = None
    """The directory to write; by default harness in the run. A task that is there is not run again
    with the same options."""
    model: str | None = None
    """By default the run's model; it must be the same, wherever it is read from."""
    device: str | None = None
    """A torch device such as cpu or cuda:0; by default a GPU if there is one."""
    dtype: str | None = None
    """float32, bfloat16 or float16; by default the run's."""


@dataclass(frozen=True)
class PremisesOptions(ModelOptions):
    """Options of ``interp premises``; only ``check`` reads a model."""

    action: tyro.conf.Positional[Literal["ls", "show", "build", "check"]] = "ls"
    """ls: the relations that ship; show: example questions; build: all questions as JSONL;
    check: which facts the model knows, the only one that reads a model."""
    premises: tyro.conf.Positional[str] = "capitals"
    """A relation, or a CSV or YAML file."""
    out: Path | None = None
    """build: the file to write; by default the terminal."""
    limit: int | None = None
    """Only the first so many facts."""
    check: KnowledgeCheck = "strict"
    """check: the cloze's top tokens, or a greedy answer that names the object."""
    distance: FalseObjectDistance = "any"
    """Draws false objects of the true one's group (near) or of another (far)."""
    seed: int = 0
    """Draws the false objects."""


COMMANDS: dict[str, type] = {
    "demo": DemoOptions,
    "locate": LocateOptions,
    "evaluate": EvaluateOptions,
    "report": ReportOptions,
    "explore": ExploreOptions,
    "premises": PremisesOptions,
    "probe": ProbeOptions,
    "detect": DetectOptions,
    "ask": AskOptions,
    "patch": PatchOptions,
    "circuit": CircuitOptions,
    "card": CardOptions,
    "atlas": AtlasOptions,
    "export": ExportOptions,
    "harness": HarnessOptions,
}


def parse(command: str, arguments: list[str]) -> Any:
    """Options of one command: defaults, then ``--config FILE.yaml``, then the command line."""
    summary = summaries.COMMANDS[command]
    return parse_as(COMMANDS[command], command, arguments, summary=summary)


def parse_as(
    kind: type[Options], command: str, arguments: list[str], *, summary: str | None
) -> Options:
    """Options of the type ``kind``, which ``interp COMMAND --help`` explains after ``summary``."""
    words, config = take_config(arguments)
    return tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(kind),
        args=words,
        default=kind() if config is None else from_config(kind, config),
        prog=f"interp {command}",
        description=(f"{summary}\n\nEvery option can also be a key of a YAML file: --config FILE."),
    )
