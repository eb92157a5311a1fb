"""Do the modules without hook points give the hooked model's numbers? Tried once per model.

The trial runs two short prompts, one of them padded: on the hooked model in one piece, and on the
plain modules as sweeps run them, with a prefix in a cache, from the first layer and from the
middle one with its heads' outputs given. All layers take part. Where the logits differ by more than
rounding, or the modules cannot run, everything runs on the hooked model, and the log says why.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from interp.forward.batch import TokenBatch
from interp.forward.hook_points import as_units, hook_name
from interp.forward.out_of_memory import is_out_of_memory
from interp.forward.prompts import call_positions, device_of
from interp.forward.unhooked import Hook, UnhookedModel, make_unhooked, may_be_unhooked
from interp.models.hooked_model import HookedModel
from interp.precision import (
    agrees,
    coarsest_dtype,
    dtype_of,
    precision_of,
    wide_dtype,
    widened,
)
from interp.quantized import unrounded

logger = logging.getLogger(__name__)

WIDTH, PADDED, START = 12, 3, 5
"""Positions of the trial, how many of the second prompt's are padding, and its shared prefix."""
CANNOT = (
    *(NotImplementedError, TypeError, RuntimeError, ValueError),
    *(AttributeError, KeyError, IndexError),
)
"""What modules raise that cannot run unhooked."""

_Trial = tuple[torch.dtype, int]
"""The coarsest number type in the model, and the width of the trial."""
_Way = tuple[bool, bool]
"""How plain modules run: widened, and with fused blocks (see ``UnhookedModel``)."""
_VERDICTS: WeakKeyDictionary[Any, dict[_Trial, _Way | None]] = WeakKeyDictionary()
"""By model: the first way in which its plain modules are right; None if there is none."""
_Kept = dict[tuple[int, int], tuple[HookedModel, UnhookedModel | None]]
"""By the identity of a model and the width: the model, which so keeps its identity; its modules."""
_KEPT: ContextVar[_Kept | None] = ContextVar("_KEPT", default=None)


def trusted_unhooked_model(model: HookedModel, width: int) -> UnhookedModel | None:
    """The plain modules of a model, if there are any and they give its numbers.

    Args:
        width: of the prompts that are to run. A model whose attention sees no further than a
            window is tried again the first time that prompts are wider than it.
    """
    kept = _KEPT.get()
    if kept is None:
        return _made(model, width)
    if not may_be_unhooked(model):
        return None
    key = id(model), width
    if key not in kept:
        kept[key] = model, _made(model, width)
    return kept[key][1]


def _made(model: HookedModel, width: int) -> UnhookedModel | None:
    way = _tried(model, width)
    return None if way is None else make_unhooked(model, wide=way[0], fused=way[1])


@contextmanager
def keeping_unhooked() -> Iterator[None]:
    """While open, and in this thread, the plain modules of a model are made once, not for each run.

    For the length of a call that leaves the model as it is. Modules put in the place of others, and
    norms and biases of a narrow type, are taken over when the plain modules are made: of a change
    to those in between nothing would be seen. Hooks set in between are seen all the same, and
    weights, which are the model's own.
    """
    if _KEPT.get() is not None:
        yield
        return
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def sweep_resolution(model: HookedModel) -> float:
    """Effects of sweeps smaller than this are rounding; see `interp.precision`."""
    dtype = coarsest_dtype(model)
    wide, _ = _tried(model, WIDTH) or (False, False)
    return precision_of(wide_dtype(dtype) if wide else dtype).resolution


def _tried(model: HookedModel, width: int) -> _Way | None:
    """The entry of ``_VERDICTS``; the model is tried now if it was not before."""
    if not may_be_unhooked(model):
        return None
    verdicts = _VERDICTS.setdefault(model, {})
    trial = coarsest_dtype(model), _trial_width(model, width)
    if trial not in verdicts:
        verdicts[trial] = _verdict(model, trial[1])
    return verdicts[trial]


def _trial_width(model: HookedModel, width: int) -> int:
    """The width at which every attention window narrower than the prompts is tried too."""
    config = getattr(model.original_model, "config", None)
    config = getattr(config, "text_config", config)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    sizes = (size + 4 for size in windows if isinstance(size, int) and size < width)
    return max([WIDTH, *sizes])


@torch.no_grad()
def _verdict(model: HookedModel, width: int) -> _Way | None:
    batch, dtype, coarsest = _prompts(model, width), dtype_of(model), coarsest_dtype(model)
    rows = torch.arange(len(batch), device=batch.tokens.device)
    with unrounded(model.original_model):
        expected = call_positions(model.original_model, batch, rows)[:, -1]
    if not bool(torch.isfinite(expected).all()):
        return None  # whoever runs the model is told where it stops being finite
    # In float32 there is one way only.
    widths = (wide_dtype(coarsest) != coarsest, False)
    for wide, fused in dict.fromkeys(product(widths, (True, False))):
        plain = make_unhooked(model, wide=wide, fused=fused)
        if plain is None:
            continue
        # As it stands, a quantized model rounds what goes into its projections.
        close = dtype if wide else coarsest
        try:
            differences = [
                float((widened(found) - widened(expected)).abs().max())
                for found in _runs(plain, batch, rows)
                if not agrees(found, expected, close)
            ]
        except CANNOT as error:
            if is_out_of_memory(error):
                raise
            logger.info("no sweeps on plain modules in %s: %s", plain.dtype, error)
            continue
        if not differences:
            return wide, fused
        logger.info(
            "no sweeps on plain modules in %s: their logits differ by %g from the hooked model's",
            plain.dtype,
            differences[0],
        )
    return None


def _prompts(model: HookedModel, width: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(int(model.cfg.d_vocab), (2, width), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, :PADDED] = False
    device = device_of(model)
    return TokenBatch(tokens.to(device), mask.to(device))


def _runs(plain: UnhookedModel, batch: TokenBatch, rows: Tensor) -> Iterator[Tensor]:
    """The same logits in the ways that sweeps compute them."""
    middle, cache = plain.n_layers // 2, DynamicCache()
    seen: dict[str, Tensor] = {}

    def store(value: Tensor, hook: Any, name: str) -> None:
        seen[name] = value.detach()

    names = [hook_name("resid_pre", 0), hook_name("resid_pre", middle), hook_name("z", middle)]
    hooks: list[Hook] = [(name, partial(store, name=name)) for name in names]
    plain.run(batch, rows, end=START, cache=cache)
    yield plain.run(batch, rows, start=START, cache=cache, hooks=hooks)
    prefix = tuple(
        (layer.keys[:, :, :START], layer.values[:, :, :START])  # type: ignore[attr-defined]
        for layer in cache.layers
    )
    resume = partial(plain.resume, batch, prefix, rows, start=START)
    yield resume(layer=0, residual=seen[names[0]])
    yield resume(layer=middle, residual=seen[names[1]], z=as_units(seen[names[2]], "z"))
