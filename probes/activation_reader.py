"""Reading activations: one forward pass for every hook, layer and token that is asked for.

Prompts about one relation begin alike (the chat's preamble, the template's words), and in a causal
model nothing that comes later changes what came before. So the tokens that all prompts share at
the beginning run once; each prompt is cut after the last token that is read; blocks above the
highest layer asked for pass their input through. Prompts of similar length run together, the
shorter ones filled up on the right, where a causal model does not look.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.call import call_columns
from interp.forward.hook_points import hook_name
from interp.forward.layer_range import override_forward
from interp.forward.out_of_memory import halving
from interp.forward.partial import device_of, hooked
from interp.models.finite import first_bad_weight
from interp.models.hooked_model import HookedModel
from interp.progress import progress_bar

ActivationHook = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z"]
"""Where in a block: its input, between attention and MLP, its output, what either part adds, or
each head's output before the output projection (``z``, one vector a head)."""

DEFAULT_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class TokensToRead:
    """A prompt, and the positions in it that are read, in order, counted without padding.

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


@dataclass(frozen=True)
class ReadChunk:
    """What one forward pass read.

    Attributes:
        prompts: indices into the prompts that were asked for.
        values: by hook, Float[token layer d_model], or Float[token layer head d_head] for ``z``;
            the first prompt's tokens first.
    """

    prompts: tuple[int, ...]
    values: dict[str, Tensor]


def check_hook(hook: str) -> ActivationHook:
    """UserError for an unknown hook, which lists the known."""
    if hook not in get_args(ActivationHook):
        raise UserError(f"unknown hook {hook!r}; known: {', '.join(get_args(ActivationHook))}")
    return hook  # type: ignore[return-value]


def chosen_layers(model: HookedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
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


@checked
@torch.no_grad()
def read_activations(
    model: HookedModel,
    prompts: Sequence[TokensToRead],
    *,
    hooks: Sequence[ActivationHook] = ("resid_post",),
    layers: Sequence[int] | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> Iterator[ReadChunk]:
    """The activations of every prompt at its positions, some prompts at a time.

    Args:
        layers: blocks counted from zero, in the order of the result; all of them if None.
        batch_tokens: how many tokens, padding included, one forward pass holds.

    Yields:
        chunks on the CPU, in the model's dtype; every prompt is in exactly one of them.

    Raises:
        UserError: no prompts, an unknown hook or layer, or an activation that is not finite.
    """
    for hook in hooks:
        check_hook(hook)
    chosen = chosen_layers(model, layers)
    if not prompts:
        raise UserError("there are no prompts to collect activations from")
    start = _shared_beginning(prompts)
    # Never held open over a yield: between chunks the model is whole.
    with _without_blocks_above(model, max(chosen)):
        beginning = _run_beginning(model, prompts[0], start)
    with progress_bar(total=len(prompts), description="activations", shown=progress) as bar:

        def read(indices: list[int]) -> dict[str, Tensor]:
            part = [prompts[index] for index in indices]
            with _without_blocks_above(model, max(chosen)):
                return _read_chunk(model, part, hooks, chosen, start, beginning)

        chunks = _chunks([len(one.needed) - start for one in prompts], batch_tokens)
        for indices, values in halving(chunks, read):
            _check_finite(model, values, chosen)
            yield ReadChunk(tuple(indices), values)
            bar.update(len(indices))


def _shared_beginning(prompts: Sequence[TokensToRead]) -> int:
    """How many tokens all prompts share, up to the first one that is read."""
    first = min(prompts, key=lambda one: one.needed).needed
    last = max(prompts, key=lambda one: one.needed).needed  # the others lie between these two
    limit = min(one.positions[0] for one in prompts)
    for index in range(limit):
        if first[index] != last[index]:
            return index
    return limit


def _run_beginning(
    model: HookedModel, prompt: TokensToRead, start: int
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of the shared tokens, per layer that runs."""
    if start == 0:
        return []
    batch = TokenBatch.from_lists([prompt.tokens[:start]], device=device_of(model))
    cache = DynamicCache()
    call_columns(
        model.original_model, batch, torch.tensor([0], device=device_of(model)), cache=cache
    )
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[attr-defined]


def _read_chunk(
    model: HookedModel,
    prompts: Sequence[TokensToRead],
    hooks: Sequence[ActivationHook],
    layers: Sequence[int],
    start: int,
    beginning: list[tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    """One forward pass over the tokens from ``start`` on."""
    width, device = max(len(one.needed) for one in prompts), device_of(model)
    # Filled up with the prompt's last token: what stands there is never read.
    tokens = torch.tensor(
        [one.needed + one.needed[-1:] * (width - len(one.needed)) for one in prompts], device=device
    )
    batch = TokenBatch.from_padded(tokens)
    rows = torch.arange(len(prompts), device=device)
    cache = DynamicCache() if start else None
    for layer, (keys, values) in enumerate(beginning):
        assert cache is not None
        cache.update(
            keys.expand(len(prompts), -1, -1, -1), values.expand(len(prompts), -1, -1, -1), layer
        )
    row = torch.tensor([index for index, one in enumerate(prompts) for _ in one.positions])
    column = torch.tensor([position - start for one in prompts for position in one.positions])
    with _reading(model, hooks, layers, row, column) as seen:
        call_columns(model.original_model, batch, rows, start=start, cache=cache)
    for hook in hooks:
        if missing := [layer for layer in layers if (hook, layer) not in seen]:
            raise UserError(
                f"{hook} of layer {missing[0]} did not run: this model cannot be probed there"
            )
    return {hook: torch.stack([seen[hook, layer] for layer in layers], dim=1) for hook in hooks}


@contextmanager
def _reading(
    model: HookedModel,
    hooks: Sequence[ActivationHook],
    layers: Sequence[int],
    row: Int[Tensor, " token"],
    column: Int[Tensor, " token"],
) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Hooks that fill a dictionary, by hook and layer, with what stands at (row, column)."""
    seen: dict[tuple[str, int], Tensor] = {}

    def reader(name: str, layer: int) -> Any:
        def read(value: Float[Tensor, "row pos *unit"], hook: object) -> None:
            seen[name, layer] = value[row.to(value.device), column.to(value.device)].cpu()

        return read

    points = [(hook_name(name, layer), reader(name, layer)) for name in hooks for layer in layers]
    with hooked(model, points):
        yield seen


@contextmanager
def _without_blocks_above(model: HookedModel, layer: int) -> Iterator[None]:
    """Blocks above ``layer`` hand on what they are given: nobody reads what they would make."""

    def pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    with ExitStack() as stack:
        for block in list(model.blocks)[layer + 1 :]:
            stack.enter_context(override_forward(block, pass_through))
        yield


def _chunks(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices of prompts of similar length, in chunks that hold ``batch_tokens`` when filled up."""
    chunks: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if chunks[-1] and (len(chunks[-1]) + 1) * lengths[index] > batch_tokens:
            chunks.append([])
        chunks[-1].append(index)
    return chunks


def _check_finite(model: HookedModel, values: dict[str, Tensor], layers: Sequence[int]) -> None:
    for hook, value in values.items():
        finite = torch.isfinite(value.flatten(2)).all(dim=2).all(dim=0)
        if not bool(finite.all()):
            layer = layers[int((~finite).nonzero()[0])]
            weight = first_bad_weight(model)
            cause = f"its weight {weight} is not" if weight else "check its weights and its dtype"
            raise UserError(f"{hook} of layer {layer} is not finite: {cause}")
