"""``interp moelora train`` as a function: from settings to a run directory with a trained adapter.

The directory holds ``adapter/`` (as PEFT saves it), ``config.yaml``, ``manifest.json``,
``losses.csv`` (every logged step), ``trainer_state.json``, ``predictions.jsonl`` (held-out
questions with the answers given) and, written last, ``metrics.json``. The same call again takes an
interrupted run up at its newest checkpoint, with the same outcome to the last bit on a CPU, and
returns a finished one as it is. Other settings, data or another model are refused.
"""

import importlib.metadata
import logging
import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from transformers import set_seed

from interp.errors import UserError
from interp.moelora.adapters import adapt, trainable_parameters
from interp.moelora.encoding import end_token
from interp.moelora.pretrained import Pretrained, load_pretrained
from interp.moelora.scoring import (
    ScoredAnswer,
    accuracies,
    answer_losses,
    score,
)
from interp.moelora.similarity import expert_similarity
from interp.moelora.taskdata import TaskData, load_task_data
from interp.moelora.trainer import AdapterTrainer
from interp.moelora.training import TrainingSettings, make_trainer, run_training
from interp.runs.manifest import versions
from interp.runs.store import (
    read_json,
    write_atomically,
    write_json,
    write_jsonl,
    write_table,
    write_yaml,
)

logger = logging.getLogger(__name__)

SIMILARITY_EXAMPLES = 64
CHECKPOINTS = "checkpoints"
IDENTITY = "training.json"
COLUMNS = (
    *("step", "epoch", "loss", "language_loss", "load_balance", "contrastive", "router_z"),
    *("load_smallest", "load_largest", "dead_experts", "grad_norm", "learning_rate"),
)


def train_moelora(
    settings: TrainingSettings, run: Path, *, device: str | None = None, progress: bool = True
) -> Path:
    """Train the adapter of `settings` and score it on held-out questions; returns `run`.

    Under ``accelerate launch`` every process calls this, and the first one writes. Raises
    `UserError` for every user's mistake, before anything is written where that can be known.
    """
    if (run / "metrics.json").is_file():
        check_identity(run, {"settings": plain_settings(settings)})
        return run
    base = load_pretrained(settings.model, dtype=settings.dtype)
    data = load_data(base, settings)
    identity = {
        "settings": plain_settings(settings),
        "fingerprint": base.fingerprint,
        "data_sha256": data.sha256,
    }
    check_identity(run, identity)
    set_seed(settings.seed)
    adapted = adapt(base.model, settings.method, settings.adapter())
    trainer = make_trainer(
        adapted, data.train, settings, run / CHECKPOINTS,
        pad=pad_token(base), device=device, progress=progress,
    )  # fmt: skip
    if PartialState().is_main_process:
        _begin(run, identity)
    PartialState().wait_for_everyone()
    run_training(trainer, run / CHECKPOINTS)
    if trainer.is_world_process_zero():
        _write_run(run, settings, base, data, trainer, progress)
    return run


def load_data(base: Pretrained, settings: TrainingSettings) -> TaskData:
    """The examples that the settings name, as the model's tokens."""
    if settings.max_length > base.context:
        raise UserError(
            f"max_length is {settings.max_length}, but {base.spec} reads at most {base.context} "
            "tokens: choose a smaller one"
        )
    return load_task_data(
        base.tokenizer,
        settings.data,
        max_length=settings.max_length,
        columns=settings.columns,
        held_out=settings.held_out,
        limit=settings.limit,
        test_limit=settings.test_limit,
        too_long=settings.too_long,
    )


def pad_token(base: Pretrained) -> int:
    """The token that fills up batches."""
    pad = base.tokenizer.pad_token_id
    return end_token(base.tokenizer) if pad is None else int(pad)


def check_identity(run: Path, identity: dict[str, Any]) -> None:
    """Raise `UserError` unless the directory is new, empty, or holds the same training run."""
    path = run / IDENTITY
    if not path.is_file():
        if run.is_dir() and any(run.iterdir()):
            raise UserError(f"{run} holds something else: choose a new directory with --out")
        return
    recorded = read_json(path)
    before = {**recorded.get("settings", {}), **_without_settings(recorded)}
    now = {**identity.get("settings", {}), **_without_settings(identity)}
    if differs := sorted(key for key in now if before.get(key) != now[key]):
        key = differs[0]
        raise UserError(
            f"{run} holds another run ({key} was {before.get(key)!r}, now {now[key]!r}): choose "
            "another directory with --out, or delete that one"
        )


