"""``interp moelora train --plan`` and ``analyze --plan`` as functions; see `interp.commands.plan`.

Of a training run, a few steps, a checkpoint and a few answers are made. The steps are the first
ones of the run itself, with its data in its order. An adapter that has not been trained gives
longer answers than a trained one, so that what is said of answers is rather too much.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from interp.commands.analyze import AnalyzeSettings, analyze_adapter
from interp.commands.plan import stage_name
from interp.commands.train import (
    CHECKPOINTS,
    IDENTITY,
    SIMILARITY_EXAMPLES,
    load_base,
    load_data,
    pad_token,
    plain_settings,
    train_moelora,
    training_identity,
    write_training,
)
from interp.files.documents import write_yaml
from interp.forward.batch import in_batches
from interp.forward.generate import BATCH_PROMPTS
from interp.models.quiet import quiet_libraries
from interp.moelora.data.sources import TaskData
from interp.moelora.training.adapters import adapt
from interp.moelora.training.pretrained import Pretrained
from interp.moelora.training.scoring import answer_losses, expert_similarity, score
from interp.moelora.training.trainer import AdapterTrainer, last_checkpoint, step_of
from interp.moelora.training.training import TrainingSettings, make_trainer
from interp.runs.clock import run_clock, with_clock
from interp.runs.identity import claim_run
from interp.runs.plan import Plan
from interp.runs.rehearsal import PROBE_SECONDS, Ledger, Rehearsal
from interp.runs.usage import Passes, folder_bytes, wait_for_devices

LEAST_STEPS, SHARE = 3, 10
"""Steps that are taken at least, and at most this part of the run's."""
SCORING_BATCH = 32
"""Examples that `answer_losses` and `expert_similarity` run together."""


