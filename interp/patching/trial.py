"""Do the plain modules give the hooked model's numbers? Tried once for each model.

The trial is two short prompts, one of them padded, run whole: by the hooked model in one piece,
and by the plain modules as sweeps run them, with a beginning in a cache, from every kind of place
(the first layer, and the middle one with its heads' outputs given). All layers take part. Where
the logits differ by more than rounding, or the plain modules cannot run, everything runs on the
hooked model, and the log says why.
"""

import logging
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from interp.models.precision import agrees, dtype_of, precision_of, widened
from interp.patching.batch import TokenBatch
from interp.patching.columns import call_columns
from interp.patching.components import as_units, hook_name
from interp.patching.plain import Hook, PlainModel, plain_model

logger = logging.getLogger(__name__)

WIDTH, PADDED, START = 12, 3, 5
"""Columns of the trial, how many of the second prompt's are padding, and its shared beginning."""
CANNOT = (
    NotImplementedError, TypeError, RuntimeError, ValueError, AttributeError, KeyError, IndexError
)  # fmt: skip
"""What modules raise that cannot run as plain ones."""

_Tried = tuple[torch.dtype, int]
"""The number type of the weights, and the width of the trial."""
_VERDICTS: WeakKeyDictionary[Any, dict[_Tried, bool | None]] = WeakKeyDictionary()
"""By model: whether the wide plain modules are right (True), those in the model's own number type
(False), or neither (None)."""


def trusted_plain_model(model: Any, width: int) -> PlainModel | None:
    """The plain modules of a model, if there are any and they give its numbers.

    Args:
        width: of the prompts that are to run. A model whose attention sees no further than a
            window is tried again the first time that prompts are wider than it.
    """
    plain = plain_model(model)
    if plain is None:
        return None
    verdicts = _VERDICTS.setdefault(model, {})
    tried = dtype_of(model), _trial_width(model, width)
    if tried not in verdicts:
        verdicts[tried] = _verdict(model, plain, tried[1])
    if verdicts[tried] is None:
        return None
    return plain if verdicts[tried] else plain_model(model, wide=False)


def sweep_resolution(model: Any) -> float:
    """Effects of sweeps smaller than this are rounding; see `interp.models.precision`."""
    plain = trusted_plain_model(model, WIDTH)
    return precision_of(dtype_of(model) if plain is None else plain.dtype).resolution


def _trial_width(model: Any, width: int) -> int:
    """So many columns that every window narrower than the prompts is tried too."""
    config = getattr(model.original_model, "config", None)
    config = getattr(config, "text_config", config)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    inside = [one for one in windows if isinstance(one, int) and one + 4 > WIDTH and one < width]
    return max([WIDTH, *(one + 4 for one in inside)])


def _verdict(model: Any, plain: PlainModel, width: int) -> bool | None:
    """As ``_VERDICTS`` has it."""
    batch = _prompts(model, width)
    with torch.no_grad():
        rows = torch.arange(len(batch), device=batch.tokens.device)
        expected = call_columns(model.original_model, batch, rows)[:, -1]
        if not bool(torch.isfinite(expected).all()):
            return None  # whoever runs the model is told where it stops being finite
        if _gives(plain, batch, rows, expected, dtype_of(model)):
            return True
        if not plain.wide:
            return None
        logger.info("sweeps compute in the model's own number type")
        narrow = plain_model(model, wide=False)
        assert narrow is not None
        return False if _gives(narrow, batch, rows, expected, dtype_of(model)) else None


def _prompts(model: Any, width: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(int(model.cfg.d_vocab), (2, width), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, :PADDED] = False
    device = next(iter(model.original_model.parameters())).device
    return TokenBatch(tokens.to(device), mask.to(device))


def _gives(
    plain: PlainModel, batch: TokenBatch, rows: Tensor, expected: Tensor, dtype: torch.dtype
) -> bool:
    try:
        for found in _runs(plain, batch, rows):
            if not agrees(found, expected, dtype):
                difference = float((widened(found) - widened(expected)).abs().max())
                logger.info("sweeps run on the hooked model: plain logits differ by %g", difference)
                return False
    except CANNOT as error:
        logger.info("sweeps run on the hooked model: %s", error)
        return False
    return True


def _runs(plain: PlainModel, batch: TokenBatch, rows: Tensor) -> Iterator[Tensor]:
    """The same logits in the ways that sweeps get them."""
    middle, cache = plain.n_layers // 2, DynamicCache()
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> None:
        seen[name] = value.detach()

    names = [hook_name("resid_pre", 0), hook_name("resid_pre", middle), hook_name("z", middle)]
    hooks: list[Hook] = [
        (name, lambda value, hook, name=name: keep(value, hook, name)) for name in names
    ]
    plain.run(batch, rows, end=START, cache=cache)
    yield plain.run(batch, rows, start=START, cache=cache, hooks=hooks)
    beginning = tuple(
        (layer.keys[:, :, :START], layer.values[:, :, :START])  # type: ignore[attr-defined]
        for layer in cache.layers
    )
    first, at, z = (seen[name] for name in names)
    yield plain.resume(batch, beginning, rows, start=START, layer=0, residual=first)
    yield plain.resume(
        batch, beginning, rows, start=START, layer=middle, residual=at, z=as_units(z, "z")
    )
