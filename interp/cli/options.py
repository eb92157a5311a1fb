"""Options of the commands: frozen dataclasses that tyro reads, and YAML files fill in.

One dataclass is the command's help text, its config file's keys, and what is written as
``config.yaml`` into the run, from which the run can be repeated.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from interp.cli.config import from_config, take_config

Options = TypeVar("Options")


@dataclass(frozen=True)
class WeightsOptions:
    """How weights are read."""

    allow_pickle: bool = False
    """Read a model whose weights are pickle files only, which can run code: if you trust it."""


@dataclass(frozen=True)
class ModelOptions(WeightsOptions):
    """Which model, and how it runs."""

    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a hub id, a directory, or a .gguf file."""
    device: str | None = None
    """A torch device such as cpu or cuda:0; by default a GPU if there is one."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    seed: int = 0
    """Draws false objects, splits, random head sets and resamples."""


@dataclass(frozen=True)
class EngineOptions:
    """Where the work is done."""

    engine: Literal["local", "ray"] = "local"
    """local: in this process; ray: by workers that each hold the model (pip install
    'faithlens[ray]'); the results are the same bytes."""
    address: str | None = None
    """ray: the cluster's address; by default one is started on this machine, and ended."""
    workers: int | None = None
    """ray: how many workers; by default as many as the cluster has room for."""


@dataclass(frozen=True)
class DemoOptions(ModelOptions):
    """The whole way on the embedded model: prompts, heads, constraint, held-out scores, report."""

    out: Path = Path("runs/demo")
    """The run directory; the same command again takes up what is there."""
    premises: str = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file."""
    limit: int = 90
    """How many facts are tried, best known first."""
    path_prompts: int = 4
    """On how many search prompts exact path patching checks the ranking; 0 for none."""


@dataclass(frozen=True)
class LocateOptions(EngineOptions, ModelOptions):
    """Find what every head does to the answers of false-premise questions."""

    out: Path = Path("runs/locate")
    """The run directory; the same command again takes up what is there."""
    premises: str = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file."""
    method: Literal["path", "activation", "attribution"] = "attribution"
    """path: the paper's, exact; activation: exact, nothing frozen; attribution: by gradient."""
    site: Literal["output", "attention", "both"] = "both"
    """What a head writes at the false object, what it reads from there, or both."""
    check: Literal["strict", "answer"] = "strict"
    """The knowledge check: the cloze's top tokens, or a greedy answer that names the object."""
    limit: int | None = None
    """Only the first so many facts."""
    shard: int = 16
    """Prompts that are worked on, and kept, together; part of what the run is."""
    dtype_check: bool = True
    """In less than float32: compare a few prompts with float32 at the end, by a second model."""


@dataclass(frozen=True)
class EvaluateOptions(EngineOptions, ModelOptions):
    """Constrain the heads of a run and score that on its held-out subjects and templates."""

    run: tyro.conf.Positional[Path] = Path("runs/locate")
    """The run directory of `interp locate`."""
    model: str | None = None  # type: ignore[assignment]
    """By default the run's model; it must be the same, wherever it is read from."""
    heads: float = 0.01
    """A fraction of all heads (below 1), or a count."""
    site: Literal["output", "attention", "best"] = "best"
    """best: score each site of the run; the one that did best on the search part comes first."""
    mode: Literal["best", "zero", "mean", "resample", "scale"] = "best"
    """What a constrained head does; the attention site knows zero and scale. best: as the search
    part says, of zero and, at the output site, scale -1."""
    factor: float = 0.0
    """The factor of mode scale."""
    gate: Literal["oracle", "probe"] = "oracle"
    """Where the constraint acts: oracle is told which words are false; probe finds them, with a
    detector trained on the search part."""
    random_sets: int = 20
    """Random head sets in the null, at least 20, matched per layer."""
    every_mode: bool = False
    """Also draw the gain-against-cost curve of the other modes, on the search part."""
    answers: Literal["best", "all", "none"] = "best"
    """For which settings greedy answers are asked: the slow part."""


@dataclass(frozen=True)
class ProbeOptions(ModelOptions):
    """Find where a model reads a false premise, beside controls, and train a detector of it."""

    out: Path = Path("runs/probe")
    """The run directory; the same command again takes up what is there."""
    premises: str = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file."""
    hook: Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"] = "resid_post"
    """Where in a block probes read."""
    method: Literal["logistic", "mean_difference"] = "logistic"
    """How a probe is fitted."""
    heads: bool = False
    """Probe every head's output too."""
    detector: bool = True
    """Train a detector on the search part and score it on the held-out part."""
    check: Literal["strict", "answer"] = "strict"
    """The knowledge check: the cloze's top tokens, or a greedy answer that names the object."""
    limit: int | None = None
    """Only the first so many facts."""


