"""The causal language model in the argument of ``from_hf``, or an error that says what it is.

`DataParallel`, `DistributedDataParallel` and ``torch.compile`` wrap a model: the inner one is
taken. An adapter of PEFT is merged into the weights of a copy, which has the same logits; the
adapted model stays as it is, and the copy shares all weights that no adapter touches.
"""

import copy
import sys
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from interp.errors import UserError
from interp.files.text import one_line
from interp.models.call import evaluating
from interp.models.placement import input_device, is_offloaded
from interp.models.versions import is_hooked
from interp.quantized import is_packed, keep_precision, kind_of, quantized_modules

TRIAL_TOKENS = 8
CLOSE = 1e-4
"""Between the logits of the adapted and of the merged model, relative to the largest; in lower
precision, where merged weights are rounded, 500 times that."""


def check_tokenizer(tokenizer: Any) -> None:
    """Raise UserError for anything but a tokenizer of transformers."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        found = "none" if tokenizer is None else type(tokenizer).__name__
        raise UserError(
            f"a tokenizer of transformers is needed here, and {found} was given: load the model's "
            "with transformers.AutoTokenizer"
        )


def causal_model_of(given: Any) -> Any:
    """The model to hook: unwrapped, its adapters merged, checked.

    Raises:
        UserError: no causal language model of transformers, one without weights or with dtypes that
            do not run together, or an adapter that cannot be merged.
    """
    hf_model = _inside(given)
    if is_adapted(hf_model):
        hf_model = _merged(hf_model)
    _check_causal(hf_model)
    keep_precision(hf_model)
    _check_weights(hf_model)
    return hf_model


def _inside(given: Any) -> Any:
    """The model inside data-parallel and compiled ones."""
    if isinstance(given, str):
        raise UserError(f"from_hf takes a model, not a name: use interp.load_model({given!r})")
    if not isinstance(given, nn.Module):
        raise UserError(
            f"from_hf takes a causal language model of transformers, not {type(given).__name__}"
        )
    if is_hooked(given):
        raise UserError("this model is hooked already: use it as it is")
    while True:
        if isinstance(given, nn.DataParallel | nn.parallel.DistributedDataParallel):
            given = given.module
        elif isinstance(inner := getattr(given, "_orig_mod", None), nn.Module):
            given = inner
        else:
            return given


def is_adapted(hf_model: nn.Module) -> bool:
    """Whether the model has adapters of PEFT; if PEFT was never imported it has none."""
    if "peft" not in sys.modules:
        return False
    # Imported here because importing PEFT takes seconds.
    from peft import PeftMixedModel, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    kinds = (PeftModel, PeftMixedModel, BaseTunerLayer, AuxiliaryTrainingWrapper)
    return any(isinstance(module, kinds) for module in hf_model.modules())


def _merged(adapted: Any) -> Any:
    """A copy with the active adapters in its weights. Raises UserError if it is not the same."""
    what = f"{type(adapted).__name__} with an adapter"
    base: Any = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
    if is_offloaded(base):
        raise UserError(
            f"{what} cannot be hooked while weights are offloaded to the CPU or the disk, because "
            "an adapter is merged into the weights: merge it (merge_and_unload), save the model, "
            "and load that"
        )
    for name, module in quantized_modules(base):
        if name.endswith(".base_layer"):
            raise UserError(
                f"{what} cannot be hooked: the adapter would be merged into weights of "
                f"{kind_of(module)}, which would round it away; load the base model without "
                "quantization, put the adapter on that and hook it (a MoELoRA adapter is hooked "
                "beside quantized weights, by interp.moelora.hooked)"
            )
    try:
        merged = _merge_layers(_copy_of(base))
    except (NotImplementedError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f"{what} cannot be hooked, because the adapter does not merge into the weights: "
            f"{one_line(error)}"
        ) from error
    expected, found = _trial(adapted), _trial(merged)
    close = CLOSE if expected.dtype in (torch.float32, torch.float64) else 500 * CLOSE
    if not float((found - expected).abs().max()) <= close * (float(expected.abs().max()) + 1.0):
        raise UserError(
            f"{what} cannot be hooked: with the adapter merged into the weights its logits are "
            f"others, by up to {float((found - expected).abs().max()):.2g}; hook a model that has "
            "no adapter, or one that merges (merge_and_unload)"
        )
    return merged


def _copy_of(model: nn.Module) -> Any:
    """A copy that shares the weights which no adapter touches."""
    touched = {
        id(weight)
        for module in model.modules()
        if hasattr(module, "base_layer") or hasattr(module, "unload_and_optionally_merge_module")
        for weight in (*module.parameters(), *module.buffers())
    }
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if id(parameter) not in touched:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        if id(buffer) not in touched:
            memo[id(buffer)] = buffer
    return copy.deepcopy(model, memo)


def _merge_layers(model: Any) -> Any:
    """Replace every adapted module by its base with the adapter added, as PEFT does."""
    done: list[str] = []
    for name, module in list(model.named_modules()):
        if any(name.startswith(f"{path}.") for path in done):
            continue
        disabled = getattr(module, "disable_adapters", False)
        if hasattr(module, "unload_and_optionally_merge_module"):
            base = module.unload_and_optionally_merge_module(
                merge=not disabled, safe_merge=True, adapter_names=None
            )
        elif hasattr(module, "base_layer"):
            if not disabled:
                module.merge(safe_merge=True)
            base = module.get_base_layer()
        else:
            continue
        done.append(name)
        model.set_submodule(name, base)
    if hasattr(model, "peft_config"):
        del model.peft_config
    if hasattr(model, "_hf_peft_config_loaded"):
        model._hf_peft_config_loaded = False
    return model


@torch.no_grad()
def _trial(model: Any) -> torch.Tensor:
    """The logits of a few tokens, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, TRIAL_TOKENS), generator=generator)
    tokens = tokens.to(input_device(model))
    with evaluating(model):
        return model(input_ids=tokens, use_cache=False).logits[:, -TRIAL_TOKENS:]


def _check_causal(hf_model: Any) -> None:
    name = type(hf_model).__name__
    config = getattr(hf_model, "config", None)
    if config is None or not hasattr(hf_model, "get_output_embeddings"):
        raise UserError(f"from_hf takes a causal language model of transformers, not {name}")
    masked = name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    causal = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    headless = hf_model.get_output_embeddings() is None
    if getattr(config, "is_encoder_decoder", False) or headless or (masked and not causal):
        raise UserError(
            f"{name} is not a causal language model: load it with "
            "transformers.AutoModelForCausalLM, if there is such a model of its weights"
        )


def _check_weights(hf_model: Any) -> None:
    """Raise UserError for weights without data, and for dtypes that do not run together."""
    weights = dict(hf_model.named_parameters())
    if not weights:
        raise UserError(f"{type(hf_model).__name__} has no weights")
    meta = [name for name, weight in weights.items() if weight.is_meta]
    if meta and not is_offloaded(hf_model):
        raise UserError(
            f"the weight {meta[0]} has no data (it is on the meta device): load the weights first, "
            "with from_pretrained, say"
        )
    dtypes = {weight.dtype for weight in weights.values() if not is_packed(weight)}
    if len(dtypes) < 2:
        return
    try:
        _trial(hf_model)
    except RuntimeError as error:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UserError(
            f"the model's weights have several dtypes ({names}), and it does not run so: give them "
            "one, with hf_model.to(torch.float32), say"
        ) from error
