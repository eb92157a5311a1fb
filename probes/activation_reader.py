"""Read activations at many hooks, layers and tokens in one forward pass.

To save time, the tokens that all prompts share at the beginning (the chat preamble, the template's
first words) run once, each prompt is cut after the last token that is read, and blocks above the
highest layer pass their input through. Prompts of similar length run together, padded on the right,
which a causal model never attends to.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from interp.arguments import check_choice
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch, by_length
from interp.forward.few_logits import LogitsOf, ends_in_unembedding, run_for_logits
from interp.forward.hook_points import hook_name
from interp.forward.layer_range import override_forward, pass_through
from interp.forward.out_of_memory import halving
from interp.forward.partial import device_of, hooked
from interp.forward.prompts import call_positions
from interp.forward.transfer import upload
from interp.models.hooked_model import HookedModel
from interp.models.model_check import check_of
from interp.models.spans import shared_length
from interp.models.whole import first_bad_weight
from interp.progress import progress_bar

ActivationHook = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z"]
"""Hook point in a block: its input, between attention and MLP, its output, the output of attention
or MLP, or each head's output before the output projection (``z``, one vector a head)."""

DEFAULT_BATCH_TOKENS = 4096

PREDICTIONS = ("log_probability", "highest", "entropy")
"""What the model expected at a token, from the token before it: the log-probability of the token,
the highest log-probability of any token, and the entropy of the distribution, all in nats."""
TOKENS_AT_ONCE = 32
"""Tokens whose logits are computed and become probabilities at once on a CPU, where few take little
memory; elsewhere as many as `PREDICTION_NUMBERS` allows, so that few kernels start."""
PREDICTION_NUMBERS = 2**25
"""Logits of the tokens of one pass where predictions are asked for. A model that caps its logits
computes all of them; in float32 they take 134 MB."""


@dataclass(frozen=True)
class TokensToRead:
    """A prompt and the positions to read in it, ascending, counted without padding.

    Raises UserError for no position, or one that the prompt does not have.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.positions:
            raise UserError("a prompt without a token to read: name at least one position")
        if list(self.positions) != sorted(set(self.positions)):
            raise UserError("positions must be in order, each named once")
        if not 0 <= self.positions[0] <= self.positions[-1] < len(self.tokens):
            raise UserError(
                f"position {self.positions[-1]} is not in a prompt of {len(self.tokens)} tokens"
            )

    @property
    def needed(self) -> tuple[int, ...]:
        """The tokens up to and including the last position that is read."""
        return self.tokens[: self.positions[-1] + 1]


KeysValues = tuple[tuple[Tensor, Tensor], ...]
"""Of each layer keys and values [prompt kv_head pos d_head]."""


@dataclass(frozen=True)
class ReadChunk:
    """The activations read in one forward pass.

    Attributes:
        prompts: indices into the prompts given to `read_activations`.
        values: by hook, Float[token layer d_model], or Float[token layer head d_head] for ``z``;
            the first prompt's tokens first.
        predictions: Float[token 3], what the model expected at each token (see `PREDICTIONS`); None
            unless they were asked for.
        keys_values: per layer keys and values [prompt kv_head pos d_head] of all tokens up to the
            last one that is read, from the first on; padded on the right, and on the model's
            devices. Empty unless they were asked for.
    """

    prompts: tuple[int, ...]
    values: dict[str, Tensor]
    predictions: Tensor | None = None
    keys_values: KeysValues = ()


def check_hook(hook: str) -> ActivationHook:
    """The hook. Raises UserError for an unknown one, and lists the known."""
    return cast(ActivationHook, check_choice("hook", hook, get_args(ActivationHook)))


def chosen_layers(model: HookedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers, by default all. Raises UserError for an unknown or a repeated layer."""
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


