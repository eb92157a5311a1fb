"""``interp harness RUN`` as a function: tasks of lm-evaluation-harness with and without heads.

Writes ``harness.json`` (every metric, with and without, and the difference) and for each task
``TASK.json`` and ``TASK.jsonl`` (of each document, the answers of both runs). A task that is there
with the same options, documents and model is not run again.
"""

import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files.documents import write_json, write_jsonl
from interp.files.shape import check_shape
from interp.files.text import read_json_object
from interp.harness.compare import HarnessComparison, TaskOptions, compare_task, load_tasks
from interp.harness.installed import check_installed, quiet
from interp.harness.paired import PairedMetric
from interp.models.quiet import quiet_libraries
from interp.progress import progress_bar
from interp.runs.lock import one_process
from interp.runs.manifest import recorded_model
from interp.runs.shards import digest_of

OUT, TABLE = "harness", "harness.json"
"""The directory in the run, and the file with all metrics."""


@dataclass(frozen=True)
class HarnessSettings:
    """Which tasks, and how they are run."""

    tasks: tuple[str, ...] = ()
    """Names of tasks, or YAML files; by default those that ship with the package."""
    include_path: Path | None = None
    """A directory with YAML files of further tasks."""
    limit: int | None = None
    """Only the first so many documents of each task."""
    num_fewshot: int | None = None
    """Examples before each question, as turns of the chat; by default as the task says."""
    batch_size: int = 8
    """Prompts that run together."""
    chat: bool = True
    """Put prompts into the model's chat format; the detector reads no other."""
    differences_only: bool = False
    """Run only the documents at which the gate opens: the others' answers are the same. Gives the
    differences of means, not the values."""
    seed: int = 0
    """Draws examples, and the resamples of the intervals."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("num_fewshot", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}: it must be at least {least}")

    @property
    def of_tasks(self) -> TaskOptions:
        """What decides a task's outcome."""
        return TaskOptions(**{f.name: getattr(self, f.name) for f in fields(TaskOptions)})


@one_process
def harness_run(
    run: Path,
    settings: HarnessSettings,
    *,
    output: Path | None = None,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> HarnessComparison:
    """Run tasks on the run's model, without its constraint and with it, and write the outcome.

    Args:
        output: the directory that is written; by default ``harness`` in the run.
        model, device, dtype: as the model type ``faithlens`` takes them.

    Raises:
        UserError: lm-evaluation-harness is not installed, an unknown task, no evaluated run, no
            detector, or a task whose prompts the gate cannot read.
    """
    check_installed()
    quiet()
    # lm-evaluation-harness is an optional package, imported only where tasks run.
    from interp.harness.documents import tasks_folder
    from interp.harness.model import FaithlensLM

    recorded_model(run)  # a misspelt run should not wait for the model
    ours = tasks_folder()
    names = settings.tasks or tuple(sorted(path.stem for path in ours.glob("*.yaml")))
    with quiet_libraries():
        tasks = load_tasks(names, ours=ours, include_path=settings.include_path)
        lm = FaithlensLM(model, run, dtype=dtype, device=device, batch_size=settings.batch_size)
    lm.bars = progress and sys.stderr.isatty()
    output = run / OUT if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    found: list[PairedMetric] = []
    for name, task in progress_bar(tasks.items(), shown=progress, description="tasks"):
        identity = _identity(lm, task, settings)
        kept = _kept(output / f"{name}.json", identity)
        if kept is None:
            with quiet_libraries():
                kept, documents = compare_task(lm, task, settings.of_tasks)
            write_jsonl(output / f"{name}.jsonl", documents)
            content = {"identity": identity, "metrics": [metric.to_dict() for metric in kept]}
            write_json(output / f"{name}.json", content)
        found += kept
    comparison = HarnessComparison(tuple(found))
    content = {"run": str(run), "lm_eval": version("lm_eval"), "settings": _plain(settings)}
    write_json(output / TABLE, content | comparison.to_dict())
    return comparison


def _identity(lm: Any, task: Any, settings: HarnessSettings) -> dict[str, Any]:
    """What decides a task's outcome, as JSON gives it back."""
    return {
        "model": lm.fingerprint,
        "dtype": str(lm.model.dtype),
        "intervention": digest_of(
            [
                [p.site, p.mode, p.factor, p.decoding_steps, list(p.heads)]
                for p in lm.attached.intervention.heads
            ]
        ),
        "detector": digest_of(_described(lm.detector)),
        "task": digest_of({"config": repr(task.dump_config()), "documents": list(task.eval_docs)}),
        "options": asdict(settings.of_tasks),
        "lm_eval": version("lm_eval"),
    }


def _described(detector: Any) -> dict[str, Any]:
    """What tells a trained detector from another one of its model."""
    return {name: getattr(detector, name, None) for name in ("threshold", "training")}


def _kept(path: Path, identity: dict[str, Any]) -> list[PairedMetric] | None:
    """A task's metrics from an earlier call that was the same; None if there was none."""
    if not path.is_file():
        return None
    content = read_json_object(path, advice="delete it, and the task is run again")
    check_shape(content, {"identity": dict, "metrics": [dict]}, str(path))
    if content["identity"] != identity:
        return None
    return [PairedMetric.from_dict(metric) for metric in content["metrics"]]


def _plain(settings: HarnessSettings) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(settings).items()
    }
