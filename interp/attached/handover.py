"""A prefill that goes on from what a detector's reading has computed.

The reading runs every prompt, as the model is, up to the end of its question. Its keys and values
are those of the prefill up to the first position at which the constraint changes something: up to
the false words where the gate opens, and all of them where it stays closed. The prefill then runs
the positions behind that alone, so that a gate costs far less than the pass in which it reads.

That is done where nobody can see the difference but by rounding, as in ``generate``: of float32
weights, without gradients, with an empty cache of dynamic length, and with the last position's
logits asked for and nothing else. Any other prefill runs whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from interp.attached.state import AttachedState
from interp.interventions.intervention import Intervention
from interp.models.call import first_shared_keys
from interp.modules import modules
from interp.precision import plain_dtype
from probes.detector.reading import Reading

_UNDERSTOOD = {
    *("input_ids", "attention_mask", "position_ids", "cache_position", "past_key_values"),
    *("use_cache", "logits_to_keep", "return_dict"),
}
"""Arguments of a model's forward with which a prefill may be shortened."""
_MORE_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")
_OWN_HOOKS = 4
"""Hooks that ``attach`` has on the model itself."""


@dataclass(frozen=True, eq=False)
class ReadPrompts:
    """What a detector has computed of the prompts of a pass.

    Attributes:
        reading: the keys and values, and which row of them each prompt is.
        ends: of each prompt, how many of its first tokens they hold for the constrained model too.
    """

    reading: Reading
    ends: tuple[int, ...]


def going_on(
    state: AttachedState, take: Callable[[], ReadPrompts | None], intervention: Intervention
) -> Callable[..., Any]:
    """A forward pre-hook, with keywords, that shortens a prefill whose prompts have been read.

    Args:
        take: gives what was read for this pass, once; None if nothing was.
    """
    behind_words_only = not intervention.experts and all(
        part.site == "attention" for part in intervention.heads
    )

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = take()
        acts = bool(state.positions.any())
        if read is None or args or (acts and not behind_words_only):
            return None
        if not _can_shorten(module, kwargs, state.n_hooks):
            return None
        tokens: Tensor = kwargs["input_ids"]
        offsets = _offsets(tokens, kwargs)
        if offsets is None:
            return None
        first = int((offsets + torch.tensor(read.ends)).min().clamp(max=tokens.shape[1] - 1))
        read.reading.before(first, offsets, kwargs["past_key_values"])
        state.first_query = first
        rest = {
            name: value[..., first:]
            for name in ("input_ids", "position_ids", "cache_position")
            if isinstance(value := kwargs.get(name), Tensor)
        }
        return args, {**kwargs, **rest}

    return hook


def _can_shorten(hf_model: Any, kwargs: Mapping[str, Any], n_hooks: int) -> bool:
    """Whether a prefill gives the same when its first positions are in the cache already.

    Args:
        n_hooks: how many hooks the constraint has in the layers. With those of others, who may
            want to see all positions, nothing is shortened.
    """
    given = {name for name, value in kwargs.items() if value is not None and value is not False}
    cache, keep = kwargs.get("past_key_values"), kwargs.get("logits_to_keep")
    return (
        given <= _UNDERSTOOD
        and kwargs.get("use_cache") is not False
        and isinstance(keep, int)
        and keep == 1
        and type(cache) is DynamicCache
        and not cache.offloading
        and cache.get_seq_length() == 0
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and first_shared_keys(hf_model.config) is None
        and not any(getattr(hf_model.config, name, False) for name in _MORE_OUTPUTS)
        and not torch.is_grad_enabled()
        and plain_dtype(hf_model) in (torch.float32, torch.float64)
        and _undisturbed(hf_model, n_hooks)
    )


def _undisturbed(hf_model: Any, n_hooks: int) -> bool:
    """Whether the model is in evaluation mode, and has no hooks but the constraint's."""
    found = 0
    for module in modules(hf_model):
        if module.training:
            return False
        found += len(module._forward_pre_hooks) + len(module._forward_hooks)
    return found == n_hooks + _OWN_HOOKS


def _offsets(tokens: Tensor, kwargs: Mapping[str, Any]) -> Tensor | None:
    """Where each prompt begins behind its padding; None where positions are counted otherwise."""
    given, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if given is None:
        given = torch.ones_like(tokens)
    if given.shape != tokens.shape:
        return None
    real: Bool[Tensor, "prompt pos"] = given.bool()
    count = real.long().cumsum(dim=1)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    offsets, lengths = real.long().argmax(dim=1), count[:, -1]
    together = (places >= offsets[:, None]) & (places < (offsets + lengths)[:, None])
    if not torch.equal(real, together):
        return None
    used = places[None] if positions is None else positions
    if used.ndim != 2 or not bool(((used == count - 1) | ~real).all()):
        return None
    return offsets.cpu()
