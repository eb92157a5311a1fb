"""The logit lens: what the model would say at each position if it stopped after each layer.

The residual stream after a layer goes through the final norm and the unembedding, as if the layers
above were not there (nostalgebraist 2020, "interpreting GPT: the logit lens"). Below the last
layers it reads a stream that was not made to be read in this way: read it as a picture, not as what
the model believes. After the last layer it gives the model's of_row logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.arguments import check_choice, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.lens import lens_figure
from interp.forward.batch import RUN_TOKENS, Prompts, TokenBatch
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import record_run
from interp.forward.pass_tokens import pass_tokens
from interp.forward.prompts import batch_for
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel
from interp.patching.unembedding import (
    ROWS,
    check_unembedding,
    checked_tokens,
    token_names,
    unembedded,
)
from interp.precision import result_dtype, widened

Colour = Literal["top", "tokens"]


@dataclass(frozen=True, eq=False)
class LogitLens(Displayed):
    """What the stream after each layer says at each position.

    The axis ``layer`` counts the layers that have run: 0 is the embedding, the last one the model.
    Padding is NaN, and -1 in ``top``.

    Attributes:
        logits, log_probabilities: Float[prompt layer pos token], of the chosen tokens.
        ranks: Int[prompt layer pos token], from one.
        top: Int[prompt layer pos], the likeliest token of all.
        top_probability: Float[prompt layer pos].
        batch: the prompts.
        tokens: Int[prompt token], the chosen ones.
        names: the text of every token that is named here.
    """

    logits: Float[Tensor, "prompt layer pos token"]
    log_probabilities: Float[Tensor, "prompt layer pos token"]
    ranks: Int[Tensor, "prompt layer pos token"]
    top: Int[Tensor, "prompt layer pos"]
    top_probability: Float[Tensor, "prompt layer pos"]
    batch: TokenBatch
    tokens: Int[Tensor, "prompt token"]
    names: Mapping[int, str]

    def difference(self) -> Float[Tensor, "prompt layer pos"]:
        """The first token's logit less the second's, or the only token's."""
        if self.logits.shape[3] == 1:
            return self.logits[..., 0]
        return self.logits[..., 0] - self.logits[..., 1]

    def to_dataframe(self, *, position: int | None = None) -> "pd.DataFrame":
        """One row for each prompt, layer, position and chosen token.

        Columns: ``prompt``, ``layer``, ``position`` (of the prompt without padding), ``read`` (the
        token there), ``top`` and ``top_probability``, ``token``, ``logit``, ``log_probability``,
        ``rank``.

        Args:
            position: only this one, counted from the end if it is below zero.
        """
        frames = []
        for prompt, offset in enumerate(self.batch.offsets.tolist()):
            n_layers, width, n_tokens = self.logits.shape[1:]
            n_read = width - offset
            places = range(n_read) if position is None else [_place(position, n_read)]
            index = pd.MultiIndex.from_product(
                [range(n_layers), places, range(n_tokens)], names=["layer", "position", "of"]
            )
            layer, at, of = (torch.tensor(index.get_level_values(i).to_numpy()) for i in range(3))
            where = (prompt, layer, at + offset, of)
            frames.append(
                pd.DataFrame(
                    {
                        "prompt": prompt,
                        "layer": layer.numpy(),
                        "position": at.numpy(),
                        "read": self._names(self.batch.tokens[prompt, at + offset]),
                        "top": self._names(self.top[where[:3]]),
                        "top_probability": self.top_probability[where[:3]].numpy(),
                        "token": self._names(self.tokens[prompt, of]),
                        "logit": self.logits[where].numpy(),
                        "log_probability": self.log_probabilities[where].numpy(),
                        "rank": self.ranks[where].numpy(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def plot(self, *, prompt: int = 0, start: int = 0, colour: Colour = "top") -> "go.Figure":
        """A grid of one prompt, layer × position: the likeliest token in each cell.

        Args:
            start: the first position with a column.
            colour: by the ``top`` token's probability, or by the chosen ``tokens``: the first one's
                logit less the second's.
        """
        check_choice("colour", colour, get_args(Colour))
        prompt = whole_number("prompt", prompt, least=0)
        if prompt >= len(self.batch):
            raise UserError(f"there is no prompt {prompt}: there are {len(self.batch)}")
        offset = int(self.batch.offsets[prompt])
        start = _place(start, self.batch.width - offset)
        shown = slice(offset + start, None)
        chosen = [self.names[token] for token in self.tokens[prompt].tolist()]
        values = self.top_probability if colour == "top" else self.difference()
        return lens_figure(
            values[prompt, :, shown].numpy(),
            [self._names(of_layer) for of_layer in self.top[prompt, :, shown]],
            self._names(self.batch.tokens[prompt, shown]),
            start=start,
            unit=None if colour == "top" else " less ".join(chosen[:2]),
        )

    def _names(self, ids: Tensor) -> list[str]:
        return [self.names.get(token, "") for token in ids.tolist()]

    def _shown(self) -> Shown:
        last = self.to_dataframe(position=-1)
        text = (
            f"Logit lens of {len(self.batch)} prompts after 0 to {self.logits.shape[1] - 1} "
            "layers. The table: the last position."
        )
        return Shown(text, (last,), self.plot)


@checked
@torch.no_grad()
def logit_lens(model: HookedModel, batch: Prompts, tokens: Tensor | Sequence[Any]) -> LogitLens:
    """What the residual stream after each layer says, through the final norm and unembedding.

    Args:
        batch: the prompts.
        tokens: Int[prompt], or Int[prompt token]: those whose logits are kept, say the answer and
            the wrong answer. The likeliest of all tokens is kept beside them.

    Raises:
        UserError: tokens that do not fit the prompts or the vocabulary, or a model whose logits are
            not a norm and an unembedding of the stream (it caps its logits, say, or scales them).
    """
    prompts = batch_for(model, batch)
    wanted = checked_tokens(model, tokens, len(prompts))

    def seen(part: TokenBatch, rows: range) -> dict[str, Tensor]:
        return _seen(model, part, wanted[rows.start : rows.stop].to(part.tokens.device))

    passes = pass_tokens(model, prompts.width, least=RUN_TOKENS, kept=["resid_post"])
    parts = list(over_parts(prompts, seen, batch_tokens=passes))
    found = {name: torch.cat([part[name] for part in parts], dim=0).cpu() for name in parts[0]}
    ids = torch.cat([found["top"].flatten(), wanted.flatten(), prompts.tokens.cpu().flatten()])
    names = token_names(model, ids[ids >= 0])
    return LogitLens(
        batch=TokenBatch.of(prompts, device="cpu"), tokens=wanted, names=names, **found
    )


def _seen(model: HookedModel, batch: TokenBatch, tokens: Tensor) -> dict[str, Tensor]:
    """The tensors of a `LogitLens` for some prompts."""
    run = record_run(model, batch, keep=("resid_post",), plain=False)
    ends = run.values["resid_post"].squeeze(3)  # [layer prompt pos d_model]
    stream = torch.cat([run.resid_pre[:1], ends]).transpose(0, 1)  # [prompt layer pos d_model]
    real = batch.mask[:, None].expand(stream.shape[:3])
    of_row, dtype = tokens[:, None, None].expand(*real.shape, -1)[real], result_dtype(model)
    n_real, n_tokens = of_row.shape
    flat = {name: of_row.new_empty(n_real, n_tokens, dtype=dtype) for name in ("logits", "logs")}
    ranks, top = torch.empty_like(of_row), of_row.new_empty(n_real)
    sure = of_row.new_empty(n_real, dtype=dtype)
    where, rows = real.nonzero(), range(0, n_real, ROWS)
    for some in (slice(begin, begin + ROWS) for begin in rows):
        logits = unembedded(model, widened(model.ln_final(stream[tuple(where[some].T)][None]))[0])
        logs = logits.log_softmax(dim=-1)
        chosen = logits.gather(1, of_row[some])
        flat["logits"][some], flat["logs"][some] = chosen, logs.gather(1, of_row[some])
        ranks[some] = (logits[:, None] > chosen[:, :, None]).sum(dim=-1) + 1
        best = logs.max(dim=-1)
        sure[some], top[some] = best.values.exp(), best.indices
    last = widened(model.ln_final(stream[:, -1, -1:]))[:, 0]
    check_unembedding(model, unembedded(model, last), widened(run.logits))
    shape = (*real.shape, n_tokens)
    return {
        "logits": _placed(flat["logits"], real, shape, missing=torch.nan),
        "log_probabilities": _placed(flat["logs"], real, shape, missing=torch.nan),
        "ranks": _placed(ranks, real, shape, missing=-1),
        "top": _placed(top, real, shape[:3], missing=-1),
        "top_probability": _placed(sure, real, shape[:3], missing=torch.nan),
    }


def _placed(
    values: Tensor,
    at: Bool[Tensor, "prompt layer pos"],
    shape: Sequence[int],
    *,
    missing: float | int,
) -> Tensor:
    """Values of the real positions at their places, and ``missing`` in the padding."""
    found = values.new_full(tuple(shape), missing)
    found[at] = values
    return found


def _place(position: int, n_positions: int) -> int:
    """A position counted from the start. Raises UserError for one that the prompt lacks."""
    position = whole_number("position", position)
    if not -n_positions <= position < n_positions:
        raise UserError(f"there is no position {position} in a prompt of {n_positions} tokens")
    return position % n_positions
