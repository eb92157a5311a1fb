"""Evaluation mode for the time of a run, whatever mode each part of a model was left in.

A model may be in training mode as a whole (a Trainer leaves it so), or in some of its parts: one
dropout module is enough to make every value random. `evaluating` looks at each module by itself,
and gives each its own mode back.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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
