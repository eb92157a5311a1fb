"""Something to do before every forward pass of a transformers model, from its prompts."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from interp.errors import UserError


def refuse_copy(*_: Any) -> NoReturn:
    """Raise UserError: what is in effect on a model belongs to this one object."""
    raise UserError(
        "a copy or a pickle of this model would not carry the constraint that is in effect on it: "
        "detach it first (save_pretrained and state_dict are not concerned)"
    )


class HookOfOneModel:
    """A hook that refuses to be copied or pickled with its model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the function."""
        return self.function(*args, **kwargs)

    __deepcopy__: Any = refuse_copy
    __reduce__: Any = refuse_copy


@contextmanager
def before_each_call(
    hf_model: nn.Module,
    begin: Callable[..., None],
    end: Callable[[Any], None] | None = None,
    *,
    note: Callable[[dict[str, Any]], None] | None = None,
) -> Iterator[None]:
    """While open, ``begin(tokens, mask, seen)`` is called before every call of the module, behind
    ``note(arguments)``, and ``end(output)`` after it, with None if the call raised an error.

    ``tokens`` are the new token ids [prompt pos], or None where the pass is given embeddings;
    ``mask`` is the attention mask, of a prefill that of its tokens, or None; ``seen`` counts the
    positions in the cache.
    """

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = call_arguments(module, args, kwargs)
        if note is not None:
            note(given)
        tokens, past = given.get("input_ids"), given.get("past_key_values")
        seen = 0 if past is None else int(past.get_seq_length())
        mask = given.get("attention_mask")
        if tokens is not None:
            mask = _real_tokens(mask, seen + tokens.shape[1])
        begin(tokens, mask, seen)

    def over(module: Any, args: tuple[Any, ...], output: Any) -> None:
        if end is not None:
            end(output)

    ending = HookOfOneModel(over)
    with (
        hf_model.register_forward_pre_hook(HookOfOneModel(hook), with_kwargs=True),
        nullcontext() if end is None else hf_model.register_forward_hook(ending, always_call=True),
    ):
        yield


def call_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What a module is called with, by name."""
    if not args:
        return kwargs
    try:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # the call raises an error of its own, or has no signature
        return kwargs
    named = dict(given.arguments)
    for parameter in given.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and "input_ids" not in named:
            named |= dict(zip(("input_ids",), named.pop(parameter.name, ()), strict=False))
    return named


def _real_tokens(
    mask: Any, n_positions: int
) -> Bool[Tensor, "prompt pos"] | Int[Tensor, "prompt pos"] | None:
    """Which positions hold real tokens, from any mask that transformers is called with.

    ``generate`` gives a mask of queries and keys where the cache has a fixed length, and one for
    every kind of layer where there are several.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if mask is None:
        return None
    if mask.ndim == 4:  # [prompt 1 query key], True or 0 where a query sees a key
        seen = mask if mask.dtype == torch.bool else mask == 0
        return seen[:, 0, :, :n_positions].any(dim=1)
    return mask[:, :n_positions]
