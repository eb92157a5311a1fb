"""What each expert adds to each head's query, key or value.

The output of an adapted projection is an exact sum, head by head, before the rotary embedding::

    y = base(x) + Σ_i c_i        c_i = gate_i(x) · expert_out_i(x)

Over the chosen tokens of a prompt, for each head and expert:

* ``norm``: root mean square over tokens of ‖c_i‖; beside it ``head_norm``, of ‖y‖;
* ``share``: Σ_tokens c_i · y / Σ_tokens ‖y‖², the part of the head's vector that the expert
  makes. Shares of the experts and of the base sum to one; one below zero points against it.

Norms do not sum: experts may cancel each other. ``adapter_norm`` is that of Σ_i c_i.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.arguments import check_choice
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.experts.heads.slices import Part, group_size
from interp.figures.experts import contribution_figure
from interp.forward.batch import Span, TokenBatch
from interp.forward.hook_points import as_units, axis_of, count_units, hook_name
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import Hook, hooked, last_logits
from interp.heads.locate import as_encoded
from interp.models.hooked_model import HookedModel
from interp.moelora.projections import head_outputs
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises, QuestionKind
from interp.progress import progress_bar
from interp.statistics.significance import group_means

Where = Literal["object", "subject", "last"]


@dataclass(frozen=True, eq=False)
class ExpertContributions(Displayed):
    """Per prompt, over the chosen tokens. NaN: no such expert.

    Attributes:
        component: ``q``, ``k`` or ``v``.
        unit_axis: what a unit is: ``head``, or ``kv_head`` for keys and values.
        group_size: how many query heads one unit serves.
        at: which tokens were looked at.
        norm, share: Float[prompt layer unit expert].
        gate: Float[prompt layer expert], the mean gate.
        head_norm, adapter_norm, base_share: Float[prompt layer unit].
        groups: of each prompt, what is resampled together.
        reconstruction_error: the largest |base + Σ c_i − y| of any number seen.
    """

    component: Part
    unit_axis: str
    group_size: int
    at: str
    norm: Float[Tensor, "prompt layer unit expert"]
    share: Float[Tensor, "prompt layer unit expert"]
    gate: Float[Tensor, "prompt layer expert"]
    head_norm: Float[Tensor, "prompt layer unit"]
    adapter_norm: Float[Tensor, "prompt layer unit"]
    base_share: Float[Tensor, "prompt layer unit"]
    groups: tuple[str, ...]
    reconstruction_error: float

    def __post_init__(self) -> None:
        prompt, layer, unit, expert = self.norm.shape
        wanted = dict.fromkeys(("head_norm", "adapter_norm", "base_share"), (prompt, layer, unit))
        wanted |= {"share": (prompt, layer, unit, expert), "gate": (prompt, layer, expert)}
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise UserError(f"{name} has shape {tuple(getattr(self, name).shape)}, not {shape}")
        if len(self.groups) != prompt:
            raise UserError(f"{prompt} prompts but {len(self.groups)} groups")

    @property
    def relative_norm(self) -> Float[Tensor, "prompt layer unit expert"]:
        """‖c_i‖ over the head's ‖y‖."""
        return self.norm / self.head_norm[..., None]

    @property
    def adapter_relative_norm(self) -> Float[Tensor, "prompt layer unit"]:
        """‖Σ c_i‖ over the head's ‖y‖."""
        return self.adapter_norm / self.head_norm

    @cached_property
    def mean_relative_norm(self) -> Float[np.ndarray, "layer unit expert"]:
        """Mean over groups of each group's mean ``relative_norm``."""
        return group_means(self.relative_norm, self.groups).mean(axis=0)

    @cached_property
    def adapter_mean_relative_norm(self) -> Float[np.ndarray, "layer unit"]:
        """The same of ``adapter_relative_norm``."""
        return group_means(self.adapter_relative_norm, self.groups).mean(axis=0)

    def query_heads(self, unit: int) -> str:
        """The query heads that a unit serves, such as ``4`` or ``3-5``."""
        first = unit * self.group_size
        last = first + self.group_size - 1
        return str(first) if first == last else f"{first}-{last}"

    def to_dataframe(self) -> pd.DataFrame:
        """One row an expert and head, largest part of the head's norm first.

        Columns: ``component``, ``layer``, ``head`` or ``kv_head``, ``query_heads`` that it serves,
        ``expert``, ``gate``, ``norm``, ``head_norm``, ``relative_norm``, ``share``; means over
        groups.
        """
        means = {
            name: group_means(getattr(self, name), self.groups).mean(axis=0)
            for name in ("norm", "share", "gate", "head_norm")
        }
        layer, unit, expert = np.nonzero(~np.isnan(self.mean_relative_norm))
        frame = pd.DataFrame(
            {
                "component": self.component,
                "layer": layer,
                self.unit_axis: unit,
                "query_heads": [self.query_heads(int(number)) for number in unit],
                "expert": expert,
                "gate": means["gate"][layer, expert],
                "norm": means["norm"][layer, unit, expert],
                "head_norm": means["head_norm"][layer, unit],
                "relative_norm": self.mean_relative_norm[layer, unit, expert],
                "share": means["share"][layer, unit, expert],
            }
        )
        return frame.sort_values("relative_norm", ascending=False, ignore_index=True)

    def plot(self, expert: int | None = None) -> go.Figure:
        """Heat map layer × head of the part that one expert, or the whole adapter, makes up."""
        units = range(self.norm.shape[2])
        return contribution_figure(
            self.adapter_mean_relative_norm,
            self.mean_relative_norm,
            shares=group_means(self.share, self.groups).mean(axis=0),
            component=self.component,
            at=self.at,
            unit_axis=self.unit_axis,
            query_heads=[self.query_heads(unit) for unit in units] if self.group_size > 1 else None,
            expert=expert,
        )

    def _shown(self) -> Shown:
        words = (
            f"What each expert adds to the heads' {self.component} at {self.at}, "
            f"{len(self.groups)} prompts."
        )
        return Shown(words, (self.to_dataframe(),), self.plot)


