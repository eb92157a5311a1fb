"""How far a run in bfloat16 or float16 is from float32, measured on a few of its own prompts.

The same effects are computed twice on the same prompts, in the run's dtype and in float32, and the
largest differences go into the manifest. The float32 model is read anew from where the run's model
came from, so that the rounding of the weights counts too; where that cannot be had (a model made in
memory) the run's own weights are widened for as long as it takes, which changes no bit of them.

It comes last, when all of the run's own results are written: it takes the memory of a second model.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import UserError
from interp.files import one_line
from interp.files.documents import write_json
from interp.forward.out_of_memory import is_out_of_memory
from interp.models import loader_of, model_info
from interp.models.hooked_model import HookedModel
from interp.runs.manifest import read_manifest

logger = logging.getLogger(__name__)

N_PROMPTS = 4
TOP_HEADS = 10
Measure = Callable[[Any], tuple[Tensor, Tensor]]
"""From a hooked model to the unedited metric and the effects, on the same prompts each time."""


def note_dtype_check(run: Path, model: HookedModel, measure: Measure, *, made: bool = True) -> None:
    """Compare a finished run with float32, and write what comes of it into its manifest.

    The run's own results are there already, and stand, whatever becomes of the comparison.

    Args:
        made: False leaves the comparison out, and says so in the manifest.
    """
    found = dtype_check(model, measure) if made else _left_out(model, "as was asked for")
    if found:
        write_json(run / "manifest.json", {**read_manifest(run), **found})


def dtype_check(model: HookedModel, measure: Measure) -> dict[str, Any]:
    """What a manifest says of the difference from float32, as ``dtype_check``; else nothing.

    A run in float32 has nothing to say. Where the comparison cannot be made, because memory runs
    out, say, that is what is said, in a warning too.

    Effects that are NaN in both were not measured and are left out.
    """
    info = model_info(model)
    if info.dtype == "float32":
        return {}
    logger.info("comparing with float32 on %d prompts", N_PROMPTS)
    try:
        metric, effects = measure(model)
        with _in_float32(model) as (reference, against):
            other_metric, other_effects = measure(reference)
    except (UserError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        reason = one_line(error) if str(error) else "memory ran out"
        logger.warning("the comparison with float32 is left out (%s); the results stand", reason)
        return _left_out(model, reason)
    found = {
        "n_prompts": len(metric),
        "dtype": info.dtype,
        "against": against,
        "largest_metric_difference": _largest(metric, other_metric),
        "largest_effect_difference": _largest(effects, other_effects),
    }
    return {"dtype_check": found}


def _left_out(model: HookedModel, reason: str) -> dict[str, Any]:
    dtype = model_info(model).dtype
    return {} if dtype == "float32" else {"dtype_check": {"dtype": dtype, "left_out": reason}}


def _largest(own: Tensor, other: Tensor) -> float:
    difference = (own.double() - other.double()).abs()
    known = difference[~torch.isnan(difference)]
    return float(known.max()) if len(known) else 0.0


@contextmanager
def _in_float32(model: HookedModel) -> Iterator[tuple[Any, str]]:
    reference = _read_in_float32(model)
    if reference is not None:
        yield reference, "float32"
        return
    with widened(model):
        yield model, "the same weights in float32"


def _read_in_float32(model: HookedModel) -> Any | None:
    """The model read anew, unless what is there now is none, or another."""
    try:
        reference = loader_of(model, dtype="float32")()
    except UserError:
        return None
    same = model_info(reference).fingerprint == model_info(model).fingerprint
    return reference if same else None


@contextmanager
def widened(model: Any) -> Iterator[None]:
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
