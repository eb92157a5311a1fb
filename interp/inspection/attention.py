"""Attention patterns of heads over the tokens of one prompt.

Row i of a head's pattern is the attention of position i to each position up to i; every row sums to
one. Hooks on the model are active, so a pattern read inside ``interp.constrain`` is the constrained
one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import pairs_of_numbers, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.attention import attention_figure
from interp.forward.batch import Span, TokenBatch
from interp.forward.hook_points import check_component, hook_name
from interp.forward.partial import HookFunction, device_of, hooked, last_logits
from interp.heads.headset import Head, HeadSet
from interp.inspection.read_prompt import ReadPrompt, read_prompt
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.patching.sweep import check_units
from interp.premises.relation import FilledQuestion


@dataclass(frozen=True, eq=False)
class AttentionPattern(Displayed):
    """Patterns of some heads on one prompt.

    Attributes:
        heads: (layer, head) of each pattern.
        tokens: the prompt's tokens as text.
        pattern: Float[head query key], shares; zero above the diagonal.
        spans: by name, the tokens [start, end) of pieces of the question, such as ``object``.
        start: the first token of the question.
    """

    heads: tuple[Head, ...]
    tokens: tuple[str, ...]
    pattern: Float[Tensor, "head query key"]
    spans: Mapping[str, Span] = field(default_factory=dict)
    start: int = 0

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if tuple(self.pattern.shape) != (len(self.heads), n, n) or not self.heads:
            raise UserError(
                f"{len(self.heads)} heads and {n} tokens, but patterns of shape "
                f"{tuple(self.pattern.shape)}"
            )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head: ``layer``, ``head``, and shares of the last token's attention.

        The shares are a column for each span, ``question`` (everything from the question on, spans
        included) and ``before`` (the template's preamble).
        """
        rows = []
        for (layer, head), pattern in zip(self.heads, self.pattern, strict=True):
            last = pattern[-1]
            row: dict[str, Any] = {"layer": layer, "head": head}
            row |= {name: float(last[start:end].sum()) for name, (start, end) in self.spans.items()}
            row["question"] = float(last[self.start :].sum())
            row["before"] = float(last[: self.start].sum())
            rows.append(row)
        return pd.DataFrame(rows)

    def attended(self, k: int = 5, *, query: int = -1) -> pd.DataFrame:
        """The ``k`` tokens that each head looks at most, from one position.

        Columns: ``layer``, ``head``, ``rank``, ``position``, ``token``, ``attention`` (a share).

        Args:
            query: the position that looks, by default the last.

        Raises:
            UserError: no such position, or ``k`` below one.
        """
        k, query = whole_number("k", k, least=1), whole_number("query", query)
        n = len(self.tokens)
        if not -n <= query < n:
            raise UserError(f"there is no position {query} in a prompt of {n} tokens")
        shares, places = self.pattern[:, query].topk(min(k, query % n + 1))
        rows = [
            (*head, rank, place, self.tokens[place], share)
            for head, of_head, where in zip(
                self.heads, shares.tolist(), places.tolist(), strict=True
            )
            for rank, (share, place) in enumerate(zip(of_head, where, strict=True), start=1)
        ]
        columns = ["layer", "head", "rank", "position", "token", "attention"]
        return pd.DataFrame(rows, columns=columns)

    def plot(self, *, start: int | None = None) -> go.Figure:
        """A heat map query × key for each head, spans marked.

        Args:
            start: the first token with a row and a column of its own, by default the question's;
                earlier ones share one column.
        """
        return attention_figure(
            self.pattern.numpy(),
            self.tokens,
            heads=self.heads,
            spans=self.spans,
            start=self.start if start is None else start,
        )

    def _shown(self) -> Shown:
        words = (
            f"Attention of {len(self.heads)} head{'' if len(self.heads) == 1 else 's'} over "
            f"{len(self.tokens)} tokens. The table: shares of the last token's attention."
        )
        return Shown(words, (self.to_dataframe(),), self.plot)


@checked
@torch.no_grad()
def attention_pattern(
    model: HookedModel,
    prompt: str | FilledQuestion,
    heads: HeadSet | Iterable[Head],
    *,
    false_object: str | None = None,
    opening: str = "",
    chat: bool = True,
    system: str | None = None,
) -> AttentionPattern:
    """The patterns of some heads on one prompt, from one forward pass.

    Args:
        heads: (layer, head) tuples or a HeadSet.
        prompt, false_object, opening, chat, system: see ``interp.inspection.read_prompt``; the
            words of ``false_object`` are marked.

    Raises:
        UserError: no heads, heads that the model does not have, a model without patterns, or a
            prompt that ``read_prompt`` refuses.
    """
    check_hooked(model)
    read = read_prompt(
        model, prompt, false_object=false_object, opening=opening, chat=chat, system=system
    )
    return patterns_of(model, read, heads)


@torch.no_grad()
def patterns_of(
    model: HookedModel, read: ReadPrompt, heads: HeadSet | Iterable[Head]
) -> AttentionPattern:
    """`attention_pattern` of a prompt that is in tokens already."""
    check_component("pattern", model)
    chosen = tuple(pairs_of_numbers("heads", heads))
    if not chosen:
        raise UserError("name at least one head, as (layer, head)")
    check_units(model, chosen)
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> HookFunction:
        return lambda value, hook: seen.update({layer: value[0].detach().float().cpu()})

    layers = sorted({layer for layer, _ in chosen})
    with hooked(model, [(hook_name("pattern", layer), keep(layer)) for layer in layers]):
        last_logits(model, TokenBatch.from_lists([read.ids], device=device_of(model)))
    if missing := [layer for layer in layers if layer not in seen]:
        raise UserError(
            f"layer {missing[0]} gave no pattern: load the model with attention 'eager'"
        )
    patterns = [seen[layer][head] for layer, head in chosen]
    return AttentionPattern(chosen, read.tokens, torch.stack(patterns), read.spans, read.start)
