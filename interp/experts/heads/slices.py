"""What one expert adds to one head's query, key or value, and runs of the model without it.

An adapted projection gives ``base(x) + Σ gate_i · expert_out_i`` (see `interp.moelora.hooked`). The
columns of one head are a *slice* of that sum. To ablate one expert's part in one head, those
columns of ``hook_expert_out`` are set to zero at every position; nothing else changes. Queries have
a slice for each query head. Keys and values have one for each key/value head, which serves a whole
group of query heads: nothing can be taken from the value of one of them alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.arguments import check_choice
from interp.errors import UserError
from interp.forward.batch import TokenBatch, in_batches
from interp.forward.hook_points import count_units
from interp.forward.partial import Hook, record_run
from interp.forward.prompts import batch_for
from interp.forward.transfer import repeated_rows, upload
from interp.heads.headset import Head
from interp.models.hooked_model import HookedModel
from interp.moelora.projections import HeadOutputs, head_outputs, projections_of
from interp.moved import old_names
from interp.patching.edits import HeadEdit, take_edit
from interp.patching.metrics import Metric, check_metrics
from interp.patching.variants import Variant, measure_runs, metrics_for, run_variants
from interp.precision import result_dtype

Part = Literal["q", "k", "v"]
"""Queries, keys or values, before the rotary embedding."""

CHUNK_TOKENS = 2048
"""Tokens whose whole run is recorded at once: every layer's input, keys and values are kept."""


@dataclass(frozen=True)
class ExpertHeadContribution:
    """What one expert, or all of them (``expert=None``), adds to one head's query, key or value.

    ``unit`` is a query head for ``q``, and a key/value head for ``k`` and ``v``.
    """

    component: Part
    layer: int
    unit: int
    expert: int | None = None

    def __post_init__(self) -> None:
        check_choice("component", self.component, get_args(Part))

    @property
    def name(self) -> str:
        """Such as ``q 3.1 expert 5``."""
        whose = "all experts" if self.expert is None else f"expert {self.expert}"
        return f"{self.component} {self.layer}.{self.unit} {whose}"


NO_ABLATION = Variant(0)
"""The adapted model as it is."""


def group_size(model: HookedModel, component: Part) -> int:
    """How many query heads one slice serves: 1 for queries, a whole group for keys and values."""
    return model.cfg.n_heads // count_units(model, component)


def slices_of(
    model: HookedModel, heads: Iterable[Head], components: Sequence[Part]
) -> list[ExpertHeadContribution]:
    """The slices of all experts in these query heads; a slice that heads share comes once."""
    heads = list(heads)
    found = [
        ExpertHeadContribution(component, layer, head // group_size(model, component))
        for component in components
        for layer, head in heads
    ]
    return list(dict.fromkeys(found))


def without_slices(model: HookedModel, slices: Iterable[ExpertHeadContribution]) -> Variant:
    """The model with these slices of ``hook_expert_out`` zero, at every position.

    Raises:
        UserError: a head or an expert that the model does not have, or a layer without experts.
    """
    slices = list(slices)
    parts = {component: head_outputs(model, component) for component in components_of(slices)}
    masks: dict[str, Tensor] = {}
    for part in slices:
        outputs = _checked(parts[part.component], part)
        empty = torch.zeros(outputs.projection.n_experts, outputs.width, dtype=torch.bool)
        mask = masks.setdefault(outputs.projection.expert_out, empty)
        experts = slice(None) if part.expert is None else part.expert
        mask[experts, outputs.columns[part.unit].cpu()] = True
    hooks = tuple((name, partial(_zero, mask)) for name, mask in masks.items())
    return Variant(min((part.layer for part in slices), default=0), hooks)


def without_experts(model: HookedModel) -> Variant:
    """The base model: the gates of all experts of all projections are zero."""

    def closed(gates: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(gates)

    return Variant(0, tuple((projection.gate, closed) for projection in projections_of(model)))


def components_of(slices: Iterable[ExpertHeadContribution]) -> dict[Part, None]:
    """The components that the slices are of, in order."""
    return dict.fromkeys(part.component for part in slices)


def _checked(by_layer: dict[int, HeadOutputs], part: ExpertHeadContribution) -> HeadOutputs:
    """Where the slice's component is computed. Raises UserError if there is no such slice."""
    if part.layer not in by_layer:
        layers = ", ".join(map(str, by_layer))
        raise UserError(
            f"{part.name!r}: layer {part.layer} has no experts on its {part.component} projection; "
            f"layers {layers} have"
        )
    outputs = by_layer[part.layer]
    n_units, n_experts = len(outputs.columns), outputs.projection.n_experts
    if not 0 <= part.unit < n_units:
        raise UserError(f"{part.name!r} does not exist: the heads are 0 to {n_units - 1}")
    if part.expert is not None and not 0 <= part.expert < n_experts:
        raise UserError(f"{part.name!r} does not exist: the experts are 0 to {n_experts - 1}")
    return outputs


def _zero(mask: Bool[Tensor, "expert d_out"], outputs: Tensor, hook: Any) -> Tensor:
    return outputs.masked_fill(mask.to(outputs.device), 0)


def sweep_ablations(
    model: HookedModel,
    batch: TokenBatch,
    ablations: Sequence[Variant],
    *,
    metrics: Sequence[Metric],
    edit: HeadEdit | None = None,
    heads: Iterable[Head] = (),
    progress: bool = True,
    description: str = "experts",
) -> Float[Tensor, "metric prompt ablation"]:
    """The metrics with each ablation alone; whole prompts, from the first changed layer on.

    Args:
        metrics: those of `interp.patching.metrics`, which can be narrowed to some prompts.
        edit, heads: an edit of heads that is added to every run.
    """
    check_metrics(metrics, len(batch))
    batch, edited = batch_for(model, batch, "batch"), tuple(heads)

    def runs(some: list[int]) -> Iterator[Tensor]:
        prompts = torch.tensor(some, device=batch.tokens.device)
        # Only hooked modules have experts.
        run = record_run(model, batch.part(some[0], some[-1] + 1), keep=(), plain=False)
        head_edit = _edited_heads(model, edit, edited, prompts=prompts)
        variants = run_variants(model, run, [ablation + head_edit for ablation in ablations])
        return map(metrics_for(metrics, prompts), variants)

    return measure_runs(
        runs,
        in_batches(range(len(batch)), CHUNK_TOKENS // batch.width),
        shape=(len(metrics), len(batch), len(ablations)),
        dtype=result_dtype(model),
        what=f"one prompt of {batch.width} tokens",
        progress=progress,
        description=description,
    )


def _edited_heads(
    model: HookedModel,
    edit: HeadEdit | None,
    heads: Sequence[Head],
    *,
    prompts: Int[Tensor, " prompt"],
) -> Variant:
    """The edit of these heads, at all positions, in a run of some of the prompts."""
    if edit is None:
        return NO_ABLATION
    some = take_edit(edit, prompts)
    rows = repeated_rows(len(prompts), 1, prompts.device)
    hooks: list[Hook] = []
    for layer in dict.fromkeys(layer for layer, _ in heads):
        acting = torch.zeros(len(prompts), model.cfg.n_heads, dtype=torch.bool)
        acting[:, [head for of_layer, head in heads if of_layer == layer]] = True
        acting = upload(acting, prompts.device)
        hooks.append(some.hook(layer, rows=rows, units=acting, start=0))
    return Variant(min((layer for layer, _ in heads), default=0), tuple(hooks))


__getattr__ = old_names(__name__)
