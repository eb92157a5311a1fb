"""Tasks of lm-evaluation-harness without and with a constraint, on the same documents.

Prompts on which the gate stays closed run once: the constraint leaves them alone, so that their
answers are the same (`interp.harness.model.FaithlensLM.answered`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.files.text import one_line
from interp.harness.paired import PairedMetric, difference
from interp.lazy import pd

NAN = float("nan")
Samples = list[dict[str, Any]]
"""What lm-evaluation-harness keeps of each document of a task."""


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are run.

    Attributes:
        limit: only the first so many documents of each.
        num_fewshot: examples before each question; by default as the task says.
        chat: whether prompts are put into the model's chat format.
        differences_only: whether documents at which the gate stays closed are left out. The
            differences of means are the same, since the constraint leaves these alone; the values
            themselves are not measured.
        seed: draws examples, and the resamples of the intervals.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    chat: bool = True
    differences_only: bool = False
    seed: int = 0


@dataclass(frozen=True)
class HarnessComparison(Displayed):
    """The metrics of tasks, without and with a constraint."""

    metrics: tuple[PairedMetric, ...]

    def to_dataframe(self) -> "pd.DataFrame":
        """A row for each metric."""
        return pd.DataFrame([asdict(metric) for metric in self.metrics])

    def to_dict(self) -> dict[str, Any]:
        """What harness.json holds."""
        return {"metrics": [metric.to_dict() for metric in self.metrics]}

    def table(self) -> "pd.DataFrame":
        """The rows with few digits, for a terminal."""
        return pd.DataFrame(
            [
                {
                    "task": metric.task,
                    "metric": metric.metric,
                    "n": metric.n,
                    "gate open": metric.fired,
                    "without": _number(metric.without),
                    "constrained": _number(metric.constrained),
                    "difference [95 %]": _interval(metric),
                }
                for metric in self.metrics
            ]
        )

    def _shown(self) -> Shown:
        return Shown("Tasks without and with the constraint.", (self.table(),))


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4g}"


def _interval(metric: PairedMetric) -> str:
    if np.isnan(metric.difference):
        return "–"
    if np.isnan(metric.low):
        return f"{metric.difference:+.4f}"
    return f"{metric.difference:+.4f} [{metric.low:+.4f}, {metric.high:+.4f}]"


def load_tasks(
    names: Sequence[str], *, ours: Path, include_path: Path | None = None
) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness by name or by the path of their YAML.

    Args:
        ours: the directory of the tasks that ship; only if a name is not found there and in
            ``include_path``, lm-evaluation-harness' own thousands are looked through.

    Raises:
        UserError: no such task, or one that cannot be read.
    """
    from lm_eval.tasks import TaskManager

    folders: list[str | Path] = [ours, *([] if include_path is None else [include_path])]
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"{include_path} is not a directory of tasks")
    wanted = [str(Path(name).absolute()) if name.endswith(".yaml") else name for name in names]
    for name in wanted:
        if name.endswith(".yaml") and not Path(name).is_file():
            raise UserError(f"there is no task file {name}")
    manager = TaskManager(include_path=folders, include_defaults=False)
    known = set(manager.all_tasks)
    if any(name not in known and not name.endswith(".yaml") for name in wanted):
        manager = TaskManager(include_path=folders)
        known = set(manager.all_tasks)
    unknown = [name for name in wanted if name not in known and not name.endswith(".yaml")]
    if unknown:
        raise UserError(f"unknown task {unknown[0]!r}; `lm_eval ls tasks` lists those there are")
    try:
        return manager.load(wanted)["tasks"]
    except UserError:
        raise
    except Exception as error:  # a task's YAML may name anything
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"these tasks cannot be read ({problem})") from error


def run_task(lm: Any, task: Any, options: TaskOptions) -> Samples:
    """What a model answers to a task's documents, with each document's metrics."""
    from lm_eval.evaluator import evaluate

    name = task.task_name
    if options.num_fewshot is not None and task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=options.num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=options.seed)
    found: Any = evaluate(
        lm=lm,
        task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
        limit=options.limit,
        bootstrap_iters=0,
        apply_chat_template=options.chat,
        fewshot_as_multiturn=options.chat,
    )
    assert found is not None
    return found["samples"][name]


def compare_task(lm: Any, task: Any, options: TaskOptions) -> tuple[list[PairedMetric], Samples]:
    """Run a task without the constraint and with it.

    Returns its metrics, and of each document and filter the answers of both runs.
    """
    runs: dict[bool, Samples] = {}
    lm.answered, lm.open_only = {}, options.differences_only
    try:
        for acts in (False, True):
            lm.places.acts = acts
            runs[acts] = run_task(lm, task, options)
    finally:
        lm.answered, lm.open_only, lm.places.acts = None, False, True
    both = [_joined(lm, *pair) for pair in zip(runs[False], runs[True], strict=True)]
    return list(_metrics(task, both, options)), both


def _joined(lm: Any, without: Mapping[str, Any], constrained: Mapping[str, Any]) -> dict[str, Any]:
    """A document's answers of both runs."""
    assert without["doc_id"] == constrained["doc_id"]
    assert without["filter"] == constrained["filter"]
    prompts = [arguments[0] for arguments in constrained["arguments"] if len(arguments) > 1]
    return {
        **{key: without[key] for key in ("doc_id", "doc", "target", "filter", "arguments")},
        "fired": any(map(lm.fires, prompts)),
        **{
            name: {
                "answers": run["filtered_resps"],
                "metrics": {metric: run[metric] for metric in run["metrics"]},
            }
            for name, run in (("without", without), ("constrained", constrained))
        },
    }


def _metrics(task: Any, both: Samples, options: TaskOptions) -> Sequence[PairedMetric]:
    found = []
    filters = list(dict.fromkeys(sample["filter"] for sample in both))
    for name in filters:
        of_filter = [sample for sample in both if sample["filter"] == name]
        for metric in of_filter[0]["without"]["metrics"]:
            aggregate = task.aggregation()[metric]
            before, after = (
                [sample[run]["metrics"][metric] for sample in of_filter]
                for run in ("without", "constrained")
            )
            kind = getattr(aggregate, "__name__", "")
            values = float(aggregate(before)), float(aggregate(after))
            change = difference(before, after, kind, seed=options.seed)
            if options.differences_only:
                same = kind == "mean" or not any(sample["fired"] for sample in of_filter)
                values, change = (NAN, NAN), change if same else (NAN,) * 3
            found.append(
                PairedMetric(
                    task.task_name,
                    metric if len(filters) == 1 else f"{metric}, {name}",
                    len(of_filter),
                    sum(sample["fired"] for sample in of_filter),
                    *values,
                    *change,
                )
            )
    return found