@dataclass(frozen=True)
class PatchOptions(EngineOptions, ModelOptions):
    """Patch every unit of a component on pairs of clean and corrupted texts."""

    out: Path = Path("runs/patch")
    """The run directory; the same command again takes up what is there."""
    pairs: str = "ioi"
    """ioi (indirect-object identification, made here), or a JSONL file: clean, corrupted, answer,
    wrong_answer, perhaps spans, group and template."""
    component: Literal[
        "z", "q", "k", "v", "pattern", "attn_out", "mlp_out", "resid_pre", "resid_mid", "resid_post"
    ] = "z"
    """What is patched; z is a head's output, k and v are patched by key/value group."""
    method: Literal["exact", "attribution", "ig", "atp*", "screen"] = "exact"
    """exact: one run a unit; attribution, ig, atp*: by gradient; screen: the gradient ranks all
    units, exact patching verifies the first."""
    positions: Literal["all", "each", "spans"] = "all"
    """All positions at once, each alone, or each of the pairs' named spans."""
    metric: Literal["logit_difference", "probability", "log_probability", "kl"] = "logit_difference"
    """Of the answer against the wrong one, of the answer, or from the clean run's distribution."""
    source: Literal["run", "zero", "mean", "resample"] = "run"
    """Where patched values come from: the clean run, nothing, a mean, another prompt's run."""
    keep: Literal["all", "right"] = "all"
    """right: only the pairs whose clean text the model answers rightly."""
    chat: bool = False
    """Put each text into the model's chat template, as the user's words."""
    corruption: Literal["swap", "random"] = "swap"
    """ioi: the second mention of the subject becomes the other name, or all names become others."""
    limit: int | None = None
    """How many pairs; by default all of a file, and 32 of ioi."""
    steps: int = 8
    """Steps of ig."""
    top_k: int = 20
    """How many units screen verifies."""
    memory: float | None = None
    """MiB that one forward pass may take; by default what suits the machine."""
    dtype_check: bool = True
    """In less than float32: compare a few prompts with float32 at the end, by a second model."""


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html from what is in a run directory."""

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """The run directory."""


@dataclass(frozen=True)
class ExploreOptions(ModelOptions):
    """Open a local page to ask a run's model questions with and without its heads."""

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """The run directory of `interp locate` or `interp demo`."""
    model: str | None = None  # type: ignore[assignment]
    """By default the run's model; it must be the same, wherever it is read from."""
    port: int = 0
    """The port on this machine; 0 takes a free one."""
    open: bool = True
    """Open the page in a browser."""


@dataclass(frozen=True)
class PremisesOptions:
    """List, show, build or check premises."""

    action: tyro.conf.Positional[Literal["ls", "show", "build", "check"]] = "ls"
    """ls: the relations that ship; show: example questions; build: all questions as JSONL;
    check: which facts the model knows."""
    premises: tyro.conf.Positional[str] = "capitals"
    """A relation, or a CSV or YAML file."""
    out: Path | None = None
    """build: the file to write; by default the terminal."""
    limit: int | None = None
    """Only the first so many facts."""
    model: str = "smollm2-135m"
    """check: the model that is asked."""
    device: str | None = None
    """check: a torch device."""
    dtype: str = "float32"
    """check: float32, bfloat16 or float16."""
    allow_pickle: bool = False
    """check: read a model whose weights are pickle files only, if you trust it."""
    check: Literal["strict", "answer"] = "strict"
    """check: which check."""
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
    "patch": PatchOptions,
}


def parse(command: str, arguments: list[str]) -> Any:
    """Options of one command: defaults, then ``--config FILE.yaml``, then the command line."""
    return parse_as(COMMANDS[command], command, arguments)


def parse_as(kind: type[Options], command: str, arguments: list[str]) -> Options:
    """As `parse`, for a command whose options are ``kind``."""
    words, config = take_config(arguments)
    summary = f"{kind.__doc__}\n\nEvery option can also be a key of a YAML file: --config FILE."
    return tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(kind),
        args=words,
        default=kind() if config is None else from_config(kind, config),
        prog=f"interp {command}",
        description=summary,
    )
