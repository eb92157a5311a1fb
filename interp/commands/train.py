"""``interp moelora train`` as a function: from settings to a run directory with a trained adapter.

The directory holds ``adapter/`` (as PEFT saves it), ``config.yaml``, ``manifest.json``,
``losses.csv`` (every logged step), ``trainer_state.json``, ``predictions.jsonl`` (held-out
questions with their answers) and, written last, ``metrics.json``. Repeating an interrupted call
resumes at the newest checkpoint, with a bit-identical result on a CPU; repeating a finished one
changes nothing. Other settings, data, prompts or another model are an error.
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
from interp.files.documents import write_json, write_jsonl, write_table, write_yaml
from interp.files.whole import beside_of, move_into_place
from interp.models import cache_root, fingerprint_of_folder, resolve
from interp.models.device_map import DeviceMap, MaxMemory, check_placing
from interp.models.folder import read_tokenizer
from interp.models.hooked_model import HookedModel
from interp.models.limits import vocabulary_size
from interp.models.quantization import quantized_fingerprint
from interp.moelora.data.encoding import end_token
from interp.moelora.data.sources import TaskData, load_task_data
from interp.moelora.training.adapters import adapt, trainable_parameters
from interp.moelora.training.pretrained import Pretrained, load_pretrained
from interp.moelora.training.scoring import (
    ScoredAnswer,
    accuracies,
    answer_losses,
    expert_similarity,
    score,
)
from interp.moelora.training.trainer import AdapterTrainer
from interp.moelora.training.training import (
    TrainingSettings,
    check_trainable,
    make_trainer,
    run_training,
)
from interp.runs.clock import one_moment, with_clock
from interp.runs.identity import begin_run, check_finished, check_run
from interp.runs.lock import one_process
from interp.runs.manifest import describe_hf_model, write_manifest
from interp.runs.prompting import PROMPTS, tokenizer_identity
from interp.runs.shards import digest_of

logger = logging.getLogger(__name__)

SIMILARITY_EXAMPLES = 64
CHECKPOINTS = "checkpoints"
IDENTITY = "training.json"
DATA = "data_sha256"
"""The key of the data's hash."""
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
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    progress: bool = True,
) -> Path:
    """Train an adapter and score it on held-out questions; returns `run`.

    Under ``accelerate launch`` every process calls this, and the first one writes. `device_map`
    and `max_memory` are those of `interp.load_model`; a divided model is trained in one process.
    Raises `UserError` for a user's mistake, if possible before anything is written.
    """
    if (run / "metrics.json").is_file():
        found, tokenizer = base_identity(settings, allow_pickle=allow_pickle)
        found |= data_identity_if_there(tokenizer, settings)
        check_finished(run, IDENTITY, {**plain_settings(settings), **found})
        return run
    check_placing(device, device_map, max_memory)
    reading: Any = {"device_map": device_map, "max_memory": max_memory}
    base = load_base(settings, allow_pickle=allow_pickle, **reading)
    data = load_data(base, settings)
    identity = training_identity(base, data, settings)
    check_run(run, IDENTITY, identity)
    set_seed(settings.seed)
    adapted = adapt(base.model, settings.method, settings.adapter())
    trainer = make_trainer(
        adapted,
        data.train,
        settings,
        folder=run / CHECKPOINTS,
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
        write_training(run, settings, trainer, base=base, data=data, progress=progress)
    return run


def load_base(settings: TrainingSettings, **reading: Any) -> Pretrained:
    """The base model; `reading` is further options of `load_pretrained`.

    Raises UserError for weights that cannot be trained where they are.
    """
    base = load_pretrained(
        settings.model, dtype=settings.dtype, quantization=settings.quantization, **reading
    )
    check_trainable(base.model)
    return base


def training_identity(
    base: Pretrained, data: TaskData, settings: TrainingSettings
) -> dict[str, Any]:
    """Everything that determines the result of a training run."""
    return {
        **plain_settings(settings),
        "fingerprint": base.fingerprint,
        **tokenizer_identity(base.tokenizer),
        **data_identity(data),
    }


def data_identity(data: TaskData) -> dict[str, Any]:
    """The data's part of a run's identity."""
    every = (*data.train, *data.encoded_test)
    return {
        DATA: data.sha256,
        PROMPTS: digest_of([asdict(example) for example in every]),
    }


def data_identity_if_there(tokenizer: Any, settings: TrainingSettings) -> dict[str, Any]:
    """`data_identity` for a finished run, which needs its data no longer: nothing without them."""
    try:
        return data_identity(_task_data(tokenizer, settings))
    except UserError as error:
        logger.warning("the run is finished; its data cannot be compared with today's: %s", error)
        return {}


def base_identity(
    settings: TrainingSettings, *, allow_pickle: bool = False
) -> tuple[dict[str, Any], Any]:
    """The base model's part of a run's identity, without reading its weights; and its tokenizer."""
    folder = resolve(settings.model, allow_pickle=allow_pickle)
    tokenizer = read_tokenizer(folder, spec=settings.model)
    digest = fingerprint_of_folder(folder, cache=cache_root() / "fingerprints")
    digest = quantized_fingerprint(digest, settings.quantization)
    return {"fingerprint": digest, **tokenizer_identity(tokenizer)}, tokenizer


def load_data(base: Pretrained, settings: TrainingSettings) -> TaskData:
    """The examples that the settings name, tokenized."""
    if settings.max_length > base.context:
        raise UserError(
            f"max_length is {settings.max_length}, but {base.spec} reads at most {base.context} "
            "tokens: choose a smaller one"
        )
    return _task_data(base.tokenizer, settings)


def _task_data(tokenizer: Any, settings: TrainingSettings) -> TaskData:
    return load_task_data(
        tokenizer,
        settings.data,
        max_length=settings.max_length,
        columns=settings.columns,
        held_out=settings.held_out,
        limit=settings.limit,
        test_limit=settings.test_limit,
        too_long=settings.too_long,
    )


def pad_token(base: Pretrained) -> int:
    """The padding token."""
    pad, size = base.tokenizer.pad_token_id, vocabulary_size(base.model)
    if pad is None or (size is not None and pad >= size):
        return end_token(base.tokenizer)
    return int(pad)


def metrics_of(
    base: Pretrained, model: HookedModel, data: TaskData, *, seed: int = 0, progress: bool = True
) -> tuple[tuple[ScoredAnswer, ...], dict[str, Any]]:
    """The answers of a model to the held-out questions, and their part of metrics.json."""
    answers = score(
        model, base.tokenizer, data.test, max_new_tokens=data.max_new_tokens, progress=progress
    )
    losses = answer_losses(model, data.encoded_test, pad=pad_token(base))
    by_task: dict[str, list[float]] = {}
    for example, loss in zip(data.test, losses, strict=True):
        by_task.setdefault(example.task, []).append(loss)
    scores = [asdict(accuracy) for accuracy in accuracies(answers, seed=seed)]
    return answers, {
        "accuracy": {scored.pop("task"): scored for scored in scores},
        "held_out_loss": {task: sum(found) / len(found) for task, found in by_task.items()},
    }


def write_training(
    run: Path,
    settings: TrainingSettings,
    trainer: AdapterTrainer,
    *,
    base: Pretrained,
    data: TaskData,
    progress: bool,
) -> None:
    """Write a finished training run, metrics.json last."""
    adapted: Any = trainer.accelerator.unwrap_model(trainer.model)
    _save_adapter(adapted, run / "adapter", base.spec)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    write_table(run / "losses.csv", losses_table(lines))
    beside = beside_of(run / "trainer_state.json")
    trainer.state.save_to_json(str(beside))
    move_into_place(beside, run / "trainer_state.json")
    answers, metrics = metrics_of(base, adapted, data, progress=progress)
    write_jsonl(run / "predictions.jsonl", (answer.to_row() for answer in answers))
    total = sum(parameter.numel() for parameter in adapted.parameters())
    trained = trainable_parameters(adapted)
    content = {
        "method": settings.method,
        "seed": settings.seed,
        "steps": trainer.state.global_step,
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
    noted = {DATA: data.sha256, "settings": plain_settings(settings)}
    write_manifest(run, described, prompts=None, identity=IDENTITY, seed=settings.seed, **noted)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    write_json(run / "metrics.json", content)


def _mean_cosine(adapted: Any, data: TaskData, base: Pretrained) -> float | None:
    """The mean cosine similarity of experts over projections; None for LoRA."""
    examples = data.encoded_test[:SIMILARITY_EXAMPLES]
    found = expert_similarity(adapted, examples, pad=pad_token(base))
    return sum(found.values()) / len(found) if found else None


def losses_table(lines: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The logged steps without times, in a fixed order of columns, so that it is reproducible."""
    table = pd.DataFrame(list(lines)).drop(columns="seconds_per_step")
    known = [name for name in COLUMNS if name in table]
    return table.loc[:, [*known, *sorted(set(table) - set(known))]]


def _save_adapter(adapted: Any, target: Path, spec: str) -> None:
    """Save under a temporary name, then move: a reader never sees an incomplete adapter.

    The adapter names its base model by the user's spec, not by a path on this machine.
    """
    base = adapted.get_base_model()
    base.name_or_path = base.config.name_or_path = spec  # both are in PEFT's model card
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = spec
    beside = beside_of(target)
    shutil.rmtree(beside, ignore_errors=True)
    # Embeddings are never adapted. To find that out, PEFT would query the hub.
    adapted.save_pretrained(beside, save_embedding_layers=False)
    shutil.rmtree(target, ignore_errors=True)
    move_into_place(beside, target)


def plain_settings(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as JSON and YAML hold them."""
    plain = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(settings).items()
    }
    if settings.like_lengths == 1:
        del plain["like_lengths"]  # runs of before there was any keep their identity
    return plain
