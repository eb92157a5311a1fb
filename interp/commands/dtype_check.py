"""The difference of a run in bfloat16 or float16 from float32, measured on a few of its prompts.

The same effects are computed on the same prompts in the run's dtype and in float32, and the largest
differences are written to the manifest. The float32 model is loaded from the source of the run's
model, so that the rounding of the weights counts too; a model without a source (made in memory) is
cast to float32 during the check, and restored exactly.

The check comes last, when the run's results are written, since it needs memory for a second model.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import UserError
from interp.files.documents import write_json
from interp.files.text import one_line
from interp.forward.out_of_memory import is_out_of_memory
from interp.models import loader_of, model_info
from interp.models.hooked_model import HookedModel
from interp.models.placement import is_offloaded
from interp.runs.manifest import read_manifest

logger = logging.getLogger(__name__)

N_PROMPTS = 4
TOP_HEADS = 10
Measure = Callable[[Any], tuple[Tensor, Tensor]]
"""From a hooked model to the unedited metric and the effects, on the same prompts each time."""


def note_dtype_check(run: Path, model: HookedModel, measure: Measure, *, made: bool = True) -> bool:
    """Compare a finished run with float32, and write the outcome into its manifest.

    Returns whether there is one: nothing is written for a run in float32.

    Args:
        made: False leaves the comparison out, and notes that in the manifest.
    """
    found = dtype_check(model, measure) if made else _left_out(model, "as was asked for")
    if found:
        write_json(run / "manifest.json", {**read_manifest(run), **found})
    return bool(found)


def dtype_check(model: HookedModel, measure: Measure) -> dict[str, Any]:
    """The manifest's entry ``dtype_check``; empty for a run in float32.

    If the comparison fails, because memory runs out, for instance, the entry has the reason, which
    is also logged as a warning. Effects that were not measured (NaN) are left out.
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


def _largest(values: Tensor, reference: Tensor) -> float:
    """The largest absolute difference; 0 where all are NaN."""
    difference = (values.double() - reference.double()).abs()
    known = difference[~torch.isnan(difference)]
    return float(known.max()) if len(known) else 0.0


@contextmanager
def _in_float32(model: HookedModel) -> Iterator[tuple[Any, str]]:
    """The model loaded in float32 or, if that fails or it has changed, cast to float32."""
    try:
        reference = loader_of(model, dtype="float32")()
    except UserError:
        reference = None
    if reference is not None and model_info(reference).fingerprint == model_info(model).fingerprint:
        yield reference, "float32"
        return
    if is_offloaded(model.original_model):
        raise UserError("its weights are offloaded, and the model cannot be loaded again")
    with widened(model):
        yield model, "the same weights in float32"


@contextmanager
def widened(model: Any) -> Iterator[None]:
    """Cast weights of less than 32 bits to float32; on exit they are restored exactly."""
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
