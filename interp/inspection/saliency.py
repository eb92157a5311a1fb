"""Saliency of each token of a prompt for a metric, by gradient × input or by occlusion.

With m the metric and x_t the embedding of token t (the input of the first layer):

* ``gradient``: S_t = x_t · ∂m/∂x_t, the rate at which m changes as token t's embedding is scaled.
  Two passes in all. This is a first-order estimate: it may differ from the effect of removing the
  token, even in sign.
* ``occlusion``: S_t = m − m', m' with token t replaced by the padding token (after Li et al.,
  arXiv 1612.08220, who erase it). Exact, but one run for each token, on an unusual prompt.

Sign: positive where the token favours ``toward``. The unit is the metric's: logits for a difference
of two answers, nats for the log-probability of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.saliency import saliency_figure, saliency_text
from interp.forward.batch import Span, TokenBatch
from interp.forward.partial import RecordedRun, device_of, record_run, resume, unedited_logits
from interp.inspection.read_prompt import ReadPrompt, read_prompt, token_texts
from interp.models.call import with_gradients
from interp.models.hooked_model import HookedModel
from interp.models.spans import shared_length, tokenize_with_offsets
from interp.patching.metrics import LogitDifference, LogProbability
from interp.precision import widened
from interp.premises.relation import FilledQuestion

SaliencyMethod = Literal["gradient", "occlusion"]


@dataclass(frozen=True, eq=False)
class TokenSaliency(Displayed):
    """Saliency of every token of one prompt.

    Attributes:
        tokens: the prompt's tokens as text.
        values: Float[token], in ``unit``.
        metric: the metric, in words.
        unit: "logits" or "nats".
        value: the metric on this prompt.
        method: how it was computed.
        spans: by name, the tokens [start, end) of pieces of the question, such as ``object``.
        start: the first token of the question.
    """

    tokens: tuple[str, ...]
    values: Float[Tensor, " token"]
    metric: str
    unit: str
    value: float
    method: SaliencyMethod = "occlusion"
    spans: Mapping[str, Span] = field(default_factory=dict)
    start: int = 0

    def __post_init__(self) -> None:
        check_saliency_method(self.method)
        if len(self.tokens) != len(self.values):
            raise UserError(f"{len(self.tokens)} tokens but {len(self.values)} values")

    def to_dataframe(self) -> pd.DataFrame:
        """One row a token, in order: ``position``, ``token``, ``saliency``, ``span`` or ""."""
        names = [""] * len(self.tokens)
        for name, (start, end) in self.spans.items():
            names[start:end] = [name] * (end - start)
        rows = zip(range(len(names)), self.tokens, self.values.tolist(), names, strict=True)
        return pd.DataFrame(rows, columns=["position", "token", "saliency", "span"])

    def plot(self, *, start: int | None = None) -> go.Figure:
        """A bar for each token, spans marked.

        Args:
            start: the first token with a bar of its own, by default the question's; earlier ones
                share one bar.
        """
        return saliency_figure(
            self.values.double().numpy(),
            self.tokens,
            metric=self.metric,
            value=self.value,
            unit=self.unit,
            method=self.method,
            spans=self.spans,
            start=self.start if start is None else start,
        )

    def _shown(self) -> Shown:
        table, values = self.to_dataframe(), self.values.double().numpy()
        table = table.sort_values("saliency", key=abs, ascending=False, kind="stable")
        words = (
            f"Saliency ({self.method}) for {self.metric}, which is {self.value:.3g} {self.unit}."
        )
        unit, spans, start = self.unit, self.spans, self.start
        text = saliency_text(values, self.tokens, unit=unit, spans=spans, start=start)
        return Shown(words, (table,), self.plot, text)


def check_saliency_method(method: str) -> None:
    """Raise UserError for an unknown method, and list the known."""
    check_choice("method of saliency", method, get_args(SaliencyMethod))


@checked
def token_saliency(
    model: HookedModel,
    prompt: str | FilledQuestion,
    *,
    toward: str | None = None,
    against: str | None = None,
    method: SaliencyMethod = "occlusion",
    false_object: str | None = None,
    opening: str = "",
    chat: bool = True,
    system: str | None = None,
) -> TokenSaliency:
    """Saliency of every token for the next token.

    Args:
        toward: a text that may come next; by default the model's most likely token.
        against: another text: m is then the logit difference of the first tokens that differ.
            Without it m is the log-probability of the first token of ``toward``.
        prompt, false_object, opening, chat, system: see ``interp.inspection.read_prompt``.

    Raises:
        UserError: an unknown method, ``against`` without ``toward``, answers that have the same
            tokens, a tokenizer without padding for ``occlusion``, or what ``read_prompt`` refuses.
    """
    check_saliency_method(method)
    read = read_prompt(
        model, prompt, false_object=false_object, opening=opening, chat=chat, system=system
    )
    tokens, ids, wanted = _with_answers(model, read, toward=toward, against=against)
    batch = TokenBatch.from_lists([ids], device=device_of(model))
    with torch.no_grad():
        run = record_run(model, batch, keep=())
    if not wanted:
        wanted = (int(run.logits[0].argmax()),)
    value = float(_metric(wanted, run.logits))
    if method == "gradient":
        values = _gradient_times_input(model, run, wanted)
    else:
        values = value - _occluded(model, batch, wanted)
    texts = [repr(model.tokenizer.decode([token])) for token in wanted]
    single = len(wanted) == 1
    return TokenSaliency(
        tokens=tokens,
        values=values.cpu(),
        metric=f"log P({texts[0]})" if single else f"logit({texts[0]}) − logit({texts[1]})",
        unit="nats" if single else "logits",
        value=value,
        method=method,
        spans=read.spans,
        start=read.start,
    )


def _with_answers(
    model: HookedModel, read: ReadPrompt, *, toward: str | None, against: str | None
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Tokens of the prompt up to where the answers differ, and the answers' tokens there."""
    if toward is None:
        if against is not None:
            raise UserError("against needs toward: give both answers")
        return read.tokens, read.ids, ()
    answers = [toward] if against is None else [toward, against]
    # The full stop makes answers differ even when one begins with the other.
    text = read.rendered.text
    texts = [f"{text}{'' if text[-1:].isspace() else ' '}{answer}." for answer in answers]
    special = read.rendered.add_special_tokens
    encodings = [
        tokenize_with_offsets(model.tokenizer, text, add_special_tokens=special) for text in texts
    ]
    whole = [tuple(encoding["input_ids"]) for encoding in encodings]
    other = read.ids if against is None else whole[1]
    shared = shared_length(whole[0], other)
    if shared == min(len(ids) for ids in whole):
        raise UserError(
            f"{toward!r} and {against!r} have the same tokens: give answers that differ"
        )
    tokens = token_texts(
        model.tokenizer, texts[0], ids=whole[0], offsets=encodings[0]["offset_mapping"]
    )
    return tokens[:shared], whole[0][:shared], tuple(ids[shared] for ids in whole)


