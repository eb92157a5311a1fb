"""Evaluation mode for the time of a run, whatever mode each part of a model was left in.

A model may be in training mode as a whole (a Trainer leaves it so), or in some of its parts: one
dropout module is enough to make every value random. `evaluating` looks at each module by itself,
and gives each its own mode back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from interp.errors import UserError
from interp.models.hooked_model import HookedModel


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """All modules of a model in evaluation mode; on exit each is in the mode that it was in."""
    # The flag alone, as ``train`` of a module may do more, or hand it on to modules below.
    training = [module for module in model.modules() if module.__dict__.get("training")]
    for module in training:
        module.__dict__["training"] = False
    try:
        yield
    finally:
        for module in training:
            module.__dict__["training"] = True


@contextmanager
def with_gradients(model: HookedModel) -> Iterator[None]:
    """Gradients on, whatever they were. Raises UserError for weights that cannot have any."""
    if any(weight.is_inference() for weight in model.parameters()):
        raise UserError(
            "the model's weights were made under torch.inference_mode, through which no gradient "
            "goes: load the model outside of it, or use a method without gradients (exact)"
        )
    with torch.enable_grad():
        yield
