"""``interp moelora train`` as a function: from settings to a run directory with a trained adapter.

The directory holds ``adapter/`` (as PEFT saves it), ``config.yaml``, ``manifest.json``,
``losses.csv`` (every logged step), ``trainer_state.json``, ``predictions.jsonl`` (held-out
questions with the answers given) and, written last, ``metrics.json``. The same call again takes an
interrupted run up at its newest checkpoint, with the same outcome to the last bit on a CPU, and
returns a finished one as it is. Other settings, data, prompts or another model are refused.
"""

import logging
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
from interp.files.documents import (
    read_json,
    write_json,
    write_jsonl,
    write_table,
    write_yaml,
)
from interp.files.whole import beside_of, move_into_place
from interp.models import cache_root, fingerprint_of_folder, resolve
from interp.models.folder import read_tokenizer
from interp.models.hooked_model import HookedModel
from interp.models.limits import vocabulary_size
from interp.moelora.data.encoding import end_token
from interp.moelora.data.taskdata import TaskData, load_task_data
from interp.moelora.training.adapters import adapt, trainable_parameters
from interp.moelora.training.pretrained import Pretrained, load_pretrained
from interp.moelora.training.scoring import ScoredAnswer, accuracies, answer_losses, score
from interp.moelora.training.similarity import expert_similarity
from interp.moelora.training.trainer import AdapterTrainer
from interp.moelora.training.training import TrainingSettings, make_trainer, run_training
from interp.runs.clock import one_moment, with_clock
from interp.runs.identity import begin_run, check_finished, check_run
from interp.runs.lock import one_process
from interp.runs.manifest import describe_hf_model, write_manifest
from interp.runs.prompting import PROMPTS, noted_prompts, tokenizer_identity
from interp.runs.shards import digest_of

logger = logging.getLogger(__name__)

SIMILARITY_EXAMPLES = 64
CHECKPOINTS = "checkpoints"
IDENTITY = "training.json"
COLUMNS = (
    *("step", "epoch", "loss", "language_loss", "load_balance", "contrastive", "router_z"),
    *("load_smallest", "load_largest", "dead_experts", "grad_norm", "learning_rate"),
)


@one_process
@one_moment(IDENTITY)
def train_moelora(
    settings: TrainingSettings,
    run: Path,
    *,
    device: str | None = None,
    allow_pickle: bool = False,
    progress: bool = True,
) -> Path:
    """Train the adapter of `settings` and score it on held-out questions; returns `run`.

    Under ``accelerate launch`` every process calls this, and the first one writes. Raises
    `UserError` for every user's mistake, before anything is written where that can be known.
    """
    if (run / "metrics.json").is_file():
        found, _ = base_identity(settings, allow_pickle=allow_pickle)
        check_finished(run, IDENTITY, {**plain_settings(settings), **found})
        return run
    base = load_pretrained(settings.model, dtype=settings.dtype, allow_pickle=allow_pickle)
    data = load_data(base, settings)
    identity = {
        **plain_settings(settings),
        "fingerprint": base.fingerprint,
        "data_sha256": data.sha256,
        **tokenizer_identity(base.tokenizer),
        PROMPTS: digest_of([asdict(one) for one in (*data.train, *data.encoded_test)]),
    }
    check_run(run, IDENTITY, identity)
    set_seed(settings.seed)
    adapted = adapt(base.model, settings.method, settings.adapter())
    trainer = make_trainer(
        adapted,
        data.train,
        settings,
        run / CHECKPOINTS,
        pad=pad_token(base),
        device=device,
        progress=progress,
    )
    if PartialState().is_main_process:
        begin_run(run, IDENTITY, with_clock(identity, base.tokenizer))
        write_yaml(run / "config.yaml", plain_settings(settings))
    PartialState().wait_for_everyone()
    run_training(trainer, run / CHECKPOINTS)
    if trainer.is_world_process_zero():
        _write_run(run, settings, base, data, trainer, progress)
    return run


def base_identity(
    settings: TrainingSettings, *, allow_pickle: bool = False
) -> tuple[dict[str, Any], Any]:
    """What a run's identity holds of its base model, without reading weights, and its tokenizer."""
    folder = resolve(settings.model, allow_pickle=allow_pickle)
    tokenizer = read_tokenizer(folder, spec=settings.model)
    digest = fingerprint_of_folder(folder, cache=cache_root() / "fingerprints")
    return {"fingerprint": digest, **tokenizer_identity(tokenizer)}, tokenizer


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
    pad, size = base.tokenizer.pad_token_id, vocabulary_size(base.model)
    if pad is None or (size is not None and pad >= size):
        return end_token(base.tokenizer)
    return int(pad)


def metrics_of(
    base: Pretrained, model: HookedModel, data: TaskData, *, seed: int = 0, progress: bool = True
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
    _save_adapter(adapted, run / "adapter", base.spec)
    history = trainer.state.log_history
    lines = [line for line in history if "loss" in line]
    write_table(run / "losses.csv", losses_table(lines))
    beside = beside_of(run / "trainer_state.json")
    trainer.state.save_to_json(str(beside))
    move_into_place(beside, run / "trainer_state.json")
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
    described = describe_hf_model(
        base.model, base.tokenizer, spec=base.spec, fingerprint=base.fingerprint
    )
    write_manifest(
        run,
        described,
        prompts=None,
        data_sha256=data.sha256,
        settings=plain_settings(settings),
        seed=settings.seed,
        **noted_prompts(read_json(run / IDENTITY)),
    )
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    write_json(run / "metrics.json", content)


def _mean_cosine(adapted: Any, data: TaskData, base: Pretrained) -> float | None:
    """The mean over projections of how alike the experts are; None for LoRA."""
    some = data.encoded_test[:SIMILARITY_EXAMPLES]
    found = expert_similarity(adapted, some, pad=pad_token(base))
    return sum(found.values()) / len(found) if found else None


def losses_table(lines: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The logged steps without their times, so that the same training gives the same table.

    The columns stand in one order; a resumed run's log has another.
    """
    table = pd.DataFrame(list(lines)).drop(columns="seconds_per_step")
    known = [name for name in COLUMNS if name in table]
    return table.loc[:, [*known, *sorted(set(table) - set(known))]]


def _save_adapter(adapted: Any, target: Path, spec: str) -> None:
    """Save beside the target, then move: a reader sees a whole adapter or none.

    Its base model is named as the user did, not by the place of its files on this machine.
    """
    base = adapted.get_base_model()
    base.name_or_path = base.config.name_or_path = spec  # both are in PEFT's model card
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = spec
    beside = beside_of(target)
    shutil.rmtree(beside, ignore_errors=True)
    # Embeddings are never adapted; to find that out PEFT would look the name up on the hub.
    adapted.save_pretrained(beside, save_embedding_layers=False)
    shutil.rmtree(target, ignore_errors=True)
    move_into_place(beside, target)


def plain_settings(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as JSON and YAML hold them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(settings).items()
    }


def _without_task(accuracy: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in accuracy.items() if key != "task"}