def _metric(wanted: tuple[int, ...], logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
    """The log-probability of one token, or the logit difference of two."""
    tokens = [torch.full((len(logits),), token, device=logits.device) for token in wanted]
    return (LogProbability if len(tokens) == 1 else LogitDifference)(*tokens)(logits)


def _gradient_times_input(
    model: HookedModel, run: RecordedRun, wanted: tuple[int, ...]
) -> Float[Tensor, " token"]:
    with with_gradients(model):
        embedded = run.resid_pre[0].detach().clone().requires_grad_()
        rows = torch.zeros(1, dtype=torch.long, device=embedded.device)
        logits = resume(model, run, layer=0, rows=rows, residual=embedded)
        (gradient,) = torch.autograd.grad(_metric(wanted, logits).sum(), embedded)
    return (widened(gradient) * widened(embedded.detach())).sum(dim=-1)[0]


@torch.no_grad()
def _occluded(
    model: HookedModel, batch: TokenBatch, wanted: tuple[int, ...]
) -> Float[Tensor, " token"]:
    """The metric with each token replaced in turn."""
    tokenizer, n = model.tokenizer, batch.width
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if filler is None:
        raise UserError("the tokenizer has no padding token to put in: use method 'gradient'")
    tokens = batch.tokens.repeat(n, 1).fill_diagonal_(filler)
    parts = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool)).parts()
    return torch.cat([_metric(wanted, unedited_logits(model, part)) for part in parts])
