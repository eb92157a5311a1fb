"""What a head writes on actual input: the tokens that its output promotes and suppresses.

The head's output at a position (its attention times the values, through its output projection) goes
through the final norm, at the scale that the norm has there in this run, and the unembedding. That
is the head's column of `interp.patching.logit_attribution`, for every token of the vocabulary. It
is what the head says to the logits directly; what later heads and MLPs make of it is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import listed, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.edges import contribution_bars
from interp.figures.theme import shown_token
from interp.forward.batch import Prompts, TokenBatch
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import record_run
from interp.forward.pass_tokens import pass_tokens
from interp.forward.prompts import batch_for
from interp.heads.headset import Head
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require
from interp.patching.circuit import head_node
from interp.patching.edges.frozen_norm import FrozenNorm
from interp.patching.edges.layer_parts import LayerParts, find_parts
from interp.patching.sweep import check_units
from interp.patching.unembedding import check_unembedding, token_names, unembedded, unembedding
from interp.precision import result_dtype, widened


@dataclass(frozen=True, eq=False)
class HeadWriting(Displayed):
    """The tokens that one head promotes and suppresses most, at some positions.

    Logits are less their mean over the vocabulary, which no probability depends on.

    Attributes:
        head: (layer, head).
        positions: counted from the prompts' end: -1 is the last.
        promoted, suppressed: Int[prompt position k], token ids, the strongest first.
        up, down: Float[prompt position k], what the head adds to their logits.
        read: Int[prompt position], the token at each position.
        names: the text of each token.
    """

    head: Head
    positions: tuple[int, ...]
    promoted: Int[Tensor, "prompt position k"]
    suppressed: Int[Tensor, "prompt position k"]
    up: Float[Tensor, "prompt position k"]
    down: Float[Tensor, "prompt position k"]
    read: Int[Tensor, "prompt position"]
    names: Mapping[int, str]

    def to_dataframe(self) -> "pd.DataFrame":
        """One row for each prompt, position and place among the strongest.

        Columns: ``prompt``, ``position``, ``read``, ``rank``, ``promoted``, ``up``,
        ``suppressed``, ``down``.
        """
        rows = [
            {
                "prompt": prompt,
                "position": position,
                "read": self.names[int(self.read[prompt, at])],
                "rank": rank + 1,
                "promoted": self.names[int(self.promoted[prompt, at, rank])],
                "up": float(self.up[prompt, at, rank]),
                "suppressed": self.names[int(self.suppressed[prompt, at, rank])],
                "down": float(self.down[prompt, at, rank]),
            }
            for prompt in range(len(self.read))
            for at, position in enumerate(self.positions)
            for rank in range(self.up.shape[2])
        ]
        return pd.DataFrame(rows)

    def plot(self, *, prompt: int = 0, position: int = -1) -> "go.Figure":
        """Bars of the tokens that the head promotes and suppresses at one position."""
        if position not in self.positions or not 0 <= prompt < len(self.read):
            raise UserError(f"there is no position {position} of prompt {prompt} in this result")
        at = self.positions.index(position)
        ids = torch.cat([self.promoted[prompt, at], self.suppressed[prompt, at].flip(0)]).tolist()
        values = torch.cat([self.up[prompt, at], self.down[prompt, at].flip(0)]).tolist()
        # Two tokens may look alike: their ranks keep the bars apart.
        texts = [shown_token(self.names[token], space=True) for token in ids]
        shown = [f"{i}. {text}" for i, text in enumerate(texts, start=1)]
        table = pd.DataFrame({"component": shown, "logits": values})
        read = shown_token(self.names[int(self.read[prompt, at])])
        title = f"what {head_node(*self.head)} writes at “{read}”"
        return contribution_bars(table, title=title)

    def _shown(self) -> Shown:
        text = (
            f"Tokens that head {head_node(*self.head)} promotes and suppresses, in logits less "
            "their mean over the vocabulary."
        )
        return Shown(text, (self.to_dataframe(),), self.plot)


@checked
def head_writing(
    model: HookedModel,
    prompts: Prompts,
    head: Head,
    *,
    positions: Sequence[int] = (-1,),
    k: int = 10,
) -> HeadWriting:
    """The tokens whose logits a head raises and lowers most, where it writes.

    Args:
        prompts: token ids.
        head: (layer, head).
        positions: counted from the prompts' end; by default the last.
        k: how many tokens up and down.

    Raises:
        UserError: a head or position that is not there, or a model whose logits are not a norm and
            an unembedding of the residual stream.
    """
    k, batch = whole_number("k", k, least=1), batch_for(model, prompts)
    k = min(k, model.cfg.d_vocab)
    logits = written_logits(model, batch, head, positions=positions)
    logits = logits - logits.mean(dim=-1, keepdim=True)
    up, down = logits.topk(k), logits.topk(k, largest=False)
    read = batch.tokens[:, list(positions)].cpu()
    ids = torch.cat([up.indices.flatten(), down.indices.flatten(), read.flatten()])
    return HeadWriting(
        head=head,
        positions=tuple(positions),
        promoted=up.indices,
        suppressed=down.indices,
        up=up.values,
        down=down.values,
        read=read,
        names=token_names(model, ids),
    )


@checked
@torch.no_grad()
def written_logits(
    model: HookedModel, prompts: Prompts, head: Head, *, positions: Sequence[int] = (-1,)
) -> Float[Tensor, "prompt position d_vocab"]:
    """What one head adds to the logits of every token, at the final norm's scale in this run.

    Args:
        positions: counted from the prompts' end.

    Raises:
        UserError: see ``head_writing``.
    """
    batch = batch_for(model, prompts)
    require(model, "residual")
    check_units(model, [head])
    chosen = _checked_positions(positions, int(batch.mask.sum(dim=1).min()))
    parts = find_parts(model, batch)[head[0]]

    def written(part: TokenBatch, rows: range) -> Tensor:
        return _written(model, part, head, parts=parts, positions=chosen)

    passes = pass_tokens(model, batch.width, least=1, kept=["z", "resid_post"])
    found = torch.cat(list(over_parts(batch, written, batch_tokens=passes)))
    return found.to("cpu", result_dtype(model))


def _written(
    model: HookedModel,
    batch: TokenBatch,
    head: Head,
    *,
    parts: LayerParts,
    positions: Sequence[int],
) -> Float[Tensor, "prompt position d_vocab"]:
    start = batch.width + min(positions)
    run = record_run(model, batch, start=start, keep=("z", "resid_post"), plain=False)
    at = [position + batch.width - run.start for position in positions]
    z, end = run.values["z"][head[0]][:, at], run.values["resid_post"][-1].squeeze(2)
    end = widened(end)
    check_unembedding(
        model,
        unembedded(model, widened(model.ln_final(end[:, -1:]))[:, 0]),
        widened(run.logits),
    )
    part = parts.head_parts(widened(z))[:, head[1]]
    weight, _ = unembedding(model)
    return FrozenNorm(model.ln_final, end[:, at]).part(part) @ widened(weight).T


def _checked_positions(positions: Any, shortest: int) -> list[int]:
    """Positions from the end, each in every prompt. Raises UserError for others, and for none."""
    chosen = [whole_number("a position", at) for at in listed("positions", positions)]
    if not chosen or not all(-shortest <= position < 0 for position in chosen):
        raise UserError(
            f"positions are counted from the end, -1 to -{shortest} in the shortest prompt, not "
            f"{chosen or 'none'}"
        )
    return chosen
