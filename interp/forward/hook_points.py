"""The components that can be patched: where each is read and written, and what its units are.

Every component is seen as [row pos unit width]: a unit is a query head (``z``, ``q``,
``pattern``), a key-value head (``k``, ``v``; with grouped queries one serves a whole group of
query heads), a neuron (``mlp_post``, whose width is one), or the one vector of the residual
stream's size. ``q``, ``k`` and ``v`` are taken before the rotary embedding, as in TransformerLens;
a pattern's position is its query.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require
from interp.models.versions import check_hooked

Component = Literal[
    "z",
    "q",
    "k",
    "v",
    "pattern",
    "attn_out",
    "mlp_post",
    "mlp_out",
    "resid_pre",
    "resid_mid",
    "resid_post",
]
Axis = Literal["head", "kv_head", "neuron"]


@dataclass(frozen=True)
class HookLocation:
    """Hook point of a component in a block, and the name of its axis of units, if it has one."""

    hook: str
    axis: Axis | None


HOOK_LOCATIONS: dict[str, HookLocation] = {
    "z": HookLocation("attn.hook_z", "head"),
    "q": HookLocation("attn.hook_q", "head"),
    "k": HookLocation("attn.hook_k", "kv_head"),
    "v": HookLocation("attn.hook_v", "kv_head"),
    "pattern": HookLocation("attn.hook_pattern", "head"),
    "attn_out": HookLocation("hook_attn_out", None),
    "mlp_post": HookLocation("mlp.hook_post", "neuron"),
    "mlp_out": HookLocation("hook_mlp_out", None),
    "resid_pre": HookLocation("hook_resid_pre", None),
    "resid_mid": HookLocation("hook_resid_mid", None),
    "resid_post": HookLocation("hook_resid_post", None),
}


def check_component(component: str, model: HookedModel | None = None) -> Component:
    """Raise for an unknown component, or one that a layer of the model does not have."""
    if not isinstance(component, str) or component not in HOOK_LOCATIONS:
        raise UserError(f"unknown component {component!r}; known: {', '.join(get_args(Component))}")
    if model is not None:
        check_hooked(model)
        if component in ("attn_out", "mlp_out", "resid_mid"):
            require(model, "residual")
    if model is None or not (missing := _layers_without(model, component)):
        return component  # type: ignore[return-value]
    known = [name for name in HOOK_LOCATIONS if not _layers_without(model, name)]
    layers = "" if len(missing) == model.cfg.n_layers else f" in layer {missing[0]}"
    raise UserError(f"this model has no {component!r}{layers}; it has: {', '.join(known)}")


def _layers_without(model: HookedModel, component: str) -> list[int]:
    """The layers in which the component has no hook point, or which have no attention."""
    needed = (component, "z") if component == "attn_out" else (component,)
    points = model.hook_dict  # made anew each time that it is asked for
    return [
        layer
        for layer in range(model.cfg.n_layers)
        if any(hook_name(name, layer) not in points for name in needed)
    ]


def hook_name(component: str, layer: int) -> str:
    """The component's hook point in a layer."""
    return f"blocks.{layer}.{HOOK_LOCATIONS[component].hook}"


def axis_of(component: str) -> Axis | None:
    """The name of the component's axis of units; None where a layer has one unit."""
    return HOOK_LOCATIONS[component].axis


def count_units(model: HookedModel, component: str) -> int:
    """How many units of the component a layer has."""
    axis = axis_of(component)
    if axis is None:
        return 1
    if axis == "head":
        return model.cfg.n_heads
    if axis == "neuron":
        return model.cfg.d_mlp
    return getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads


def as_units(value: Tensor, component: str) -> Float[Tensor, "row pos unit width"]:
    """What a hook point shows, by position and unit; a view.

    Raises:
        UserError: it does not show its component by prompt and position (some mixtures of experts
            show the tokens of all prompts in one axis).
    """
    axis = axis_of(component)
    if value.ndim != (4 if axis in ("head", "kv_head") else 3):
        raise UserError(
            f"this model shows {component!r} as {list(value.shape)} and not by prompt and "
            "position: it cannot be patched"
        )
    if component == "pattern":
        return value.transpose(1, 2)
    if axis == "neuron":
        return value.unsqueeze(3)
    return value if axis else value.unsqueeze(2)


def from_units(value: Float[Tensor, "row pos unit width"], component: str) -> Tensor:
    """The reverse of ``as_units``; a view."""
    if component == "pattern":
        return value.transpose(1, 2)
    axis = axis_of(component)
    if axis == "neuron":
        return value.squeeze(3)
    return value if axis else value.squeeze(2)
