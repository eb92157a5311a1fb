"""What one expert adds to one head's query, key or value: where it stands, and runs without it.

An adapted projection gives ``base(x) + Σ gate_i · expert_out_i`` (see `interp.moelora.hooked`). The
columns of one head are a *slice* of that sum: an expert's part in a single head is taken out by
setting those columns of ``hook_expert_out`` to zero, at every position, and nothing else of the
model is touched. Queries have a slice for each query head. Keys and values have one for each
key/value head, which serves a whole group of query heads: with grouped queries nothing can be
taken from the value of one query head alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.errors import UserError
from interp.forward.batch import TokenBatch, in_batches
from interp.forward.hook_points import count_units
from interp.forward.partial import Hook, HookFunction, record_run
from interp.heads.headset import Head
from interp.models.hooked_model import HookedModel
from interp.moelora.layer import MoELoRALinear
from interp.moelora.projections import projections_of
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
        check_part(self.component)

    @property
    def name(self) -> str:
        """Such as ``q 3.1 expert 5``."""
        whose = "all experts" if self.expert is None else f"expert {self.expert}"
        return f"{self.component} {self.layer}.{self.unit} {whose}"


@dataclass(frozen=True)
class AdaptedPart:
    """The queries, keys or values of one layer, whose projection has experts.

    Attributes:
        points: the hook points' common beginning, such as ``blocks.3.attn.q.moelora``.
        columns: Int[unit d_head], of ``hook_expert_out``.
        width: how many columns ``hook_expert_out`` has.
        base: the module that gives the part's output without experts.
        n_experts: how many experts the projection has.
    """

    points: str
    columns: Int[Tensor, "unit d_head"]
    width: int
    base: nn.Module
    n_experts: int


NO_ABLATION = Variant(0)
"""The adapted model as it is."""


def check_part(component: str) -> None:
    """Raise UserError for anything but ``q``, ``k`` and ``v``."""
    if component not in get_args(Part):
        raise UserError(f"unknown component {component!r}; known: {', '.join(get_args(Part))}")


def group_size(model: HookedModel, component: Part) -> int:
    """How many query heads one slice serves: 1 for queries, a whole group for keys and values."""
    return model.cfg.n_heads // count_units(model, component)


def slices_of(
    model: HookedModel, heads: Iterable[Head], components: Sequence[Part]
) -> list[ExpertHeadContribution]:
    """All that the experts add to these query heads; what several of them share comes once."""
    heads = list(heads)
    found = [
        ExpertHeadContribution(component, layer, head // group_size(model, component))
        for component in components
        for layer, head in heads
    ]
    return list(dict.fromkeys(found))


def adapted_parts(model: HookedModel, component: Part) -> dict[int, AdaptedPart]:
    """By layer, the adapted projections that give this component.

    Raises:
        UserError: a model without experts, or without any on this projection.
    """
    check_part(component)
    known = {one.name: one for one in projections_of(model)}
    found = {}
    for layer, block in enumerate(model.blocks):
        original = getattr(block.attn, component)._modules.get("_original_component")
        if isinstance(original, MoELoRALinear):
            name, base = f"blocks.{layer}.attn.{component}", original.base_layer
            width, columns = original.out_features, torch.arange(original.out_features)
        elif isinstance(original, nn.Module) and "shared" in original._modules:
            # A joint projection that TransformerLens split: this part has some of its columns.
            part: Any = original
            name, base = f"blocks.{layer}.attn.qkv", part.split
            width, columns = part.shared.layer.out_features, part.columns
        else:
            continue
        if name in known:
            found[layer] = AdaptedPart(
                f"{name}.moelora",
                columns.reshape(count_units(model, component), -1),
                width,
                base,
                known[name].n_experts,
            )
    if not found:
        targets = ", ".join(dict.fromkeys(one.target for one in known.values()))
        raise UserError(
            f"no {component} projection has experts; this adapter has them on {targets}"
        )
    return found


def without_slices(model: HookedModel, slices: Iterable[ExpertHeadContribution]) -> Variant:
    """The model with these slices of ``hook_expert_out`` zero, at every position.

    Raises:
        UserError: a head or an expert that the model does not have, or a layer without experts.
    """
    slices = list(slices)
    parts = {component: adapted_parts(model, component) for component in components_of(slices)}
    masks: dict[str, Tensor] = {}
    for one in slices:
        part = _checked(parts[one.component], one)
        empty = torch.zeros(part.n_experts, part.width, dtype=torch.bool)
        mask = masks.setdefault(f"{part.points}.hook_expert_out", empty)
        rows = range(part.n_experts) if one.expert is None else [one.expert]
        for expert in rows:
            mask[expert, part.columns[one.unit].cpu()] = True
    hooks = tuple((name, _zeroed(mask)) for name, mask in masks.items())
    return Variant(min((one.layer for one in slices), default=0), hooks)


def without_experts(model: HookedModel) -> Variant:
    """The base model: the gates of all experts of all projections are zero."""

    def closed(gates: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(gates)

    return Variant(0, tuple((one.gate, closed) for one in projections_of(model)))


def components_of(slices: Iterable[ExpertHeadContribution]) -> dict[Part, None]:
    """The components that the slices are of, in order."""
    return dict.fromkeys(one.component for one in slices)


def _checked(parts: dict[int, AdaptedPart], one: ExpertHeadContribution) -> AdaptedPart:
    """The part that a slice is of, if there is such a slice."""
    if one.layer not in parts:
        layers = ", ".join(map(str, parts))
        raise UserError(
            f"{one.name!r}: layer {one.layer} has no experts on its {one.component} projection; "
            f"layers {layers} have"
        )
    part = parts[one.layer]
    units = len(part.columns)
    if not 0 <= one.unit < units:
        raise UserError(f"{one.name!r} does not exist: the heads are 0 to {units - 1}")
    if one.expert is not None and not 0 <= one.expert < part.n_experts:
        raise UserError(f"{one.name!r} does not exist: the experts are 0 to {part.n_experts - 1}")
    return part


def _zeroed(mask: Bool[Tensor, "expert d_out"]) -> HookFunction:
    def zero(outputs: Tensor, hook: Any) -> Tensor:
        return outputs.masked_fill(mask.to(outputs.device), 0)

    return zero


def sweep_removals(
    model: HookedModel,
    batch: TokenBatch,
    removals: Sequence[Variant],
    metrics: Sequence[Metric],
    *,
    edit: HeadEdit | None = None,
    heads: Iterable[Head] = (),
    progress: bool = True,
    description: str = "experts",
) -> Float[Tensor, "metric prompt removal"]:
    """The metrics with each removal alone; whole prompts, from the first changed layer on.

    Args:
        metrics: those of `interp.patching.metrics`, which can be narrowed to some prompts.
        edit, heads: heads that are edited besides, in every run.
    """
    check_metrics(metrics, len(batch))
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)

    def runs(some: list[int]) -> Iterator[Tensor]:
        prompts = torch.tensor(some, device=batch.tokens.device)
        # Experts have no place in the plain modules.
        run = record_run(model, batch.part(some[0], some[-1] + 1), keep=(), plain=False)
        besides = _edited(model, edit, by_layer, prompts)
        variants = run_variants(model, run, [removal + besides for removal in removals])
        return map(metrics_for(metrics, prompts), variants)

    return measure_runs(
        runs,
        in_batches(range(len(batch)), CHUNK_TOKENS // batch.width),
        shape=(len(metrics), len(batch), len(removals)),
        dtype=result_dtype(model),
        what=f"one prompt of {batch.width} tokens",
        progress=progress,
        description=description,
    )


def _edited(
    model: HookedModel,
    edit: HeadEdit | None,
    by_layer: dict[int, list[int]],
    prompts: Int[Tensor, " prompt"],
) -> Variant:
    """The edit of these heads in a run of some of the prompts, from the first column on."""
    if edit is None:
        return NO_ABLATION
    own = take_edit(edit, prompts)
    rows = torch.arange(len(prompts), device=prompts.device)
    hooks: list[Hook] = []
    for layer, chosen in by_layer.items():
        acting = torch.zeros(len(prompts), model.cfg.n_heads, dtype=torch.bool)
        acting[:, chosen] = True
        hooks.append(own.hook(layer, rows, acting.to(prompts.device), 0))
    return Variant(min(by_layer, default=0), tuple(hooks))
