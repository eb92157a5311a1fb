"""The transformers model inside a bridge, without hook points: other modules, the same parameters.

TransformerLens' components replace the transformers modules that they wrap. `TransformersModules`
copies the module objects (not the parameters) and puts the wrapped modules back, so that
transformers' own code runs. They are in evaluation mode. The hooked model does not change, and no
memory is taken.
"""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from interp.models.hooked_model import HookedModel
from interp.models.placement import run_aligned

_AT_BOOT = "_forward_at_boot"


def note_forwards(model: HookedModel) -> None:
    """Note which forwards a bridge has replaced, to distinguish them from those replaced later."""
    for module in (*model.modules(), *model.original_model.modules()):
        if "forward" in module.__dict__ and not is_component(module):
            module.__dict__[_AT_BOOT] = module.__dict__["forward"]


class TransformersModules:
    """Transformers' own modules around a hooked model's parameters.

    Attributes:
        root: the copy of the transformers model.

    Raises:
        NotImplementedError: a forward was replaced after loading, or before accelerate put its
            hooks into the modules.
    """

    def __init__(self, model: HookedModel, *, attn_implementation: str | None = None) -> None:
        """Copy ``model.original_model``; its configurations name another attention if asked to."""
        self._copies: dict[int, nn.Module] = {}
        self._configs: dict[int, PretrainedConfig] = {}
        self._attention = attn_implementation
        self.root: Any = self._copied(model.original_model)

    def of(self, component: Any) -> nn.Module | None:
        """The copy of what a component of the hooked model wraps; None if it wraps nothing."""
        return self._copies.get(id(wrapped(component)))

    def modules(self) -> Iterator[nn.Module]:
        """All copies."""
        return iter(self._copies.values())

    def _copied(self, module: nn.Module) -> nn.Module:
        inner = wrapped(module)
        known = self._copies.get(id(inner))
        if known is not None:
            return known
        forward = inner.__dict__.get("forward")
        if forward is not None and forward is not inner.__dict__.get(_AT_BOOT):
            raise NotImplementedError(f"{type(inner).__name__} with a forward of its own")
        below = inner.__dict__.get("_old_forward")  # what accelerate's hook calls
        if below is not None and getattr(below, "__func__", None) is not type(inner).forward:
            raise NotImplementedError(f"{type(inner).__name__} with a forward of its own")
        twin = object.__new__(type(inner))
        attributes = twin.__dict__
        attributes.update(inner.__dict__)
        # TransformerLens may have set one (Falcon): the class has transformers' own.
        attributes.pop("forward", None)
        attributes["training"] = False
        for name, value in inner.__dict__.items():
            if isinstance(value, dict):
                if name.endswith("_hooks"):
                    attributes[name] = value.copy()
            elif isinstance(value, PretrainedConfig):
                attributes[name] = self._config(value)
        if "_hf_hook" in attributes:
            attributes["forward"] = run_aligned(twin, twin.forward)
        self._copies[id(inner)] = twin
        attributes["_modules"] = {
            name: None if child is None else self._copied(child)
            for name, child in inner._modules.items()
        }
        return twin

    def _config(self, config: PretrainedConfig) -> PretrainedConfig:
        if self._attention is None:
            return config
        if id(config) not in self._configs:
            copied = copy.copy(config)
            copied._attn_implementation = self._attention
            self._configs[id(config)] = copied
        return self._configs[id(config)]


def is_component(module: Any) -> bool:
    """Whether a module is a TransformerLens component that can wrap a transformers module."""
    return hasattr(type(module), "original_component")


def wrapped(module: Any) -> Any:
    """The transformers module at the bottom of a component, or the module itself."""
    while is_component(module):
        module = module.original_component
    return module
