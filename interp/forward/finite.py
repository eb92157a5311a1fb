"""NaN and infinity in a model's activations: the layer and hook at which they first appear.

Only the logits are checked. If they are not finite, the run is repeated with every hook point
watched, to name the first one whose value is not finite, and the weights are searched for the
cause. Attention scores are not watched: a mask makes them infinite.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import UserError
from interp.models.hooked_model import HookedModel
from interp.models.whole import first_bad_weight

_LAYER = re.compile(r"\bblocks\.(\d+)\.")
_WATCHED = re.compile(
    r"(hook_embed|hook_pos_embed|hook_resid_(pre|mid|post)|hook_(attn|mlp)_out"
    r"|attn\.hook_(q|k|v|pattern|z)|mlp\.hook_(pre|post)|ln_final\.hook_normalized"
    r"|moelora\.hook_(router|gate))$"
)
"""Hook points that can be read in any model that has them; some others must be switched on."""


def check_finite(logits: Tensor, model: HookedModel, again: Callable[[], object]) -> Tensor:
    """The logits, if they are finite.

    Args:
        model: the hooked model that gave them.
        again: repeats the run, hooks included.

    Raises:
        UserError: they are not; the message names where they stop being finite.
    """
    if bool(torch.isfinite(logits).all()):
        return logits
    name = first_bad_hook(model, again)
    where = "the logits, and no hook before them," if name is None else f"hook {name}"
    if name is not None and (layer := _LAYER.search(f"{name}.")):
        where += f" of layer {layer[1]}"
    raise _not_finite(where, model)


def check_finite_loss(loss: Tensor, model: nn.Module, again: Callable[[], object]) -> Tensor:
    """`check_finite` for a transformers or PEFT model and its losses or logits."""
    if bool(torch.isfinite(loss).all()):
        return loss
    name = first_bad_module(model, again)
    raise _not_finite(f"the output of {name}" if name else "its loss", model)


def first_bad_hook(model: HookedModel, run: Callable[[], object]) -> str | None:
    """The first hook point of a hooked model with a value that is not finite in ``run()``."""
    found: list[str] = []

    # Not the hook's own name: on the bridge that is another one for the same hook point.
    def watch(value: object, hook: Any, *, name: str) -> None:
        if _is_bad(value):
            found.append(name)

    watched = [name for name in model.hook_dict if _WATCHED.search(name)]
    with model.hooks(fwd_hooks=[(name, partial(watch, name=name)) for name in watched]):
        run()
    return found[0] if found else None


def first_bad_module(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The first module without submodules whose output is not finite in ``run()``."""
    found: list[str] = []

    def watch(module: nn.Module, arguments: Any, output: Any, *, name: str) -> None:
        if _is_bad(output[0] if isinstance(output, tuple) and output else output):
            found.append(name)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not any(module.children()):
                stack.enter_context(module.register_forward_hook(partial(watch, name=name)))
        run()
    return found[0] if found else None


def _is_bad(value: object) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return not bool(torch.isfinite(value).all())


def _not_finite(where: str, model: Any) -> UserError:
    weight = first_bad_weight(model)
    cause = "; check its dtype (float16 overflows where bfloat16 does not) and its weights"
    if weight is not None:
        cause = f", because its weight {weight.replace('_original_component.', '')} is not"
    return UserError(f"the model gives NaN or infinity: {where} is not finite{cause}")
