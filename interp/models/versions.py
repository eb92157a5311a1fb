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
from typing import TYPE_CHECKING, Any

from interp.errors import UserError
from interp.models.hooked_model import HookedModel

VERSION = importlib.metadata.version("transformer-lens")
MAJOR = int(VERSION.split(".")[0])

if TYPE_CHECKING or MAJOR >= 4:
    from transformer_lens.model_bridge import TransformerBridge as HookedClass

    from interp.models.bridge import before_each_pass as before_each_pass
    from interp.models.bridge import boot as boot
else:
    from transformer_lens import HookedTransformer as HookedClass

    from interp.models.hooked_transformer import before_each_pass as before_each_pass
    from interp.models.hooked_transformer import boot as boot


def check_hooked(model: Any) -> None:
    """Raise UserError for anything but a hooked model, with how to get one."""
    if not isinstance(model, HookedClass):
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