def metrics_of(
    base: Pretrained, model: Any, data: TaskData, *, seed: int = 0, progress: bool = True
) -> tuple[tuple[ScoredAnswer, ...], dict[str, Any]]:
    """The answers of a model to the held-out questions, and what metrics.json says of them."""
    answers = score(
        model, base.tokenizer, data.test, max_new_tokens=data.max_new_tokens, progress=progress
    )
    losses = answer_losses(model, data.encoded_test, pad=pad_token(base))
    by_task: dict[str, list[float]] = {}
    for one, loss in zip(data.test, losses, strict=True):
        by_task.setdefault(one.task, []).append(loss)
    return answers, {
        "accuracy": {
            one.task: _without_task(asdict(one)) for one in accuracies(answers, seed=seed)
        },
        "held_out_loss": {task: sum(found) / len(found) for task, found in by_task.items()},
    }


def _write_run(
    run: Path,
    settings: TrainingSettings,
    base: Pretrained,
    data: TaskData,
    trainer: AdapterTrainer,
    progress: bool,
) -> None:
    adapted: Any = trainer.accelerator.unwrap_model(trainer.model)
    _save_adapter(adapted, run / "adapter")
    history = trainer.state.log_history
    lines = [line for line in history if "loss" in line]
    write_table(run / "losses.csv", losses_table(lines))
    beside = run / f".trainer_state.{os.getpid()}.part"
    trainer.state.save_to_json(str(beside))
    write_atomically(run / "trainer_state.json", beside.read_text(encoding="utf-8"))
    beside.unlink()
    answers, metrics = metrics_of(base, adapted, data, progress=progress)
    write_jsonl(run / "predictions.jsonl", (one.to_row() for one in answers))
    steps = trainer.state.global_step
    total = sum(one.numel() for one in adapted.parameters())
    trained = trainable_parameters(adapted)
    content = {
        "method": settings.method,
        "seed": settings.seed,
        "steps": steps,
        "n_train": len(data.train),
        "n_test": len(data.test),
        "trainable_parameters": trained,
        "base_parameters": total - trained,
        "processes": trainer.accelerator.num_processes,
        "seconds_per_step": statistics.median(line["seconds_per_step"] for line in lines),
        **metrics,
        "expert_cosine": _mean_cosine(adapted, data, base),
        "last_step": lines[-1],
    }
    write_manifest(run, settings, base, trainer)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    write_json(run / "metrics.json", content)


def _mean_cosine(adapted: Any, data: TaskData, base: Pretrained) -> float | None:
    """The mean over projections of how alike the experts are; None for LoRA."""
    some = data.encoded_test[:SIMILARITY_EXAMPLES]
    found = expert_similarity(adapted, some, pad=pad_token(base))
    return sum(found.values()) / len(found) if found else None


def write_manifest(
    run: Path, settings: TrainingSettings, base: Pretrained, trainer: AdapterTrainer
) -> None:
    """Which model, versions, device and data the run was made with."""
    own = {name: importlib.metadata.version(name) for name in ("peft", "accelerate")}
    content = {
        "model": {"spec": base.spec, "fingerprint": base.fingerprint},
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "device": str(trainer.args.device),
        "attn_implementation": str(base.model.config._attn_implementation),
        "versions": {**versions(), **own},
        "data_sha256": read_json(run / IDENTITY)["data_sha256"],
        "settings": plain_settings(settings),
        "seed": settings.seed,
    }
    write_json(run / "manifest.json", content)


def losses_table(lines: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The logged steps without their times, so that the same training gives the same table.

    The columns stand in one order; a resumed run's log has another.
    """
    table = pd.DataFrame(list(lines)).drop(columns="seconds_per_step")
    known = [name for name in COLUMNS if name in table]
    return table.loc[:, [*known, *sorted(set(table) - set(known))]]


def _begin(run: Path, identity: dict[str, Any]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / IDENTITY, identity)
    write_yaml(run / "config.yaml", identity["settings"])


def _save_adapter(adapted: Any, target: Path) -> None:
    """Save beside the target, then move: a reader sees a whole adapter or none."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    adapted.save_pretrained(beside)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(beside, target)


def plain_settings(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as JSON and YAML hold them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(settings).items()
    }


def _without_settings(identity: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key != "settings"}


def _without_task(accuracy: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in accuracy.items() if key != "task"}
