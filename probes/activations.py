"""Activations at one token of each prompt: what a probe reads.

``object`` is the last token of the question's object, where the premise has just been completed and
nothing after it has been read; ``last`` is the last token of the prompt, where the answer is about
to be given. In a causal model the tokens after a position do not change it, so every prompt is cut
at its position: it stands in the last column of a left-padded batch, and nothing later is run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.errors import UserError
from interp.patching import TokenBatch, hooked, tail_logits
from interp.premises.encode import EncodedPremise, EncodedPremises

ActivationHook = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
"""Where in a block: its input, between attention and MLP, its output, or what either part adds."""

Position = Literal["object", "last"]
"""Which token: the last one of the question's object, or the last one of the prompt."""

PremiseKind = Literal["false", "twin"]
"""Which prompt of a question: the one with the false premise, or its true-premise twin."""

DEFAULT_BATCH_TOKENS = 4096


def check_place(hook: str, position: str) -> None:
    """UserError for an unknown hook or position."""
    if hook not in get_args(ActivationHook):
        raise UserError(f"unknown hook {hook!r}; known: {', '.join(get_args(ActivationHook))}")
    if position not in get_args(Position):
        raise UserError(f"unknown position {position!r}; known: {', '.join(get_args(Position))}")


def chosen_layers(model: Any, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, or all; UserError for one that is not there or is named twice."""
    n_layers = model.cfg.n_layers
    if layers is None:
        return tuple(range(n_layers))
    chosen = tuple(int(layer) for layer in layers)
    if not chosen:
        raise UserError("no layers are chosen: name at least one, or leave `layers` out for all")
    for layer in chosen:
        if not 0 <= layer < n_layers:
            raise UserError(f"layer {layer} does not exist: the model has 0 to {n_layers - 1}")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"a layer is named twice: {', '.join(map(str, chosen))}")
    return chosen


@torch.no_grad()
def collect_activations(
    model: Any,
    encoded: EncodedPremises,
    kind: PremiseKind,
    *,
    hook: ActivationHook = "resid_post",
    layers: Sequence[int] | None = None,
    position: Position = "object",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Float[Tensor, "prompt layer d_model"]:
    """The activations of every question's ``kind`` of prompt at ``position``.

    Args:
        encoded: premises as this model reads them.
        layers: blocks counted from zero, in the order of the result; all of them if None.
        batch_tokens: how many tokens, padding included, one forward pass holds.

    Returns:
        Float[prompt layer d_model] in float32 on the CPU, prompts in the order of ``encoded``.

    Raises:
        UserError: an unknown hook, position, kind or layer, or an activation that is not finite.
    """
    check_place(hook, position)
    if kind not in get_args(PremiseKind):
        raise UserError(
            f"unknown kind of prompt {kind!r}; known: {', '.join(get_args(PremiseKind))}"
        )
    chosen = chosen_layers(model, layers)
    prompts = [tokens_up_to(item, kind, position) for item in encoded.items]
    if not prompts:
        raise UserError("there are no prompts to collect activations from")
    values = torch.empty(len(prompts), len(chosen), model.cfg.d_model)
    for chunk in tqdm(_chunks(prompts, batch_tokens), desc="activations", disable=not progress):
        batch = TokenBatch.from_lists([prompts[index] for index in chunk], device=encoded.device)
        values[chunk] = _last_column(model, batch, hook, chosen)
    finite = torch.isfinite(values).all(dim=2).all(dim=0)
    if not bool(finite.all()):
        layer = chosen[int((~finite).nonzero()[0])]
        raise UserError(
            f"{hook} of layer {layer} is not finite: check the model's weights and its dtype"
        )
    return values


def tokens_up_to(item: EncodedPremise, kind: PremiseKind, position: Position) -> tuple[int, ...]:
    """The prompt's tokens up to and including the position that is read."""
    prompt = item.prompt(kind)
    return prompt.tokens[: prompt.object[1]] if position == "object" else prompt.tokens


def _chunks(prompts: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Indices of prompts of similar length, in chunks that hold ``batch_tokens`` when padded."""
    chunks: list[list[int]] = [[]]
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        if chunks[-1] and (len(chunks[-1]) + 1) * len(prompts[index]) > batch_tokens:
            chunks.append([])
        chunks[-1].append(index)
    return chunks


def _last_column(
    model: Any, batch: TokenBatch, hook: ActivationHook, layers: Sequence[int]
) -> Float[Tensor, "prompt layer d_model"]:
    """One forward pass; each layer's activation in the batch's last column."""
    with _reading(model, hook, layers) as seen:
        tail_logits(model, batch)
    missing = [layer for layer in layers if layer not in seen]
    if missing:
        raise UserError(
            f"{hook} of layer {missing[0]} did not run: this model cannot be probed there"
        )
    return torch.stack([seen[layer] for layer in layers], dim=1)


@contextmanager
def _reading(
    model: Any, hook: ActivationHook, layers: Sequence[int]
) -> Iterator[dict[int, Float[Tensor, "prompt d_model"]]]:
    """Hooks that fill a dictionary, layer by layer, with the last column's activations."""
    seen: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(value: Tensor, hook: object) -> None:
            seen[layer] = value[:, -1].float().cpu()

        return read

    with hooked(model, [(f"blocks.{layer}.hook_{hook}", reader(layer)) for layer in layers]):
        yield seen
