"""Activations at one position of each prompt, for probes to read.

``object`` is the last token of the question's object: the first token at which the model has read
the whole premise, in templates that name the subject first. ``last`` is the last token of the
prompt, where the answer begins. The other positions, and every token of a span, serve as controls
and for finer grids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import check_choice
from interp.checked import checked
from interp.models.hooked_model import HookedModel
from interp.premises.encode import EncodedPremise, EncodedPremises, EncodedPrompt
from probes.activation_reader import (
    DEFAULT_BATCH_TOKENS,
    ActivationHook,
    TokensToRead,
    check_hook,
    read_activations,
)

Position = Literal["object", "last", "subject", "object_mean", "subject_mean"]
"""Which token: the last one of the question's object or subject, the last one of the prompt; or the
mean over all tokens of the object or subject."""

SpanName = Literal["object", "subject"]
"""A span whose every token is read."""

PremiseKind = Literal["false", "twin"]
"""Which prompt of a question: the one with the false premise, or its true-premise twin."""


@dataclass(frozen=True, eq=False)
class TokenActivations:
    """Activations of every token of a span.

    Attributes:
        values: Float[token layer d_model], prompt after prompt.
        prompt: Int[token], which prompt a token belongs to.
        token: Int[token], which token of the span it is, counted from its end: -1 is the last.
    """

    values: Float[Tensor, "token layer *unit"]
    prompt: Int[Tensor, " token"]
    token: Int[Tensor, " token"]

    def means(self) -> Float[Tensor, "prompt layer *unit"]:
        """Each prompt's mean over its span."""
        n_prompts = int(self.prompt.max()) + 1
        sums = self.values.new_zeros(n_prompts, *self.values.shape[1:])
        sums.index_add_(0, self.prompt, self.values)
        counts = torch.bincount(self.prompt, minlength=n_prompts)
        return sums / counts.view(-1, *[1] * (sums.ndim - 1))


def check_place(hook: str, position: str) -> None:
    """Raise UserError for an unknown hook or position."""
    check_hook(hook)
    check_choice("position", position, get_args(Position))


@checked
def collect_activations(
    model: HookedModel,
    encoded: EncodedPremises,
    kind: PremiseKind,
    *,
    hook: ActivationHook = "resid_post",
    layers: Sequence[int] | None = None,
    position: Position = "object",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Float[Tensor, "prompt layer *unit"]:
    """Collect the activations of one prompt of every question at ``position``.

    Args:
        encoded: premises encoded with this model's tokenizer.
        kind: the false-premise prompts, or their true-premise twins.
        layers: blocks counted from zero, in the order of the result; by default all.
        batch_tokens: tokens in one forward pass, padding included.

    Returns:
        Float[prompt layer d_model], or Float[prompt layer head d_head] for hook ``z``, in float32
        on the CPU, prompts in the order of ``encoded``.

    Raises:
        UserError: an unknown hook, position, kind or layer, or an activation that is not finite.
    """
    check_place(hook, position)
    prompts = prompts_to_read(encoded.items, kind, position)
    found = read_tokens(
        model, prompts, hook=hook, layers=layers, batch_tokens=batch_tokens, progress=progress
    )
    return found.means() if position.endswith("_mean") else found.values


@checked
def collect_tokens(
    model: HookedModel,
    encoded: EncodedPremises,
    kind: PremiseKind,
    *,
    span: SpanName = "object",
    hook: ActivationHook = "resid_post",
    layers: Sequence[int] | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> TokenActivations:
    """The activations of each token of ``span``; see `collect_activations` for the rest."""
    check_hook(hook)
    check_choice("span", span, get_args(SpanName))
    prompts = prompts_to_read(encoded.items, kind, f"{span}_mean")
    return read_tokens(
        model, prompts, hook=hook, layers=layers, batch_tokens=batch_tokens, progress=progress
    )


def positions_read(prompt: EncodedPrompt, position: str) -> tuple[int, ...]:
    """The positions that are read for a ``Position``: several for a mean, otherwise one."""
    if position == "last":
        return (len(prompt.tokens) - 1,)
    start, end = prompt.subject if position.startswith("subject") else prompt.object
    return tuple(range(start, end)) if position.endswith("_mean") else (end - 1,)


def prompts_to_read(
    items: Sequence[EncodedPremise], kind: Any, position: str
) -> list[TokensToRead]:
    """One prompt a question, with the positions of a ``Position``. Raises for an unknown kind."""
    check_choice("kind of prompt", kind, get_args(PremiseKind))
    prompts = [item.prompt(kind) for item in items]
    return [TokensToRead(prompt.tokens, positions_read(prompt, position)) for prompt in prompts]


def read_tokens(
    model: HookedModel,
    prompts: Sequence[TokensToRead],
    *,
    hook: ActivationHook,
    layers: Sequence[int] | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> TokenActivations:
    """The activations of every prompt at its positions, float32 on the CPU."""
    counts = [len(prompt.positions) for prompt in prompts]
    starts = [sum(counts[:index]) for index in range(len(counts))]
    values = torch.empty(0)
    chunks = read_activations(
        model, prompts, hooks=[hook], layers=layers, batch_tokens=batch_tokens, progress=progress
    )
    for chunk in chunks:
        read = chunk.values[hook].float()
        if not len(values):
            values = torch.empty(sum(counts), *read.shape[1:])
        rows = [starts[index] + step for index in chunk.prompts for step in range(counts[index])]
        values[rows] = read
    prompt = torch.repeat_interleave(torch.tensor(counts))
    token = torch.tensor([step - count for count in counts for step in range(count)])
    return TokenActivations(values, prompt, token)
