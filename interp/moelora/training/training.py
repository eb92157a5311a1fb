"""Settings of a training run, and one run of the Trainer; `interp.commands.train` calls both."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from interp.arguments import check_choice
from interp.errors import UserError
from interp.models.limits import check_prompts
from interp.models.placement import is_dispatched, is_offloaded
from interp.models.quiet import quiet_libraries
from interp.moelora.config import MoELoRAConfig
from interp.moelora.data.encoding import AnswerCollator, EncodedExample, TooLong
from interp.moelora.data.sources import HELD_OUT_SHARE
from interp.moelora.training.adapters import Method
from interp.moelora.training.trainer import AdapterTrainer, last_checkpoint, step_of
from interp.progress import progress_bar

Schedule = Literal["constant", "linear", "cosine"]
Dtype = Literal["float32", "bfloat16"]
_ADAPTER = MoELoRAConfig()
"""The defaults of the adapter's settings."""
_CHOICES = {"method": Method, "too_long": TooLong, "schedule": Schedule, "dtype": Dtype}
_RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        (
            *("steps", "batch", "accumulate", "max_length", "like_lengths"),
            *("log_every", "save_every", "keep"),
        ),
        lambda value: value >= 1,
        "at least 1",
    ),
    (("limit", "test_limit"), lambda value: value is None or value >= 1, "at least 1"),
    (("learning_rate", "scaling"), lambda value: value > 0, "above 0"),
    (("warmup",), lambda value: 0 <= value < 1, "a share, from 0 to below 1"),
    (("held_out",), lambda value: 0 < value < 1, "a share between 0 and 1"),
    (("data",), bool, "at least one source"),
    (("targets",), bool, "at least one module name"),
)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run; a value out of range raises `UserError`.

    A step takes `batch` examples from each process, `accumulate` times. The texts below the fields
    are the command line's help too.
    """

    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a hub id, a directory, or a .gguf file."""
    method: Method = "moelora"
    """moelora; moe: without the contrastive loss; lora: plain, of the same number of parameters."""
    data: tuple[str, ...] = ("arithmetic", "facts")
    """Sets that ship (arithmetic, facts, false_premise), files, directories, or hub data sets."""
    columns: str = ""
    """Which columns hold what, where that is not seen: prompt=Question,answer=Answer."""
    held_out: float = HELD_OUT_SHARE
    """The share of subjects set apart for the test where a source has no test split."""
    limit: int | None = None
    """At most so many training examples of each source."""
    test_limit: int | None = 200
    """At most so many test examples of each task."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """The projections that are adapted, by the endings of their names."""
    experts: int = _ADAPTER.experts_in(None, "every projection")
    """Experts per projection."""
    rank: int = _ADAPTER.r
    """Rank of each expert."""
    top_k: int = _ADAPTER.top_k
    """Experts that each token is routed to."""
    scaling: float = _ADAPTER.scaling
    """What the adapter adds is multiplied by this: alpha / rank."""
    dropout: float = _ADAPTER.lora_dropout
    """Dropout on the adapter's input."""
    router_noise: float = _ADAPTER.router_noise
    """Standard deviation of the noise on router logits in training."""
    load_balance: float = _ADAPTER.load_balance_weight
    """Weight of the load-balance loss, which is a mean over the adapted projections."""
    contrastive: float = _ADAPTER.contrastive_weight
    """Weight of moelora's contrastive loss, also a mean."""
    temperature: float = _ADAPTER.contrastive_temperature
    """Temperature of the contrastive loss."""
    router_z: float = _ADAPTER.router_z_weight
    """Weight of the router z-loss."""
    steps: int = 200
    """Optimizer steps."""
    batch: int = 16
    """Examples per micro-batch and process."""
    accumulate: int = 1
    """Micro-batches per step."""
    learning_rate: float = 1e-3
    """The largest learning rate."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warmup."""
    warmup: float = 0.05
    """The share of steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    clip: float = 1.0
    """The largest norm of a gradient."""
    dtype: Dtype = "float32"
    """bfloat16: base in bfloat16, mixed precision in training; the adapter stays float32."""
    quantization: str | None = None
    """bnb-4bit or bnb-8bit: the base's weights are quantized while they are read."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory, more time."""
    max_length: int = 512
    """The longest example in tokens."""
    too_long: TooLong = "error"
    """What happens to longer ones; nothing is ever cut."""
    like_lengths: int = 1
    """Batches drawn together and sorted by length, so that less is padding; 1: not sorted."""
    log_every: int = 10
    """Steps between lines of the log."""
    save_every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints that are kept while training."""
    seed: int = 0
    """Decides the adapter's initial weights, the order of the data, and every draw in training."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            check_choice(name, getattr(self, name), get_args(known))
        for names, fine, what in _RANGES:
            for name in names:
                if not fine(value := getattr(self, name)):
                    raise UserError(f"{name} must be {what}, not {value!r}")
        self.adapter()

    def adapter(self) -> MoELoRAConfig:
        """The experts' configuration, which LoRA is made equal to."""
        return MoELoRAConfig(
            r=self.rank,
            num_experts=self.experts,
            top_k=self.top_k,
            lora_alpha=self.scaling * self.rank,
            lora_dropout=self.dropout,
            target_modules=list(self.targets),
            router_noise=self.router_noise,
            load_balance_weight=self.load_balance,
            contrastive_weight=self.contrastive,
            contrastive_temperature=self.temperature,
            router_z_weight=self.router_z,
            task_type="CAUSAL_LM",
        )

    def arguments(self, folder: Path, *, device: str | None = None) -> TrainingArguments:
        """The Trainer's arguments; checkpoints go into `folder`."""
        cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
        arguments = TrainingArguments(
            output_dir=str(folder),
            use_cpu=cpu,
            max_steps=self.steps,
            per_device_train_batch_size=self.batch,
            gradient_accumulation_steps=self.accumulate,
            learning_rate=self.learning_rate,
            lr_scheduler_type=self.schedule,
            warmup_steps=round(self.warmup * self.steps),
            weight_decay=self.weight_decay,
            max_grad_norm=self.clip,
            bf16=self.dtype == "bfloat16",
            logging_steps=min(self.log_every, self.steps),
            logging_nan_inf_filter=False,
            save_steps=self.save_every,
            save_total_limit=self.keep,
            seed=self.seed,
            data_seed=self.seed,
            # An incomplete batch would be filled up from the front by several processes only.
            dataloader_drop_last=True,
            dataloader_pin_memory=not cpu,
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            report_to="none",
            disable_tqdm=True,
        )
        # Without a launcher one process would split batches over all GPUs, which loses the
        # auxiliary losses of all but one.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments


