"""One page about one head: its effect, where it looks, what it writes, and its edges.

On one prompt: the attention pattern, the tokens that its output promotes and suppresses, and its
direct part of the logits beside all other components. Over the prompts of a run, where one is
given: its effects with their intervals, and the largest edges into and out of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.arguments import as_path, listed, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.tables import where
from interp.figures.theme import shown_token
from interp.files.documents import write_atomically
from interp.forward.batch import TokenBatch
from interp.forward.partial import last_logits
from interp.heads.effects import HeadEffects
from interp.heads.headset import Head
from interp.heads.joint import JointEffects
from interp.inspection.attention import AttentionPattern, patterns_of
from interp.inspection.head_writing import HeadWriting, head_writing
from interp.inspection.read_prompt import ReadPrompt, read_prompt
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from interp.models.load import model_info
from interp.patching import EdgeEffects, LogitAttribution, PatchEffects, logit_attribution
from interp.patching.circuit import head_node
from interp.patching.edges.circuit_of_edges import nodes_of
from interp.patching.sweep import check_units
from interp.patching.unembedding import checked_tokens, token_names
from interp.premises.relation import FilledQuestion
from interp.report.page import PlacedFigure, render_page
from interp.report.text_table import text_table

HeadResult = HeadEffects | JointEffects | PatchEffects | EdgeEffects
EFFECT_COLUMNS = (
    *("what", "effect", "ci_low", "ci_high", "p_value", "q_value", "rank", "of", "order"),
)
"""``order``: whether the rank, from 1 to ``of``, is by ``signed`` or by ``absolute`` effect."""


@dataclass(frozen=True, eq=False)
class HeadCard(Displayed):
    """What is known of one head.

    Attributes:
        head: (layer, head).
        model: the model's name.
        pattern: its attention on the prompt.
        writing: the tokens that it promotes and suppresses at the last position.
        attribution: direct parts of the logits of ``answers`` by all components.
        answers: the tokens, as text.
        effects: a row for each result that has effects of heads: ``EFFECT_COLUMNS``.
        edges_in, edges_out: ``writer``, ``reader``, ``score``, ``ci_low``, ``ci_high``, ``rank``
            among all edges; None without scores of edges.
    """

    head: Head
    model: str
    pattern: AttentionPattern
    writing: HeadWriting
    attribution: LogitAttribution
    answers: tuple[str, ...]
    effects: "pd.DataFrame"
    edges_in: "pd.DataFrame | None" = None
    edges_out: "pd.DataFrame | None" = None

    @property
    def name(self) -> str:
        """The head as circuits name it: ``a3.h1``."""
        return head_node(*self.head)

    def sentences(self) -> list[str]:
        """What the card holds, in sentences."""
        found = [_effect_sentence(row) for row in self.effects.to_dict("records")]
        attended = self.pattern.attended(3)
        looks = [
            f"“{shown_token(token)}” ({share:.2f})"
            for token, share in zip(attended["token"], attended["attention"], strict=True)
        ]
        written = self.writing.to_dataframe().head(5)
        up, down = (
            ", ".join(f"“{shown_token(token, space=True)}”" for token in written[name])
            for name in ("promoted", "suppressed")
        )
        place = self.attribution.components.index(self.name)
        parts = self.attribution.difference().double().mean(dim=0)
        part, rank = float(parts[place]), int((parts.abs() > parts[place].abs()).sum()) + 1
        aim = " less ".join(f"“{shown_token(answer)}”" for answer in self.answers[:2])
        return [
            *found,
            f"From the last token it looks most at {', '.join(looks)}.",
            f"There it promotes {up} and suppresses {down}.",
            f"Directly it adds {part:+.3g} to the logit of {aim}, which is "
            f"{float(parts.sum()):.3g}: rank {rank} by size of {len(parts)} components.",
        ]

    def to_html(self) -> str:
        """The card as one self-contained page."""
        place = PlacedFigure.place
        start = self.pattern.start
        written = self.writing.to_dataframe()
        columns = ["rank", "promoted", "up", "suppressed", "down"]
        return render_page(
            "card.html.j2",
            title=f"{self.name} of {self.model}",
            setting=f"layer {self.head[0]}, head {self.head[1]}",
            sentences=self.sentences(),
            prompt="".join(self.pattern.tokens[start:]),
            before=start,
            effects=_text(self.effects) if len(self.effects) else None,
            pattern=place("pattern", self.pattern.plot(), "Each row: where one token looks."),
            attended=_text(self.pattern.attended(10).drop(columns=["layer", "head"]), decimals=3),
            writing=place("writing", self.writing.plot(), "Less the mean over the vocabulary."),
            written=_text(written.filter(items=columns), decimals=3),
            attribution=place(
                "attribution",
                self.attribution.plot(mark=self.name),
                f"Largest direct parts of the logits; that of {self.name} is framed.",
            ),
            edges={
                name: _text(table)
                for name, table in (("into it", self.edges_in), ("out of it", self.edges_out))
                if table is not None
            },
        )

    def save(self, path: str | Path) -> Path:
        """Write the page; returns its path."""
        return write_atomically(as_path("path", path), self.to_html())

    def _shown(self) -> Shown:
        tables = [self.effects] if len(self.effects) else []
        tables += [self.pattern.attended(5), self.writing.to_dataframe().head(5)]
        tables += [table.head(5) for table in (self.edges_in, self.edges_out) if table is not None]
        words = f"Head {self.name} of {self.model}. {' '.join(self.sentences())} Page: .save(path)"
        return Shown(words, tuple(tables), self.pattern.plot)


@checked
def head_card(
    model: HookedModel,
    head: Head,
    prompt: str | FilledQuestion | ReadPrompt,
    *,
    answers: Sequence[str | int] = (),
    results: Iterable[HeadResult] = (),
    k: int = 10,
    false_object: str | None = None,
    opening: str = "",
    chat: bool = True,
    system: str | None = None,
) -> HeadCard:
    """What one head does: on a prompt, and in the results of runs.

    Args:
        head: (layer, head).
        answers: the tokens whose logits are taken apart, as texts (" Paris", of which the first
            token counts) or token ids; of two, the first less the second. By default the model's
            likeliest token.
        results: effects of heads (`interp.locate_heads`, `interp.patching.patch` of ``z``) and
            scores of edges (`interp.patching.patch_edges`) on this model.
        k: how many tokens and edges are listed.
        prompt, false_object, opening, chat, system: see `interp.inspection.read_prompt`.

    Raises:
        UserError: no such head, results of another model or without heads, a model whose logits
            cannot be taken apart, or a prompt that cannot be read.
    """
    check_units(model, [head])
    k = whole_number("k", k, least=1)
    read = prompt
    if not isinstance(read, ReadPrompt):
        read = read_prompt(
            model, read, false_object=false_object, opening=opening, chat=chat, system=system
        )
    pattern = patterns_of(model, read, [head])
    ids = [list(read.ids)]
    tokens = _answer_tokens(model, answers, ids)
    names = token_names(model, tokens)
    chosen = listed("results", results, "results of patching")
    edges = [result for result in chosen if isinstance(result, EdgeEffects)]
    into, out = _edges_of(head, edges[0], k) if edges else (None, None)
    rows = [row for result in chosen if (row := _effect_row(head, result)) is not None]
    return HeadCard(
        head=head,
        model=str(model_info(model).spec),
        pattern=pattern,
        writing=head_writing(model, ids, head, k=k),
        attribution=logit_attribution(model, ids, tokens),
        answers=tuple(names[token] for token in tokens[0].tolist()),
        effects=pd.DataFrame(rows, columns=list(EFFECT_COLUMNS)),
        edges_in=into,
        edges_out=out,
    )


def _answer_tokens(
    model: HookedModel, answers: Sequence[str | int], ids: list[list[int]]
) -> torch.Tensor:
    """Int[1 token]: the ids of the answers, or the likeliest next token."""
    found = []
    for answer in listed("answers", answers, "texts or token ids"):
        if isinstance(answer, str):
            pieces = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
            if not pieces:
                raise UserError("an answer is empty: give it at least one word")
            answer = pieces[0]
        found.append(whole_number("an answer's token", answer, least=0))
    if not found:
        found = [int(last_logits(model, TokenBatch.from_lists(ids))[0, -1].argmax())]
    return checked_tokens(model, torch.tensor([found]), 1)


def _effect_row(head: Head, result: Any) -> dict[str, Any] | None:
    """The head's row in a result; None for scores of edges.

    Raises:
        UserError: a result without heads, or in which this head was not measured.
    """
    if isinstance(result, EdgeEffects):
        return None
    table = result.to_dataframe()
    if isinstance(result, PatchEffects):
        what = f"{result.component}, {result.method}, source {result.source}: {result.metric}"
        if result.axes != ("prompt", "layer", "head"):
            raise UserError(
                f"these effects are over {', '.join(result.axes)}, not over prompt, layer, head"
            )
        shape, order = result.shape, "absolute"
    else:
        what = f"site {result.site}: logit difference"
        shape = result.values.shape[1:] if isinstance(result, HeadEffects) else result.shape
        order = "signed"
    if head[0] >= shape[0] or head[1] >= shape[1]:
        raise UserError(f"the results have no head {head_node(*head)}: they are of another model")
    row = where(table, (table["layer"] == head[0]) & (table["head"] == head[1]))
    if row.empty:
        raise UserError(
            f"head {head_node(*head)} was not measured in a result ({what}): leave that result "
            "out, or measure all heads"
        )
    found = {**row.iloc[0].to_dict(), "what": what, "of": len(table), "order": order}
    return found | {"rank": int(found["rank"])}


def _edges_of(head: Head, edges: EdgeEffects, k: int) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The ``k`` largest edges into a head, and out of it."""
    node = head_node(*head)
    if node not in edges.graph.writers:
        raise UserError(f"the edges have no head {node}: they are of another model")
    table = edges.to_dataframe()
    reading = {name for name in edges.graph.readers if node in nodes_of(edges.graph, name)}
    into = where(table, table["reader"].isin(reading))
    out = where(table, table["writer"] == node)
    return into.head(k).reset_index(drop=True), out.head(k).reset_index(drop=True)


def _effect_sentence(row: Mapping[Any, Any]) -> str:
    low, high = row["ci_low"], row["ci_high"]
    interval = "" if low != low else f" [{low:.3g}, {high:.3g}]"
    return (
        f"Its effect ({row['what']}) is {row['effect']:+.3g}{interval}: rank {row['rank']} of "
        f"{row['of']} heads by {row['order']} effect."
    )


def _text(table: "pd.DataFrame", *, decimals: int | None = None) -> "pd.DataFrame":
    """The table as text, with rounded numbers and visible tokens; see `text_table`."""
    tokens = {
        name: [shown_token(token, longest=24, space=name != "token") for token in table[name]]
        for name in ("token", "promoted", "suppressed")
        if name in table
    }
    return text_table(table.assign(**tokens), decimals=decimals)
