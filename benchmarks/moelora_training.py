"""LoRA, experts, and MoELoRA on real arithmetic and common-sense questions, at equal size.

    python benchmarks/moelora_training.py --tasks DIR --out runs/moelora-training
    python benchmarks/moelora_training.py --tasks DIR --out runs/moelora-training --publish

DIR has one directory for each set, with a file train.jsonl or train.csv (mawps-asdiv-a, ARC-Easy,
openbookqa, boolq; see docs/moelora.md for the formats). A fifth of each set's questions is held
out and scored. There are two groups of sets, and an adapter is trained on each alone. By group:

1. every method is trained for a few steps at each learning rate of a grid, and takes the one with
   the lowest loss on a tenth of the training questions, set apart for this;
2. all methods are trained on all training questions with one seed, then with the next, so that
   what is finished is a comparison at any time;
3. for the groups of --top-k-groups, MoELoRA is trained with other numbers of experts per token.

Hours of two cores: it may be stopped at any time, and the same command goes on where it stopped.
--publish writes what is finished into benchmarks/results/moelora_training.json, and trains nothing.
Two processes may work on different --groups in one directory.
"""

import logging
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
import tyro

from interp.commands.compare import base_metrics, parameter_spread, read_finished
from interp.commands.train import train_moelora
from interp.errors import UserError
from interp.files.documents import read_json, write_json, write_jsonl
from interp.moelora.data.sources import load_validation_split
from interp.moelora.training.adapters import Method
from interp.moelora.training.comparison import (
    FinishedRun,
    compare,
    finished_seeds,
    joined,
    paired_difference,
)
from interp.moelora.training.rates import TriedRate, choose_rates
from interp.moelora.training.trainer import Diverged
from interp.moelora.training.training import Dtype, TrainingSettings
from interp.runs.manifest import versions

RESULTS = Path(__file__).parent / "results" / "moelora_training.json"
METHODS: tuple[Method, ...] = get_args(Method)
USUAL_TOP_K = TrainingSettings.top_k


@dataclass(frozen=True)
class Group:
    """Sets that one adapter is trained on, and how many questions of each are scored."""

    sets: tuple[str, ...]
    test_limit: int
    validation_limit: int


