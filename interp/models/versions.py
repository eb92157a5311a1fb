"""The two major versions of TransformerLens, and the differences that the toolkit has to know.

TransformerLens 4 wraps a transformers model in hook points: the hooked model is a
`TransformerBridge`. TransformerLens 3 has modules of its own, into which the weights are read: the
hooked model is a `HookedTransformer`. Both have ``cfg``, ``hooks``, ``run_with_cache`` and the same
names of hook points; both here have ``tokenizer`` and ``original_model``, which is called and
generates as a transformers model does (on 3, see `interp.models.transformers_face`).

`boot` makes the hooked model, and `before_each_pass` calls a function before every forward pass;
both come from `interp.models.bridge` or `interp.models.hooked_transformer`.
"""

import importlib.metadata
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from interp.errors import UserError
from interp.models.hooked_model import HookedModel


def _installed() -> str:
    """The installed version; an empty text where plain transformers models alone are used."""
    try:
        return importlib.metadata.version("transformer-lens")
    except importlib.metadata.PackageNotFoundError:
        return ""


VERSION = _installed()
MAJOR = int((VERSION or "4").split(".")[0])


def _implementation() -> Any:
    """The module of this version's hooked models.

    Imported here because TransformerLens takes seconds, and reports and tables need no model.
    """
    if not VERSION:
        raise UserError("hooked models need TransformerLens: pip install transformer-lens")
    if MAJOR >= 4:
        from interp.models import bridge as implementation
    else:
        from interp.models import hooked_transformer as implementation
    return implementation


def hooked_class() -> type:
    """The class of hooked models."""
    return _implementation().HOOKED_CLASS


def boot(
    hf_model: Any, tokenizer: Any, *, spec: str, device: torch.device, dtype: torch.dtype
) -> HookedModel:
    """The hooked model around, or with the weights of, a transformers model in evaluation mode.

    Raises:
        UserError: TransformerLens cannot hook this architecture.
    """
    return _implementation().boot(hf_model, tokenizer, spec=spec, device=device, dtype=dtype)


def before_each_pass(
    model: HookedModel, begin: Callable[..., None]
) -> AbstractContextManager[None]:
    """While open, ``begin(tokens, mask, seen)`` is called before every forward pass of the model.

    See `interp.models.bridge.before_each_pass`.
    """
    return _implementation().before_each_pass(model, begin)


def is_hooked(model: Any) -> bool:
    """Whether this is a hooked model: none exists before TransformerLens is imported."""
    return "transformer_lens" in sys.modules and isinstance(model, hooked_class())


def check_hooked(model: Any) -> None:
    """Raise UserError for anything but a hooked model, with how to get one."""
    if not is_hooked(model):
        given = repr(model)[:60] if isinstance(model, str) else type(model).__name__
        raise UserError(
            f"{given} is not a hooked model: load one with interp.load_model, or wrap a "
            "transformers model with interp.models.from_hf(hf_model, tokenizer)"
        )


def wraps_transformers(model: HookedModel) -> bool:
    """Whether the model's components are transformers' own modules behind hook points.

    These can run without hook points (``interp.forward.unhooked``); on 3 sweeps run on the hooked
    model.
    """
    return hasattr(type(model), "boot_transformers")


def writes_resid_mid(model: HookedModel) -> bool:
    """Whether a new value at ``hook_resid_mid`` replaces the residual stream from there on.

    On the bridge that hook point is the input of the MLP's norm: the MLP alone reads it.
    """
    return not wraps_transformers(model)


def require_bridge(what: str) -> None:
    """Raise UserError, naming ``what``, unless hooked models are bridges."""
    if MAJOR < 4:
        raise UserError(
            f"{what} needs TransformerLens 4 (TransformerBridge), and {VERSION} is installed: "
            "pip install 'transformer-lens>=4,<5'"
        )