class StepWatch(TrainerCallback):
    """Takes the time of every step and of a checkpoint, and stops when enough are known.

    Attributes:
        steps: seconds of each step.
        saving: seconds of the checkpoint.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.steps: list[float] = []
        self.saving = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        wait_for_devices()
        self._begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time, and stop with a checkpoint after enough steps."""
        wait_for_devices()
        self._end = time.perf_counter()
        self.steps.append(self._end - self._begin)
        long = len(self.steps) >= LEAST_STEPS and sum(self.steps) >= PROBE_SECONDS
        if long or len(self.steps) >= self._most:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time of the checkpoint."""
        self.saving = time.perf_counter() - self._end


def plan_training(
    settings: TrainingSettings,
    run: Path,
    *,
    device: str | None = None,
    before: float = 0.0,
    **reading: Any,
) -> Plan:
    """What `train_moelora` will take in one process.

    Args:
        before: seconds that the program's start has taken.
        reading: how its base model is read, and where its parts go.
    """
    with Rehearsal(run, names=stage_name, before=before) as rehearsal:
        folder = rehearsal.folder
        with run_clock(folder, IDENTITY):
            if (folder / "metrics.json").is_file():  # finished: only checked
                train_moelora(settings, folder, progress=False, **reading)
            else:
                base = load_base(settings, **reading)
                _rehearse(base, settings, folder, ledger=rehearsal.ledger, device=device)
    return rehearsal.plan()


def plan_analyze(
    adapter: Path, settings: AnalyzeSettings, run: Path, *, before: float = 0.0, **options: Any
) -> Plan:
    """What `analyze_adapter` will take in this process.

    Args:
        options: its ``device``, and how its base model is read.
    """
    with Rehearsal(run, names=stage_name, before=before) as rehearsal:
        analyze_adapter(
            adapter,
            settings,
            rehearsal.folder,
            around=rehearsal.engine,
            progress=False,
            **options,
        )
    return rehearsal.plan()


def _rehearse(
    base: Pretrained,
    settings: TrainingSettings,
    folder: Path,
    *,
    ledger: Ledger,
    device: str | None,
) -> None:
    """A few steps of the run, and its answers and files with few examples."""
    data = load_data(base, settings)
    identity = training_identity(base, data, settings)
    claim_run(folder, IDENTITY, identity, beside=with_clock(identity, base.tokenizer))
    write_yaml(folder / "config.yaml", plain_settings(settings))
    set_seed(settings.seed)
    adapted = adapt(base.model, settings.method, settings.adapter())
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    done = step_of(checkpoint) if checkpoint else 0
    trainer = make_trainer(
        adapted,
        data.train,
        replace(settings, log_every=1),
        folder=folder / "rehearsed",
        pad=pad_token(base),
        device=device,
    )
    if remaining := settings.steps - done:
        _train(trainer, settings, remaining=remaining, done=done, ledger=ledger)
    elif checkpoint:
        trainer.take_over(checkpoint)
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    _score(adapted, base, data, ledger=ledger)
    _write(trainer, base, data, settings=settings, folder=folder, ledger=ledger)


def _train(
    trainer: AdapterTrainer,
    settings: TrainingSettings,
    *,
    remaining: int,
    done: int,
    ledger: Ledger,
) -> None:
    """The steps, and the checkpoints between them."""
    watch = StepWatch(min(remaining, max(LEAST_STEPS, -(-remaining // SHARE))))
    trainer.add_callback(watch)
    set_seed(settings.seed)
    with quiet_libraries():
        _, found = ledger.measure(trainer.train)
    taken = watch.steps[1:] or watch.steps  # the first one warms up
    per_step = sum(taken) / len(taken)
    beside = found.seconds - sum(watch.steps) - watch.saving  # before and after the steps
    ledger.add(
        "training steps",
        remaining * settings.batch * settings.accumulate,
        found.passes.times(remaining / len(watch.steps)),
        per_step * (remaining - 1) + watch.steps[0] + max(0.0, beside),
    )
    saves = -(-settings.steps // settings.save_every) - done // settings.save_every
    ledger.add("checkpoints", 0, Passes(), saves * watch.saving)
    kept = min(settings.keep, saves) + (saves > settings.keep)
    size = folder_bytes(ledger.folder / "rehearsed")
    ledger.disk_while = max(ledger.disk_while, kept * size)


def _score(adapted: Any, base: Pretrained, data: TaskData, *, ledger: Ledger) -> None:
    """Answers and losses of the held-out questions, and how alike experts are."""
    pad = pad_token(base)

    n, n_alike = len(data.test), min(len(data.test), SIMILARITY_EXAMPLES)

    def spread(rows: list[int], together: int) -> list[int]:
        # Over all questions, since those of a task stand next to each other.
        return [row * n // min(n, together) for row in rows]

    def answers(rows: list[int]) -> Any:
        chosen = [data.test[row] for row in spread(rows, BATCH_PROMPTS)]
        return score(
            adapted, base.tokenizer, chosen, max_new_tokens=data.max_new_tokens, progress=False
        )

    def losses(rows: list[int]) -> Any:
        chosen = [data.encoded_test[row] for row in spread(rows, SCORING_BATCH)]
        return answer_losses(adapted, chosen, pad=pad)

    def similarity(rows: list[int]) -> Any:
        return expert_similarity(adapted, [data.encoded_test[row] for row in rows], pad=pad)

    ledger.estimate("greedy answers", _sizes(n, BATCH_PROMPTS), answers)
    ledger.estimate("held-out loss", _sizes(n, SCORING_BATCH), losses)
    ledger.estimate("similarity of experts", _sizes(n_alike, SCORING_BATCH), similarity)


def _write(
    trainer: AdapterTrainer,
    base: Pretrained,
    data: TaskData,
    *,
    settings: TrainingSettings,
    folder: Path,
    ledger: Ledger,
) -> None:
    """The run's files, with a few answers; those that grow are then made as long as they will be.

    What it takes counts among all else, as in the run.
    """
    few = replace(data, test=data.test[:2], encoded_test=data.encoded_test[:2])
    noted = sum("loss" in line for line in trainer.state.log_history)
    write_training(folder, settings, trainer, base=base, data=few, progress=False)
    shutil.rmtree(folder / "rehearsed", ignore_errors=True)
    lines = settings.steps / min(settings.log_every, settings.steps)
    for name, factor in (
        ("predictions.jsonl", len(data.test) / max(len(few.test), 1)),
        ("losses.csv", lines / max(noted, 1)),
        ("trainer_state.json", lines / max(noted, 1)),
    ):
        size = (folder / name).stat().st_size
        with (folder / name).open("ab") as file:
            file.truncate(round(size * factor))
    ledger.note_disk()


def _sizes(n: int, together: int) -> Sequence[int]:
    return [len(part) for part in in_batches(range(n), together)]
