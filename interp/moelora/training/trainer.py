"""The transformers Trainer with the auxiliary losses of MoELoRA added, and each of them logged.

*Normalisation.* The language loss of an optimizer step is the mean over all answer tokens of the
step, whatever micro-batches and processes they are spread over; the auxiliary losses are means over
the micro-batches. So one process with two micro-batches and two processes with one each take the
same step.

*Randomness.* Dropout, router noise and the sample of the contrastive loss are drawn from a seed of
(run's seed, step, micro-batch), so they depend neither on how many processes there are nor on where
training was taken up again.

*Logits* are computed at the answers' positions only, where the model can do that.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Trainer, TrainerState

from interp.errors import UserError
from interp.files.links import plain_name
from interp.files.shape import check_shape
from interp.files.text import read_json_object
from interp.models.placement import is_dispatched
from interp.moelora.auxiliary import auxiliary_losses, expert_load
from interp.moelora.data.encoding import IGNORED
from interp.moelora.layer import adapted_layers
from interp.moelora.training.answer_logits import keeps_logits, logits_at, predicting_positions
from interp.moelora.training.batching import LikeLengths
from interp.moved import old_names

logger = logging.getLogger(__name__)

__getattr__ = old_names(__name__)

DEAD_BELOW = 0.01
"""An expert is dead if it gets less than this part of an even share of the logged steps' tokens."""
WHOLE = "whole.json"
"""Written last into a checkpoint: the sizes of its files."""


class Diverged(UserError):
    """The loss is no longer a finite number."""


@dataclass
class LossWindow:
    """Sums over the steps since the last line of the log."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    shares: list[Tensor] = field(default_factory=list)
    n_micro: int = 0

    def add(self, losses: dict[str, Tensor], shares: list[Tensor]) -> None:
        """Add one micro-batch's losses and its experts' loads, by projection."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value.detach()
        old = self.shares or [torch.zeros_like(share) for share in shares]
        self.shares = [a + b for a, b in zip(old, shares, strict=True)]
        self.n_micro += 1


def answer_loss(
    logits: Float[Tensor, "example pos d_vocab"],
    targets: Int[Tensor, "example pos"],
    n_tokens: Tensor | int,
) -> Float[Tensor, ""]:
    """Cross-entropy (nats) summed over the targets that are not `IGNORED`, over `n_tokens`.

    `targets` stand at the positions that predict them. Only those rows are made float32.
    """
    counted = targets != IGNORED
    summed = F.cross_entropy(logits[counted].float(), targets[counted], reduction="sum")
    return summed / n_tokens