@dataclass(frozen=True)
class PromptPositions:
    """Prompts, the positions of each that are looked at, and what the prompts are about.

    Attributes:
        at: Bool[prompt pos], at least one position of every prompt.
        name: how the positions were asked for.
        groups: of each prompt, what is resampled together.
    """

    batch: TokenBatch
    at: Bool[Tensor, "prompt pos"]
    name: str
    groups: tuple[str, ...]


def prompt_positions(
    model: HookedModel,
    prompts: Premises | EncodedPremises | TokenBatch,
    at: Where | Sequence[Span],
    *,
    kind: QuestionKind = "false",
) -> PromptPositions:
    """The positions that `at` names in premises' prompts of one kind, or in any tokens.

    Raises:
        UserError: an unknown place, one that tokens alone do not have, or spans that do not fit.
    """
    if isinstance(at, str) and at not in get_args(Where):
        known = ", ".join(get_args(Where))
        raise UserError(f"unknown place {at!r}; known: {known}, or one token span per prompt")
    encoded = None
    if isinstance(prompts, TokenBatch):
        batch, groups = prompts, tuple(str(index) for index in range(len(prompts)))
    else:
        encoded = as_encoded(model, prompts)
        batch, groups = encoded.batch(kind), encoded.subjects
    if at == "last":
        last = torch.zeros_like(batch.mask)
        last[:, -1] = True
        return PromptPositions(batch, last, "last", groups)
    if not isinstance(at, str):
        spans = [(int(start), int(end)) for start, end in at]
        return PromptPositions(batch, batch.span_mask(spans), "spans", groups)
    if encoded is None:
        raise UserError(f"tokens alone have no {at}: give premises, at='last', or token spans")
    spans = [getattr(item.prompt(kind), at) for item in encoded.items]
    return PromptPositions(batch, batch.span_mask(spans), at, groups)


def expert_contributions(
    model: HookedModel,
    prompts: Premises | EncodedPremises | TokenBatch,
    *,
    component: Part = "q",
    at: Where | Sequence[Span] = "object",
    kind: QuestionKind = "false",
    progress: bool = True,
) -> ExpertContributions:
    """Decompose the queries, keys or values of an adapted model's heads into experts.

    Args:
        model: from `interp.moelora.hooked`.
        prompts: premises, or any left-padded tokens.
        component: ``q``, ``k`` or ``v``; the last two belong to groups of query heads where the
            model groups them, and the result says so.
        at: which tokens: the false ``object``, the ``subject``, the ``last`` one, or a token span
            [start, end) per prompt, counted in the unpadded prompt.
        kind: which of the premises' prompts.

    Raises:
        UserError: no experts on that projection, or tokens that the prompts do not have.
    """
    positions = prompt_positions(model, prompts, at, kind=kind)
    return contributions_at(model, positions, (component,), progress=progress)[component]