GROUPS = {
    "math": Group(("mawps-asdiv-a",), 200, 100),
    "common-sense": Group(("ARC-Easy", "openbookqa", "boolq"), 100, 40),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained."""

    tasks: Path
    """Directory of the data sets."""
    out: Path
    """Where the runs are kept."""
    groups: tuple[str, ...] = tuple(GROUPS)
    """math, common-sense, or both."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each method is trained once with each."""
    steps: int = 300
    """Optimizer steps of each run."""
    rates: tuple[float, ...] = (5e-4, 1.5e-3, 4.5e-3, 1.35e-2)
    """Learning rates that each method is tried at."""
    rate_steps: int = 60
    """Steps of each trial."""
    batch: int = 4
    """Examples of each step."""
    like_lengths: int = 4
    """Batches drawn together and sorted by length."""
    max_length: int = 128
    """Longer questions, in tokens, are dropped."""
    top_k: tuple[int, ...] = (1, 4)
    """Other numbers of experts per token for MoELoRA."""
    top_k_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds for these."""
    top_k_groups: tuple[str, ...] = ("math",)
    """Groups for these."""
    model: str = TrainingSettings.model
    """The model that adapters are put on."""
    dtype: Dtype = "bfloat16"
    """Of the model while it is trained; adapters stay float32. On processors that have products in
    bfloat16, a step takes two thirds of the time of one in float32."""
    publish: bool = False
    """Write what is finished into the results, and train nothing."""

    def __post_init__(self) -> None:
        for name in (*self.groups, *self.top_k_groups):
            if name not in GROUPS:
                raise UserError(f"unknown group {name!r}; known: {', '.join(GROUPS)}")

    def training(self, group: str) -> TrainingSettings:
        """The settings of a group's runs, except method, seed and learning rate."""
        tasks = self.tasks.resolve()  # the paths are part of each run's identity
        return TrainingSettings(
            model=self.model,
            dtype=self.dtype,
            data=tuple(str(tasks / name) for name in GROUPS[group].sets),
            steps=self.steps,
            batch=self.batch,
            like_lengths=self.like_lengths,
            max_length=self.max_length,
            too_long="drop",
            test_limit=GROUPS[group].test_limit,
            save_every=25,
            keep=1,
        )


def main(plan: Plan) -> None:
    """Train what is missing, or write what is finished."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not plan.publish:
        for group in plan.groups:
            train_group(plan, group)
        for group in plan.top_k_groups:
            if group in plan.groups:
                train_top_k(plan, group)
        return
    content = finished_content(plan)
    write_json(RESULTS, content)
    for name, of_group in content["groups"].items():
        print(f"{name}: seeds {of_group['seeds']} of {list(plan.seeds)}")


def train_group(plan: Plan, group: str) -> None:
    """The trials of learning rates, then all methods with each seed."""
    folder, training = plan.out / group, plan.training(group)
    try_rates(plan, group)
    rates = choose_rates(read_trials(plan, group))
    for seed in plan.seeds:
        for method in METHODS:
            settings = replace(training, method=method, seed=seed, learning_rate=rates[method].rate)
            logging.info("%s: %s, seed %d", group, method, seed)
            train_moelora(settings, run_folder(folder, method, seed), progress=False)
        base_metrics(training, folder, progress=False)


def train_top_k(plan: Plan, group: str) -> None:
    """MoELoRA with other numbers of experts per token, at the rate chosen for the usual one."""
    rate = choose_rates(read_trials(plan, group))["moelora"].rate
    for seed in plan.top_k_seeds:
        for k in plan.top_k:
            settings = replace(plan.training(group), seed=seed, learning_rate=rate, top_k=k)
            logging.info("%s: top-%d, seed %d", group, k, seed)
            train_moelora(settings, run_folder(plan.out / group, f"top{k}", seed), progress=False)


def try_rates(plan: Plan, group: str) -> None:
    """Train the trials that are missing; one that diverges is noted."""
    apart = plan.out / group / "validation"
    for name in GROUPS[group].sets:
        if not (apart / name / "test.jsonl").is_file():
            split = load_validation_split(plan.tasks / name)
            (apart / name).mkdir(parents=True, exist_ok=True)
            write_jsonl(apart / name / "train.jsonl", map(asdict, split.train))
            write_jsonl(apart / name / "test.jsonl", map(asdict, split.test))
    for rate, method, folder in trials(plan, group):
        settings = replace(
            plan.training(group),
            data=tuple(str(apart.resolve() / name) for name in GROUPS[group].sets),
            method=method,
            learning_rate=rate,
            steps=plan.rate_steps,
            test_limit=GROUPS[group].validation_limit,
        )
        if (folder / "diverged.json").is_file():
            continue
        logging.info("%s: %s at the learning rate %g", group, method, rate)
        try:
            train_moelora(settings, folder, progress=False)
        except Diverged as error:
            write_json(folder / "diverged.json", {"message": str(error)})


def trials(plan: Plan, group: str) -> Iterator[tuple[float, Method, Path]]:
    """Learning rate, method and directory of each trial, in the order in which they are made."""
    for rate in plan.rates:
        for method in METHODS:
            yield rate, method, plan.out / group / "rates" / f"{method}-{rate:g}"


def read_trials(plan: Plan, group: str) -> list[TriedRate]:
    """The trials that are finished."""
    found = []
    for rate, method, folder in trials(plan, group):
        if (folder / "metrics.json").is_file():
            losses = read_json(folder / "metrics.json")["held_out_loss"]
            found.append(TriedRate(method, rate, losses))
        elif (folder / "diverged.json").is_file():
            found.append(TriedRate(method, rate, {}))
    return found


def run_folder(group: Path, name: str, seed: int) -> Path:
    """Where the run of a method, or of a number of experts per token, is kept."""
    return group / "runs" / f"{name}-seed{seed}"


def read_runs(group: Path, name: str, seeds: Sequence[int]) -> list[FinishedRun]:
    """The finished runs, by seed."""
    folders = [(seed, run_folder(group, name, seed)) for seed in seeds]
    return [
        read_finished(folder, name, seed)
        for seed, folder in folders
        if (folder / "metrics.json").is_file()
    ]


def finished_content(plan: Plan) -> dict[str, Any]:
    """The results, of the seeds with which all methods are finished; others are left out."""
    groups = {name: group_content(plan, name) for name in plan.groups}
    by_group = {
        name: [run for method in METHODS for run in read_runs(plan.out / name, method, seeds)]
        for name, seeds in ((name, groups[name]["seeds"]) for name in plan.groups)
    }
    common = set.intersection(*(set(groups[name]["seeds"]) for name in plan.groups))
    settings = {key: value for key, value in asdict(plan).items() if key not in ("tasks", "out")}
    del settings["publish"]
    return {
        "settings": settings,
        "groups": groups,
        "all_sets": all_sets(list(by_group.values()), sorted(common)) if common else None,
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        },
    }


def group_content(plan: Plan, group: str) -> dict[str, Any]:
    """A group's rates, comparison and numbers of experts per token, as far as they are finished."""
    folder, tried = plan.out / group, read_trials(plan, group)
    every = [run for method in METHODS for run in read_runs(folder, method, plan.seeds)]
    seeds = finished_seeds(every, METHODS)
    runs = [run for run in every if run.seed in seeds]
    base = folder / "base.json"
    content: dict[str, Any] = {
        **asdict(GROUPS[group]),
        "rates": {name: rate.to_json() for name, rate in choose_rates(tried).items()},
        "trials": [len(tried), len(plan.rates) * len(METHODS)],
        "seeds": list(seeds),
        "comparison": None,
    }
    if seeds:
        by_method = {name: [run for run in runs if run.method == name] for name in METHODS}
        content["comparison"] = {
            **compare(runs),
            "base": read_json(base) if base.is_file() else {},
            "contrastive_gain": paired_difference(by_method["moelora"], by_method["moe"]),
            "parameters_differ_by": parameter_spread(runs),
        }
        content["top_k"] = top_k_content(plan, group, by_method["moelora"])
    return content


def top_k_content(plan: Plan, group: str, usual: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Each other number of experts per token beside the usual one, on the seeds that both have."""
    found = []
    for k in plan.top_k:
        runs = read_runs(plan.out / group, f"top{k}", plan.top_k_seeds)
        seeds = {run.seed for run in runs} & {run.seed for run in usual}
        runs = [run for run in runs if run.seed in seeds]
        beside = [run for run in usual if run.seed in seeds]
        if runs:
            own = compare(runs)["methods"][f"top{k}"]
            found.append(
                {
                    **{"top_k": k, "beside": USUAL_TOP_K, "seeds": sorted(seeds)},
                    "accuracy": own["accuracy"],
                    "held_out_loss": own["held_out_loss"],
                    "difference": paired_difference(runs, beside),
                }
            )
    return found


def all_sets(groups: Sequence[Sequence[FinishedRun]], seeds: Sequence[int]) -> dict[str, Any]:
    """Differences over the sets of all groups, each set with the same weight."""
    by_method = {
        method: [
            joined([run for runs in groups for run in runs if (run.method, run.seed) == which])
            for which in ((method, seed) for seed in seeds)
        ]
        for method in METHODS
    }
    return {
        "seeds": list(seeds),
        **{
            f"{name}_less_{other}": paired_difference(by_method[name], by_method[other])
            for name, other in (("moelora", "lora"), ("moelora", "moe"), ("moe", "lora"))
        },
    }


if __name__ == "__main__":
    main(tyro.cli(Plan))