class AdapterTrainer(Trainer):
    """Trains an adapter on answers, with the auxiliary losses of its experts.

    `together` batches are drawn together and sorted by length; 1 leaves the order to the Trainer.
    """

    def __init__(self, *args: Any, together: int = 1, **kwargs: Any) -> None:
        self._together = together
        super().__init__(*args, **kwargs)
        # Token counts of the whole step are handed to compute_loss, which divides by them itself.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        adapted: Any = self.model
        self.has_experts = bool(adapted_layers(adapted))
        self._keeps_logits = keeps_logits(adapted)
        self._window = LossWindow()
        self._micro = (-1, 0)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of the examples; see `interp.moelora.training.batching`."""
        if self._together == 1:
            return super()._get_train_sampler(train_dataset)
        examples: Any = self.train_dataset if train_dataset is None else train_dataset
        return LikeLengths(
            [len(example.tokens) for example in examples],
            batch=self.args.per_device_train_batch_size,
            together=self._together,
            seed=self.args.seed,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The share of this micro-batch in the step's loss (times the number of processes)."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        positions = predicting_positions(labels)
        outputs, logits = logits_at(model, inputs, positions, keeps=self._keeps_logits)
        targets = labels[:, positions + 1]
        n_tokens = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, but n_tokens counts all of theirs.
        language = answer_loss(logits, targets, n_tokens) * self.accelerator.num_processes
        loss = language + self._auxiliary(model, language) if model.training else language
        return (loss, outputs) if return_outputs else loss

    def _auxiliary(self, model: nn.Module, language: Tensor) -> Tensor:
        """This micro-batch's share in the auxiliary losses; notes everything for the log."""
        if not self.has_experts:
            self._window.add({"language_loss": language}, [])
            return torch.zeros_like(language)
        adapted = self.accelerator.unwrap_model(model)
        n_micro = self.current_gradient_accumulation_steps
        losses = auxiliary_losses(adapted)
        names = ("load_balance", "contrastive", "router_z")
        parts = {name: getattr(losses, name) / n_micro for name in names}
        shares = list(expert_load(adapted).shares.values())
        self._window.add({"language_loss": language, **parts}, shares)
        return losses.total / n_micro

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One micro-batch, with random numbers of its own."""
        with self._own_randomness():
            return super().training_step(model, inputs, num_items_in_batch)

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        step, micro = self._micro
        micro = micro + 1 if step == self.state.global_step else 0
        self._micro = (self.state.global_step, micro)
        index = micro * self.accelerator.num_processes + self.accelerator.process_index
        text = f"{self.args.seed} {self.state.global_step} {index}".encode()
        device = self.args.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
            if device.type == "cpu":
                # torch.manual_seed would keep every seed for devices that are not there.
                torch.default_generator.manual_seed(seed)
            else:
                torch.manual_seed(seed)
            yield

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss, and how evenly the experts are used, to a line of the log.

        Raises `Diverged` when the loss is no longer finite.
        """
        if not math.isfinite(logs.get("loss", 0.0)):
            raise Diverged(
                f"the loss is no longer a finite number at step {self.state.global_step}: choose a "
                "smaller learning_rate, or more warmup"
            )
        if "loss" in logs and self._window.n_micro:
            logs = {**logs, **self._parts()}
        super().log(logs, start_time)

    def _parts(self) -> dict[str, float]:
        window, self._window = self._window, LossWindow()
        n_steps = max(1, self.state.global_step - self._last_logged)
        self._last_logged = self.state.global_step
        now = time.perf_counter()
        seconds, self._clock = (now - self._clock) / n_steps, now
        names = list(window.sums)
        means = self._over_processes(torch.stack([window.sums[name] for name in names])) / n_steps
        parts = {name: float(mean) for name, mean in zip(names, means, strict=True)}
        parts["seconds_per_step"] = seconds
        if window.shares:
            together = torch.cat([share.to(window.shares[0].device) for share in window.shares])
            sizes = [torch.full((len(share),), len(share)) for share in window.shares]
            # An even share is 1.
            loads = self._over_processes(together) / window.n_micro * torch.cat(sizes)
            parts["load_smallest"], parts["load_largest"] = float(loads.min()), float(loads.max())
            parts["dead_experts"] = float((loads < DEAD_BELOW).sum())
        return parts

    def _over_processes(self, values: Tensor) -> Tensor:
        gathered: Any = self.accelerator.gather(values.detach().float()[None])
        return gathered.mean(dim=0).cpu()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the log begins at the step that training begins at."""
        checkpoint = kwargs.get("resume_from_checkpoint")
        self._last_logged = step_of(Path(checkpoint)) if checkpoint else 0
        self._clock = time.perf_counter()
        return super().train(*args, **kwargs)

    def take_over(self, checkpoint: Path) -> None:
        """Load a finished training's weights and log, and train no further."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if not is_dispatched(self.model):  # each part of it stays where it is
            self.model = self.model.to(self.args.device)  # type: ignore[union-attr]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint; a mark is written last, which an incomplete checkpoint lacks."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            (folder / WHOLE).write_text(json.dumps(sizes), encoding="utf-8")
        self.accelerator.wait_for_everyone()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a directory; None if there is none.

    One that was being written when training stopped has no mark, and is skipped with a warning.
    Raises UserError if a file of a marked one is missing or has another size.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    for path in sorted(found, key=step_of, reverse=True):
        if not (path / WHOLE).is_file():
            logger.warning("%s was cut short while it was written: passed over", path)
            continue
        check_checkpoint(path)
        return path
    return None


def check_checkpoint(path: Path) -> None:
    """Raise UserError unless a checkpoint's files are as they were when it was written."""
    again = "delete this directory, and training goes on from the checkpoint before it"
    try:
        sizes = check_shape(read_json_object(path / WHOLE, advice=again), {str: int}, WHOLE)
        for name, size in sizes.items():
            file = path / plain_name(name, "a file of the checkpoint")
            there = file.stat().st_size if file.is_file() else 0
            if there != size:
                raise UserError(f"{file} is cut short: {there} of {size} bytes; {again}")
    except OSError as error:
        raise UserError(f"{path / WHOLE} cannot be read ({error}); {again}") from error


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])