@torch.no_grad()
def contributions_at(
    model: HookedModel,
    positions: PromptPositions,
    components: Sequence[Part],
    *,
    progress: bool = True,
) -> dict[Part, ExpertContributions]:
    """The contributions of experts to several components of the heads, in one pass."""
    batch = positions.batch
    sums: dict[Part, _Sums] = {name: _Sums(model, name, len(batch)) for name in components}

    def run_part(part: TokenBatch, rows: range) -> None:
        prompts = torch.arange(rows.start, rows.stop)
        at = positions.at[prompts.to(positions.at.device)]
        with ExitStack() as stack:
            hooks = [hook for into in sums.values() for hook in into.hooks(prompts, at, stack)]
            stack.enter_context(hooked(model, hooks))
            last_logits(model, part)

    with progress_bar(total=len(batch), description="contributions", shown=progress) as bar:
        for _ in over_parts(batch, run_part, bar=bar):
            pass
    return {name: found.result(positions) for name, found in sums.items()}


class _Sums:
    """Sums over the chosen tokens of each prompt, for one component."""

    def __init__(self, model: HookedModel, component: Part, n_prompts: int) -> None:
        self.component: Part = component
        self.parts = head_outputs(model, check_choice("component", component, get_args(Part)))
        self.group_size = group_size(model, component)
        n_experts = max(part.projection.n_experts for part in self.parts.values())
        shape = (n_prompts, len(model.blocks), count_units(model, component))
        self.norm, self.dot = (torch.full((*shape, n_experts), torch.nan) for _ in range(2))
        self.gate = torch.full((*shape[:2], n_experts), torch.nan)
        self.whole, self.added, self.base = (torch.full(shape, torch.nan) for _ in range(3))
        self.error = 0.0

    def hooks(
        self, prompts: Int[Tensor, " prompt"], at: Bool[Tensor, "row pos"], stack: ExitStack
    ) -> list[Hook]:
        """Hooks that note the experts' values, and sum when the projection's output comes.

        A further hook notes what the projection gives without experts, until `stack` ends.
        """
        found: list[Hook] = []
        for layer, part in self.parts.items():
            seen: dict[str, Tensor] = {}
            keep_base = partial(_keep_output, seen)
            stack.callback(part.base.register_forward_hook(keep_base).remove)
            for point in (part.projection.gate, part.projection.expert_out):
                found.append((point, partial(_keep, seen)))
            add = partial(self._add, seen=seen, layer=layer, prompts=prompts, at=at)
            found.append((hook_name(self.component, layer), add))
        return found

    def _add(
        self,
        value: Tensor,
        hook: Any,
        *,
        seen: dict[str, Tensor],
        layer: int,
        prompts: Int[Tensor, " prompt"],
        at: Bool[Tensor, "row pos"],
    ) -> None:
        part, at = self.parts[layer], at.to(value.device)
        row = at.nonzero()[:, 0]
        names = ("hook_gate", "hook_expert_out", "base")
        gate, out, base = (seen.pop(name)[at].double() for name in names)
        y = as_units(value, self.component)[at].double()
        c = gate[:, :, None, None] * out[:, :, part.columns]
        c = rearrange(c, "token expert unit d_head -> token unit expert d_head")
        base = rearrange(base, "token (unit d_head) -> token unit d_head", d_head=y.shape[-1])
        added = reduce(c, "token unit expert d_head -> token unit d_head", "sum")
        self.error = max(self.error, float((base + added - y).abs().max()))

        def mean(of_tokens: Tensor) -> Tensor:
            sums = of_tokens.new_zeros(len(at), *of_tokens.shape[1:])
            counts = at.sum(dim=1).double().reshape(-1, *[1] * (of_tokens.ndim - 1))
            return (sums.index_add_(0, row, of_tokens) / counts).float().cpu()

        experts = slice(0, part.projection.n_experts)
        self.norm[prompts, layer, :, experts] = mean((c * c).sum(dim=-1))
        self.dot[prompts, layer, :, experts] = mean((c * y[:, :, None]).sum(dim=-1))
        self.gate[prompts, layer, experts] = mean(gate)
        self.whole[prompts, layer] = mean((y * y).sum(dim=-1))
        self.added[prompts, layer] = mean((added * added).sum(dim=-1))
        self.base[prompts, layer] = mean((base * y).sum(dim=-1))

    def result(self, positions: PromptPositions) -> ExpertContributions:
        return ExpertContributions(
            component=self.component,
            unit_axis=str(axis_of(self.component)),
            group_size=self.group_size,
            at=positions.name,
            norm=self.norm.sqrt(),
            share=self.dot / self.whole[..., None],
            gate=self.gate,
            head_norm=self.whole.sqrt(),
            adapter_norm=self.added.sqrt(),
            base_share=self.base / self.whole,
            groups=positions.groups,
            reconstruction_error=self.error,
        )


def _keep(seen: dict[str, Tensor], value: Tensor, hook: Any) -> None:
    seen[hook.name.rpartition(".")[2]] = value


def _keep_output(seen: dict[str, Tensor], module: Any, args: Any, output: Tensor) -> None:
    seen["base"] = output