@checked
@torch.no_grad()
def read_activations(
    model: HookedModel,
    prompts: Sequence[TokensToRead],
    *,
    hooks: Sequence[ActivationHook] = ("resid_post",),
    layers: Sequence[int] | None = None,
    predictions: bool = False,
    keys_values: bool = False,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Iterator[ReadChunk]:
    """Read the activations of every prompt at its positions, in chunks of prompts.

    Args:
        layers: blocks counted from zero, in the order of the result; by default all.
        predictions: also what the model expected at each of these tokens. All blocks then run, and
            the unembedding at every token that the prompts do not share.
        keys_values: also the keys and values of the attention, from which another pass can go on.
            All blocks then run.
        batch_tokens: tokens in one forward pass, padding included.

    Yields:
        chunks on the CPU, in the model's dtype; every prompt is in exactly one of them.

    Raises:
        UserError: no prompts, an unknown hook or layer, an activation that is not finite, or
            predictions at a prompt's first token, which nothing precedes.
    """
    for hook in hooks:
        check_hook(hook)
    chosen = chosen_layers(model, layers)
    if not prompts:
        raise UserError("there are no prompts to collect activations from")
    start, device = _shared_beginning(prompts, predictions=predictions), device_of(model)
    highest = model.cfg.n_layers - 1 if predictions or keys_values else max(chosen)
    if predictions:
        batch_tokens = min(batch_tokens, max(1, PREDICTION_NUMBERS // model.cfg.d_vocab))
    cached: KeysValues = ()  # of the shared tokens
    # The context is closed before each yield, so callers see the whole model between chunks.
    with _without_blocks_above(model, highest):
        if start:
            batch = TokenBatch.from_lists([prompts[0].tokens[:start]], device=device)
            cache = DynamicCache()
            call_positions(
                model.original_model, batch, torch.tensor([0], device=device), cache=cache
            )
            cached = _keys_values_in(cache)
    with progress_bar(total=len(prompts), description="activations", shown=progress) as bar:

        def read(indices: list[int]) -> ReadChunk:
            part = [prompts[index] for index in indices]
            with _without_blocks_above(model, highest):
                found = _read_chunk(
                    model,
                    part,
                    hooks,
                    layers=chosen,
                    start=start,
                    cached=cached,
                    predictions=predictions,
                    keys_values=keys_values,
                )
            return ReadChunk(tuple(indices), *found)

        chunks = by_length([len(prompt.needed) - start for prompt in prompts], batch_tokens)
        for indices, chunk in halving(chunks, read):
            _check_finite(model, chunk.values, chosen)
            yield chunk
            bar.update(len(indices))


def _shared_beginning(prompts: Sequence[TokensToRead], *, predictions: bool = False) -> int:
    """How many tokens all prompts share, before the first one that is read.

    With ``predictions``, also before the token in front of that one, which predicts it. Raises
    UserError where nothing is in front of it.
    """
    needed = [prompt.needed for prompt in prompts]
    # All others lie between these two in lexicographic order.
    shared = shared_length(min(needed), max(needed))
    first = min(prompt.positions[0] for prompt in prompts)
    if predictions and not first:
        raise UserError("nothing precedes a prompt's first token: its prediction cannot be read")
    return min(shared, first - 1 if predictions else first)


def _read_chunk(
    model: HookedModel,
    prompts: Sequence[TokensToRead],
    hooks: Sequence[ActivationHook],
    *,
    layers: Sequence[int],
    start: int,
    cached: KeysValues,
    predictions: bool,
    keys_values: bool,
) -> tuple[dict[str, Tensor], Float[Tensor, "token 3"] | None, KeysValues]:
    """The values of each hook, and what else is asked for, from one forward pass.

    It runs the tokens from ``start`` on.
    """
    width, device = max(len(prompt.needed) for prompt in prompts), device_of(model)
    # Padded on the right with the prompt's last token: the padding is never read.
    needed = [prompt.needed for prompt in prompts]
    tokens = torch.tensor([ids + ids[-1:] * (width - len(ids)) for ids in needed], device=device)
    rows = torch.arange(len(prompts), device=device)
    cache = DynamicCache() if start or keys_values else None
    for layer, pair in enumerate(cached):
        assert cache is not None
        keys, values = (part.expand(len(prompts), -1, -1, -1) for part in pair)
        cache.update(keys, values, layer)
    row = torch.tensor([index for index, prompt in enumerate(prompts) for _ in prompt.positions])
    position = torch.tensor([at - start for prompt in prompts for at in prompt.positions])
    row, position = upload(row, device), upload(position, device)
    seen: dict[tuple[str, int], Tensor] = {}

    def read(value: Float[Tensor, "row pos *unit"], hook: object, *, at: tuple[str, int]) -> None:
        # Read from the device once, and not for each layer.
        seen[at] = value[row.to(value.device), position.to(value.device)].to(device)

    places = product(hooks, layers)
    hf_model, batch = model.original_model, TokenBatch.from_padded(tokens)
    keep = width - start if predictions else 1
    run = partial(call_positions, hf_model, batch, rows, start=start, cache=cache, keep=keep)
    logits_of: LogitsOf | None = None
    if predictions:
        ends_in_unembedding(hf_model)  # tried before there are hooks
    with hooked(model, [(hook_name(*place), partial(read, at=place)) for place in places]):
        if predictions:
            logits_of = run_for_logits(hf_model, run)
        else:
            run()
    for hook in hooks:
        if missing := [layer for layer in layers if (hook, layer) not in seen]:
            raise UserError(
                f"{hook} of layer {missing[0]} did not run: this model cannot be probed there"
            )
    values = {
        hook: torch.stack([seen[hook, layer] for layer in layers], dim=1).cpu() for hook in hooks
    }
    kept = _keys_values_in(cache) if keys_values and cache is not None else ()
    if logits_of is None:
        return values, None, kept
    following = torch.tensor([prompt.tokens[at] for prompt in prompts for at in prompt.positions])
    tokens_of = torch.stack([row, position - 1, upload(following, device)])
    many = max(1, PREDICTION_NUMBERS // model.cfg.d_vocab)
    at_once = TOKENS_AT_ONCE if device.type == "cpu" else many
    expected = [
        predictions_of(logits_of(rows_of, at), expects)
        for rows_of, at, expects in tokens_of.split(at_once, dim=1)
    ]
    return values, torch.cat(expected).cpu(), kept


def _keys_values_in(cache: DynamicCache) -> KeysValues:
    layers: list[Any] = list(cache.layers)
    return tuple((layer.keys, layer.values) for layer in layers)


def predictions_of(
    logits: Float[Tensor, "token d_vocab"], following: Int[Tensor, " token"]
) -> Float[Tensor, "token 3"]:
    """What `PREDICTIONS` names, in float32, of the tokens that follow these logits."""
    # In few copies of the logits: below their largest, which has the exponential 1.
    below = logits.float()
    below = below - below.amax(dim=-1, keepdim=True)
    weights = below.exp()
    total = weights.sum(dim=-1)
    normalizer = total.log()
    expected = weights.mul_(below).nansum(dim=-1) / total  # 0 · log 0 is 0
    return torch.stack(
        [
            below.gather(-1, following[:, None])[:, 0] - normalizer,
            -normalizer,
            normalizer - expected,
        ],
        dim=-1,
    )


@contextmanager
def _without_blocks_above(model: HookedModel, layer: int) -> Iterator[None]:
    """Blocks above ``layer`` return their input unchanged."""
    blocks = list(model.blocks)
    lengths = check_of(model).tuple_outputs or (0,) * len(blocks)
    with ExitStack() as stack:
        for block, n_values in list(zip(blocks, lengths, strict=True))[layer + 1 :]:
            stack.enter_context(override_forward(block, pass_through(n_values)))
        yield


def _check_finite(model: HookedModel, values: dict[str, Tensor], layers: Sequence[int]) -> None:
    for hook, value in values.items():
        finite = torch.isfinite(value.flatten(2)).all(dim=2).all(dim=0)
        if not bool(finite.all()):
            layer = layers[int((~finite).nonzero()[0])]
            weight = first_bad_weight(model)
            cause = f"its weight {weight} is not" if weight else "check its weights and its dtype"
            raise UserError(f"{hook} of layer {layer} is not finite: {cause}")
