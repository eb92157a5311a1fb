"""How far a run in bfloat16 or float16 is from float32, measured on a few of its own prompts.

The same effects are computed twice on the same prompts, in the run's dtype and in float32, and the
largest differences go into the manifest. The float32 model is read anew from where the run's model
came from, so that the rounding of the weights counts too; where that cannot be had (a model made in
memory) the run's own weights are widened for as long as it takes, which changes no bit of them.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import UserError
from interp.models import loader_of, model_info

logger = logging.getLogger(__name__)

N_PROMPTS = 4
TOP_HEADS = 10
Measure = Callable[[Any], tuple[Tensor, Tensor]]
"""From a hooked model to the unedited metric and the effects, on the same prompts each time."""


def dtype_check(model: Any, measure: Measure) -> dict[str, Any]:
    """What a manifest says of the difference from float32, as ``dtype_check``; else nothing.

    A run in float32 has nothing to say.

    Effects that are NaN in both were not measured and are left out.
    """
    info = model_info(model)
    if info.dtype == "float32":
        return {}
    logger.info("comparing with float32 on %d prompts", N_PROMPTS)
    metric, effects = measure(model)
    with _in_float32(model) as (reference, against):
        other_metric, other_effects = measure(reference)
    found = {
        "n_prompts": len(metric),
        "dtype": info.dtype,
        "against": against,
        "largest_metric_difference": _largest(metric, other_metric),
        "largest_effect_difference": _largest(effects, other_effects),
    }
    return {"dtype_check": found}


def _largest(own: Tensor, other: Tensor) -> float:
    difference = (own.double() - other.double()).abs()
    known = difference[~torch.isnan(difference)]
    return float(known.max()) if len(known) else 0.0


@contextmanager
def _in_float32(model: Any) -> Iterator[tuple[Any, str]]:
    info = model_info(model)
    try:
        reference = loader_of(model, dtype="float32")()
        if model_info(reference).fingerprint == info.fingerprint:
            yield reference, "float32"
            return
    except UserError:
        pass
    with widened(model):
        yield model, "the same weights in float32"


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Every weight of less than 32 bits as float32; on exit as it was, to the last bit."""
    narrow = [
        (weight, weight.dtype)
        for weight in (*model.parameters(), *model.buffers())
        if weight.dtype in (torch.bfloat16, torch.float16)
    ]
    try:
        for weight, _ in narrow:
            weight.data = weight.data.float()
        yield
    finally:
        for weight, dtype in narrow:
            weight.data = weight.data.to(dtype)