def check_trainable(model: Any) -> None:
    """Raise UserError for a divided model that cannot be trained.

    Offloaded weights are fetched in the forward pass only, and one process has all the devices.
    """
    if is_offloaded(model):
        raise UserError(
            "a model with weights that are offloaded to the CPU or the disk cannot be trained: "
            "give a device_map of GPUs only, or a quantization"
        )
    if is_dispatched(model) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "a model that is divided over several devices is trained in one process: leave the "
            "launcher or the device map out"
        )


def make_trainer(
    model: Any,
    examples: Sequence[EncodedExample],
    settings: TrainingSettings,
    *,
    folder: Path,
    pad: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> AdapterTrainer:
    """A Trainer for an adapted model.

    Raises `UserError` if the data does not fill one batch, or has examples or tokens that are
    beyond the model's positions or vocabulary.
    """
    check_prompts(model, [(pad,), *(example.tokens for example in examples)])
    arguments = settings.arguments(folder, device=device)
    needed = settings.batch * arguments.world_size
    if len(examples) < needed:
        raise UserError(
            f"{len(examples)} training examples do not fill one batch of {needed}: give more data "
            "or a smaller batch"
        )
    with quiet_libraries():
        if settings.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer = AdapterTrainer(
            model=model,
            args=arguments,
            train_dataset=list(examples),  # type: ignore[arg-type]
            data_collator=AnswerCollator(pad),
            together=settings.like_lengths,
        )
        trainer.remove_callback(PrinterCallback)
        if progress:
            trainer.add_callback(StepBar())
    return trainer


class StepBar(TrainerCallback):
    """A progress bar over steps with the loss behind it, on the first process."""

    bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            done = state.global_step
            self.bar = progress_bar(total=state.max_steps, initial=done, description="training")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on by one."""
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def run_training(trainer: AdapterTrainer, folder: Path) -> None:
    """Train to the end, from the newest whole checkpoint in `folder` if there is one.

    Raises `UserError` when the loss is no longer finite, and for a checkpoint that is cut short.
    """
    checkpoint = last_checkpoint(folder)
    set_seed(trainer.args.seed)
    with quiet_libraries():
        if checkpoint and step_of(checkpoint) >= trainer.args.max_steps:
            trainer.take_over(checkpoint)  # the Trainer would take one more step
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
