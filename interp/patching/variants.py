"""Edited versions of a recorded run, each run again from the first layer that it changes.

``run_variants`` yields their logits one after the other. ``measure_runs`` is the loop around it: it
runs as many prompts at a time as fit into memory, and collects the measures of every run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, RecordedRun, resume
from interp.models.hooked_model import HookedModel
from interp.patching.checks import checked_together
from interp.patching.metrics import Metric, apply_metric, take_metrics
from interp.progress import progress_bar


@dataclass(frozen=True)
class Variant:
    """An edited version of a run.

    Attributes:
        first_layer: the lowest layer that the hooks change.
        hooks: (hook point, function) pairs; without any it is the run as it was recorded.
        rows: which prompts of the run; by default all of them.
    """

    first_layer: int
    hooks: tuple[Hook, ...] = ()
    rows: Int[Tensor, " row"] | None = None

    def __add__(self, other: "Variant") -> "Variant":
        """Both edits together, in the prompts of the first."""
        layers = [variant.first_layer for variant in (self, other) if variant.hooks]
        return Variant(min(layers, default=0), (*self.hooks, *other.hooks), self.rows)


def run_variants(
    model: HookedModel, run: RecordedRun, variants: Iterable[Variant]
) -> Iterator[Float[Tensor, "row *keep d_vocab"]]:
    """The logits of each variant of a run, in order, at as many positions as the run has."""
    for variant in variants:
        rows = run.batch.every_row if variant.rows is None else variant.rows
        if variant.hooks:
            yield resume(model, run, layer=variant.first_layer, rows=rows, hooks=variant.hooks)
        else:
            yield run.logits if variant.rows is None else run.logits[rows]


def metrics_for(
    metrics: Sequence[Metric], prompts: Int[Tensor, " prompt"]
) -> Callable[[Float[Tensor, "prompt d_vocab"]], Float[Tensor, "metric prompt"]]:
    """A function that gives all metrics of some prompts from their logits."""
    taken = take_metrics(metrics, prompts)
    return lambda logits: torch.stack([apply_metric(metric, logits) for metric in taken])


@torch.no_grad()
def measure_runs(
    runs: Callable[[list[int]], Iterable[Float[Tensor, "measure prompt"]]],
    chunks: Iterable[Sequence[int]],
    *,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    description: str,
    divisible: bool = True,
    what: str = "one prompt",
    progress: bool = True,
) -> Float[Tensor, "measure prompt run"]:
    """The measures of all runs of all prompts, on the CPU.

    Args:
        runs: is given some prompts by index and yields the measures of each of their runs; it may
            be called again with a part of them (see ``halving``).
        chunks: the prompts that run together.
        shape: the number of measures, of prompts, and of runs.
        divisible, what: as for ``halving``.

    Raises:
        OutOfMemory: a chunk does not fit into memory and cannot be cut.
    """
    values = torch.empty(shape, dtype=dtype)
    n_prompts, n_runs = shape[1:]
    with progress_bar(total=n_prompts * n_runs, description=description, shown=progress) as bar:

        def run_chunk(chunk: list[int]) -> None:
            begun = bar.n

            def measured() -> Float[Tensor, "run measure prompt"]:
                bar.n, found = begun, []
                for _, measures in zip(range(n_runs), runs(chunk), strict=True):
                    found.append(measures.to(dtype))
                    bar.update(len(chunk))
                return torch.stack(found)

            # Read from the device once for all runs.
            values[:, chunk] = checked_together(measured).cpu().permute(1, 2, 0)

        for _ in halving(chunks, run_chunk, what=what, divisible=divisible, bar=bar):
            pass
    return values
