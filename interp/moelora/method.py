"""MoELoRA as a PEFT method: which modules are adapted, and what PEFT may do with them.

Importing `interp.moelora` registers it; from then on ``get_peft_model``, ``save_pretrained``,
``PeftModel.from_pretrained``, several named adapters, ``set_adapter``, ``disable_adapter`` and
``modules_to_save`` work as for LoRA. Merging does not, since routing depends on the token.

An adapter's configuration records the shape of its base model and a few of its weights. Another
shape is an error when the adapter is loaded; the same shape with other weights (a fine-tuned or
rounded copy), or with another quantization, is legitimate and only warned of.
"""

import logging
from contextlib import contextmanager
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, register_peft_method
from torch import nn

from interp.errors import UserError, errors_in
from interp.forward.adapted_projections import layer_of
from interp.moelora.config import MOELORA, MoELoRAConfig
from interp.moelora.fused_modules import fuse_modules, unfuse_modules
from interp.moelora.layer import NO_MERGE, MoELoRALinear, adapted_layers, sizes_of
from interp.moelora.recorder import Recorder
from interp.quantized import is_packed, keep_precision, quantization_of

logger = logging.getLogger(__name__)

_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads")
_SAMPLED = 8
# Rounding to bfloat16 changes a weight by less than 0.4 %; other training by much more.
_TOLERANCE = 0.02


class MoELoRAModel(BaseTuner):
    """Puts MoELoRA layers in place of the targeted projections of a model."""

    prefix = f"{MOELORA.lower()}_"
    tuner_layer_cls = MoELoRALinear
    # Query and value projections, as in the paper, under each architecture's names.
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        """Before the first adapter: follow the model's forward passes."""
        keep_precision(model)
        self.recorder = Recorder(fuse_modules)
        self._handles = self.recorder.watch(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called, not its ``forward`` as in earlier PEFT: hooks follow the model's passes."""
        return self.model(*args, **kwargs)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Add an adapter; a target that is not there raises UserError and changes nothing."""
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except (ValueError, UserError) as error:
            if not adapted_layers(model):
                self._stop_watching()
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot add the adapter: {str(error).splitlines()[0]}") from error

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Every check that can be made before anything is replaced."""
        if peft_config.made_for is not None:
            check_base(peft_config.made_for, model)
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise UserError(
                "MoELoRA is for decoder-only models, and this one has an encoder as well: the "
                "padding of the one would count as that of the other"
            )
        peft_config.base = describe_base(model)
        self._check_counts(peft_config, model)
        if str(peft_config.target_modules).lower() == "all-linear":
            return
        inside: list[str] = []
        for key, module in model.named_modules():
            if not key or any(key.startswith(adapted) for adapted in inside):
                continue
            if isinstance(module, BaseTunerLayer):
                inside.append(f"{key}.")
            if not self._check_target_module_exists(peft_config, key):
                continue
            if not isinstance(module, MoELoRALinear):
                check_target(key, module)
            peft_config.experts_in(layer_of(key), key)

    @staticmethod
    def _check_counts(config: MoELoRAConfig, model: nn.Module) -> None:
        layers = getattr(_text_config(model), "num_hidden_layers", None)
        counts = config.num_experts
        if isinstance(counts, list) and layers is not None and len(counts) != layers:
            raise UserError(
                f"num_experts has {len(counts)} counts, one per layer, but the model has {layers} "
                "layers: give one for each"
            )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if not isinstance(layer, MoELoRALinear):
            check_target(current_key, target)
            layer = MoELoRALinear(target, current_key, self.recorder)
            layer.train(target.training)
            layer.set_adapter(self.active_adapters)
        count = peft_config.experts_in(layer_of(current_key), current_key)
        layer.add_adapter(adapter_name, peft_config, count)
        if layer is not target:
            setattr(parent, target_name, layer)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """PEFT would drop the adapter of each row in silence, which is not supported here."""
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                "MoELoRA uses the same adapters for a whole batch: leave adapter_names out and "
                "call set_adapter"
            )
        yield

    def _check_merge_allowed(self) -> None:
        raise UserError(NO_MERGE)

    def unmerge_adapter(self) -> None:
        """Not possible, as nothing can have been merged; raises UserError."""
        raise UserError(NO_MERGE)

    def unload(self) -> nn.Module:
        """The base model without any adapter."""
        base = super().unload()
        self._stop_watching()
        return base

    def _stop_watching(self) -> None:
        unfuse_modules(self.model)
        for handle in self._handles:
            handle.remove()
        self._handles = []


def check_target(key: str, module: Any) -> None:
    """Raise UserError with the target's name if it is not linear."""
    with errors_in(f"cannot adapt {key!r}"):
        sizes_of(module)


def _text_config(model: nn.Module) -> Any:
    """The configuration of a model, or of its language model where it has several parts."""
    settings: Any = getattr(model, "config", None)
    return settings.get_text_config() if hasattr(settings, "get_text_config") else settings


def describe_base(model: nn.Module) -> dict[str, Any]:
    """The model's sizes and some of its weights, as JSON can hold them."""
    settings = _text_config(model)
    sizes = {name: getattr(settings, name, None) for name in _SIZES}
    known = {name: value for name, value in sizes.items() if isinstance(value, str | int)}
    return {**known, "weights": _some_weights(model), "quantization": quantization_of(model)}


def check_base(recorded: dict[str, Any], model: nn.Module) -> None:
    """Compare `model` with what an adapter recorded; UserError if its shape is another."""
    here = describe_base(model)
    differing = [
        f"{name} is {here[name]}, not {recorded[name]}"
        for name in _SIZES
        if name in here and name in recorded and here[name] != recorded[name]
    ]
    if differing:
        raise UserError(
            f"the adapter was made for another base model ({'; '.join(differing)} there): load it "
            "with its own base model"
        )
    made, found = recorded.get("quantization", here["quantization"]), here["quantization"]
    if made != found:
        logger.warning(
            "the adapter was made for a base model %s, and this one is %s: their outputs differ",
            f"quantized as {made}" if made else "that is not quantized",
            f"quantized as {found}" if found else "not quantized",
        )
    was, now = recorded.get("weights") or [], here["weights"]
    if len(was) == len(now) and was:
        before, after = torch.tensor(was), torch.tensor(now)
        if (before - after).abs().max() > _TOLERANCE * before.abs().max():
            logger.warning(
                "the adapter was made for a base model of this shape but with other weights"
            )


def _some_weights(model: nn.Module) -> list[float]:
    """The first values of the last weight matrix that is neither quantized nor an adapter's."""
    for name, parameter in reversed(list(model.named_parameters())):
        plain = parameter.ndim == 2 and not is_packed(parameter) and not parameter.is_meta
        if plain and "moelora_" not in name and "modules_to_save" not in name:
            values = parameter.detach().flatten()[:_SAMPLED].float()
            return [round(value, 6) for value in values.tolist()]
    return []


def register() -> None:
    """Make MoELoRA known to PEFT; a second call changes nothing."""
    if PEFT_TYPE_TO_TUNER_MAPPING.get(MOELORA) is MoELoRAModel:  # type: ignore[call-overload]
        return
    register_peft_method(name=MOELORA.lower(), config_cls=MoELoRAConfig, model_cls=MoELoRAModel)


register()
