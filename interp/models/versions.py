"""The two TransformerLens majors, and all that the rest of the package need know of them.

TransformerLens 4 wraps a transformers model in hook points: the hooked model is a
`TransformerBridge`. TransformerLens 3 has modules of its own, into which the weights are read: the
hooked model is a `HookedTransformer`. Both have ``cfg``, ``hooks``, ``run_with_cache`` and the same
names of hook points; both here have ``tokenizer`` and ``original_model``, which is called and
generates as a transformers model does (on 3, see `interp.models.transformers_face`). What differs
beyond that is asked for here, by what it is and not by a version:

* `boot` makes the hooked model;
* `wraps_transformers`: below the hook points are transformers' own modules, which can run without
  them (``interp.forward.unhooked``); on 3 sweeps run on the hooked model;
* `writes_resid_mid`: what a hook returns at ``hook_resid_mid`` goes on in the residual stream;
* `before_each_pass`: what is told of every forward pass, however it is called;
* `require_bridge`: what cannot be done without the bridge says so by name.
"""

import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import UserError
from interp.models.hooked_model import HookedModel

VERSION = importlib.metadata.version("transformer-lens")
MAJOR = int(VERSION.split(".")[0])

if TYPE_CHECKING or MAJOR >= 4:
    from transformer_lens.model_bridge import TransformerBridge as HookedClass
else:
    from transformer_lens import HookedTransformer as HookedClass


Begin = Callable[[Tensor | None, Tensor | None, int], None]
"""What `before_each_pass` calls."""


def boot(
    hf_model: Any, tokenizer: Any, *, spec: str, device: torch.device, dtype: torch.dtype
) -> HookedModel:
    """The hooked model around, or of the weights of, a transformers model in evaluation mode.

    Raises UserError, with the architecture's name, for one that this TransformerLens cannot hook.
    """
    if MAJOR >= 4:
        from interp.models.bridge import boot_bridge as boot_one
    else:
        from interp.models.hooked_transformer import boot_hooked_transformer as boot_one
    return boot_one(hf_model, tokenizer, spec=spec, device=device, dtype=dtype)


def check_hooked(model: Any) -> None:
    """Raise UserError for anything but a hooked model, and say how to get one."""
    if not isinstance(model, HookedClass):
        raise UserError(
            f"{_shown(model)} is not a hooked model: load one with interp.load_model, or wrap a "
            "transformers model with interp.models.from_hf(hf_model, tokenizer)"
        )


def _shown(model: Any) -> str:
    return repr(model)[:60] if isinstance(model, str) else type(model).__name__


def before_each_pass(model: HookedModel, begin: Begin) -> AbstractContextManager[None]:
    """While open, ``begin(tokens, mask, seen)`` is called before every forward pass of the model.

    ``tokens`` are the new token ids [prompt pos], or None where the pass is given embeddings;
    ``mask`` is the attention mask, of a prefill that of its tokens, or None; ``seen`` counts the
    columns in the cache.
    """
    if wraps_transformers(model):
        from interp.models.bridge import before_each_pass as before
    else:
        from interp.models.hooked_transformer import before_each_pass as before
    return before(model, begin)


def wraps_transformers(model: HookedModel) -> bool:
    """Whether the model's components are transformers' own modules behind hook points."""
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
