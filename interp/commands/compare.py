"""``interp moelora compare``: LoRA, experts without and with the contrastive loss, on equal terms.

Every method is trained with the same data, steps and seeds, at the same number of trainable
parameters. Each (method, seed) is a training run of its own (`interp.commands.train`) under
``runs/`` of the comparison, so that an interrupted comparison goes on where it stopped. Then
``comparison.json``, ``losses.csv`` and ``report.html`` are written.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from interp.commands.train import (
    DATA,
    base_identity,
    data_identity_if_there,
    load_data,
    metrics_of,
    plain_settings,
    train_moelora,
)
from interp.commands.train import IDENTITY as TRAINING
from interp.errors import UserError
from interp.files.documents import (
    read_json,
    write_atomically,
    write_json,
    write_jsonl,
    write_table,
    write_yaml,
)
from interp.files.tables import read_table
from interp.files.text import read_json_lines
from interp.models.device_map import DeviceMap, MaxMemory
from interp.moelora.training.adapters import Method, check_method
from interp.moelora.training.comparison import FinishedRun, compare
from interp.moelora.training.pretrained import load_pretrained
from interp.moelora.training.training import TrainingSettings
from interp.report.comparison_page import render_comparison
from interp.runs.clock import one_moment, with_clock
from interp.runs.identity import claim_run
from interp.runs.lock import one_process
from interp.runs.manifest import read_manifest

logger = logging.getLogger(__name__)

IDENTITY = "settings.json"
UNEQUAL = 0.01
"""A larger relative difference in trainable parameters gives a warning."""


@dataclass(frozen=True, kw_only=True)
class ComparedMethods:
    """Which adapters are compared."""

    methods: tuple[Method, ...] = get_args(Method)
    """What is compared."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each method is trained once with each."""

    def __post_init__(self) -> None:
        for method in self.methods:
            check_method(method)
        for name in ("methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"{name} must name each once, and at least one; not {values}")


@dataclass(frozen=True)
class CompareSettings(ComparedMethods):
    """What is compared, and how it is trained: `training`, except its method and seed."""

    training: TrainingSettings = field(default_factory=TrainingSettings)


@one_process
@one_moment(IDENTITY)
def compare_moelora(
    settings: CompareSettings,
    run: Path,
    *,
    device: str | None = None,
    allow_pickle: bool = False,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the missing adapters, compare all, and write the page.

    Returns:
        The content of comparison.json.

    Raises:
        UserError: a user's mistake, or `run` holds another comparison.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a comparison runs in one process: launch `interp moelora train` for each method and "
            "seed instead"
        )
    identity = {**plain_settings(settings.training), "methods": list(settings.methods)}
    del identity["method"], identity["seed"]
    found, tokenizer = base_identity(settings.training, allow_pickle=allow_pickle)
    claim_run(run, IDENTITY, {**identity, **found}, beside=with_clock({}, tokenizer))
    write_yaml(run / "config.yaml", {**identity, "seeds": list(settings.seeds)})
    placing: Any = {"device": device, "device_map": device_map, "max_memory": max_memory}
    placing |= {"allow_pickle": allow_pickle}
    today = data_identity_if_there(tokenizer, settings.training)
    base = base_metrics(settings.training, run, today=today, progress=progress, **placing)
    finished = []
    for seed in settings.seeds:
        for method in settings.methods:
            training = replace(settings.training, method=method, seed=seed)
            folder = run / "runs" / f"{method}-seed{seed}"
            logger.info("%s, seed %d", method, seed)
            train_moelora(training, folder, progress=progress, **placing)
            finished.append(read_finished(folder, method, seed))
    _check_same_data(run, settings)
    first = f"{settings.methods[0]}-seed{settings.seeds[0]}"
    spread = parameter_spread(finished)
    content = {
        **compare(finished),
        "base": base,
        "settings": identity,
        "manifest": read_manifest(run / "runs" / first),
        "parameters_differ_by": spread,
    }
    if spread > UNEQUAL:
        logger.warning("trainable parameters differ by %.1f %%", 100 * spread)
    losses = losses_of(finished)
    write_table(run / "losses.csv", losses)
    write_json(run / "comparison.json", content)
    write_atomically(run / "report.html", render_comparison(content, losses))
    return content


def _check_same_data(run: Path, settings: CompareSettings) -> None:
    """Raise UserError if the data has changed since the first run of the comparison."""
    hashes = {
        read_json(run / "runs" / f"{method}-seed{seed}" / TRAINING).get(DATA)
        for method in settings.methods
        for seed in settings.seeds
    }
    if len(hashes) > 1:
        raise UserError(
            f"the data has changed between the runs in {run / 'runs'}: compare anew, in another "
            "directory"
        )


def read_finished(folder: Path, method: str, seed: int) -> FinishedRun:
    """A finished training run. Raises `UserError` if a file is missing or damaged."""
    again = f"delete {folder} to repeat the run"
    losses = read_table(folder / "losses.csv", counts=("step",), others=True, advice=again)
    return FinishedRun(
        method=method,
        seed=seed,
        metrics=read_json(folder / "metrics.json"),
        answers=_read_rows(folder / "predictions.jsonl"),
        losses=losses.to_dict(orient="records"),  # type: ignore[arg-type]
    )


def losses_of(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """The logged steps of all runs in one table."""
    rows = [{"method": run.method, "seed": run.seed, **line} for run in runs for line in run.losses]
    return pd.DataFrame(rows)


def parameter_spread(runs: Sequence[FinishedRun]) -> float:
    """The largest number of trainable parameters over the smallest, minus 1."""
    counts = [run.metrics["trainable_parameters"] for run in runs]
    return max(counts) / min(counts) - 1


def base_metrics(
    training: TrainingSettings,
    run: Path,
    *,
    today: Mapping[str, Any] | None = None,
    progress: bool,
    **placing: Any,
) -> dict[str, Any]:
    """The metrics of the model without an adapter on the same questions; kept in `run`.

    Args:
        today: `data_identity` of the questions; metrics that are kept of others are made anew.
    """
    path = run / "base.json"
    kept = read_json(path) if path.is_file() else None
    digest = (today or {}).get(DATA)
    if kept is None or (digest and kept.get(DATA, digest) != digest):
        base = load_pretrained(
            training.model, dtype=training.dtype, quantization=training.quantization, **placing
        )
        data = load_data(base, training)
        answers, metrics = metrics_of(base, base.model, data, progress=progress)
        write_jsonl(run / "base_predictions.jsonl", (answer.to_row() for answer in answers))
        kept = {**metrics, DATA: data.sha256}
        write_json(path, kept)
    return {name: value for name, value in kept.items() if name != DATA}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [row for _, row in read_json_lines(path)]
    except UserError as error:
        raise UserError(f"{error}: delete its directory to repeat the run") from error
