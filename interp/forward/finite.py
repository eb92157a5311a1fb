"""NaN and infinity in a model's activations: at which layer and hook they first appear.

Checking is a look at the logits. Only where they are not finite is the run made again, with every
hook point watched, to name the first one whose value is not finite, and the weights are searched
for the cause. Attention scores are not watched: a mask is infinite by right.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import UserError
from interp.models.finite import first_bad_weight
from interp.models.hooked_model import HookedModel

_LAYER = re.compile(r"\bblocks\.(\d+)\.")
_WATCHED = re.compile(
    r"(hook_embed|hook_pos_embed|hook_resid_(pre|mid|post)|hook_(attn|mlp)_out"
    r"|attn\.hook_(q|k|v|pattern|z)|mlp\.hook_(pre|post)|ln_final\.hook_normalized"
    r"|moelora\.hook_(router|gate))$"
)
"""Hook points that can be read in any model that has them; some others must be switched on."""


def check_finite(logits: Tensor, model: HookedModel, again: Callable[[], object]) -> Tensor:
    """The logits, if they are finite. Raises UserError that names where they stop being so.

    Args:
        model: the hooked model that gave them.
        again: makes the run again, hooks included.
    """
    if bool(torch.isfinite(logits).all()):
        return logits
    raise UserError(
        f"the model gives NaN or infinity: {_where(model, again)} is not finite{_why(model)}"
    )


def first_bad_hook(model: HookedModel, run: Callable[[], object]) -> str | None:
    """The first hook point of a hooked model with a value that is not finite in ``run()``."""
    found: list[str] = []

    def watch(name: str) -> Callable[[Any, Any], None]:
        # Not the hook's own name: on the bridge that is another one for the same place.
        def see(value: object, hook: Any) -> None:
            if not found and _is_bad(value):
                found.append(name)

        return see

    watched = [name for name in model.hook_dict if _WATCHED.search(name)]
    with model.hooks(fwd_hooks=[(name, watch(name)) for name in watched]):
        run()
    return found[0] if found else None


def first_bad_module(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The same of a model without hook points: the first module whose output is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Module, arguments: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            if not found and _is_bad(value):
                found.append(name)

        return see

    leaves = [(name, one) for name, one in model.named_modules() if not any(one.children())]
    with ExitStack() as stack:
        for name, one in leaves:
            stack.callback(one.register_forward_hook(watch(name)).remove)
        run()
    return found[0] if found else None


def check_finite_loss(loss: Tensor, model: nn.Module, again: Callable[[], object]) -> Tensor:
    """As `check_finite`, for a transformers or PEFT model and the losses or logits it gave."""
    if bool(torch.isfinite(loss).all()):
        return loss
    name = first_bad_module(model, again)
    place = f"the output of {name}" if name else "its loss"
    raise UserError(f"the model gives NaN or infinity: {place} is not finite{_why(model)}")


def _is_bad(value: object) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return not bool(torch.isfinite(value).all())


def _where(model: HookedModel, again: Callable[[], object]) -> str:
    name = first_bad_hook(model, again)
    if name is None:
        return "the logits, and no hook before them,"
    layer = _LAYER.search(f"{name}.")
    return f"hook {name}" + (f" of layer {layer[1]}" if layer else "")


def _why(model: Any) -> str:
    weight = first_bad_weight(model)
    if weight is not None:
        return f", because its weight {weight.replace('_original_component.', '')} is not"
    return "; check its dtype (float16 overflows where bfloat16 does not) and its weights"
