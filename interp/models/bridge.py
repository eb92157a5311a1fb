"""TransformerLens 4: hook points around a transformers model, whose weights stay as they are."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import (
    NormalizationBridge,
    PositionEmbeddingsAttentionBridge,
)
from transformer_lens.model_bridge.sources.transformers import source
from transformer_lens.utilities.multi_gpu import is_mixed_offload_gpu

from interp.errors import UserError
from interp.files.text import one_line
from interp.models.hooked_model import HookedModel
from interp.models.latent_attention import connect_latent_attention
from interp.models.native_attention import connect_attention_hooks
from interp.models.passes import before_each_call
from interp.models.placement import execution_device, without_map
from interp.models.transformers_modules import note_forwards

HOOKED_CLASS = TransformerBridge


def boot(
    hf_model: Any, tokenizer: Any, *, spec: str, device: torch.device, dtype: torch.dtype
) -> TransformerBridge:
    """The bridge around a transformers model in evaluation mode; its tokenizer stays as it is.

    Raises:
        UserError: TransformerLens cannot hook this architecture.
    """
    tokenizer = copy.deepcopy(tokenizer)
    # TransformerLens makes the tokenizer anew to begin every text with BOS, unless it says it does.
    true_kwargs = tokenizer.init_kwargs
    name = tokenizer.name_or_path
    tokenizer.init_kwargs = {**true_kwargs, "name_or_path": name, "add_bos_token": True}
    try:
        with _without_mixed_map(hf_model) as n_devices, _without_processor():
            model = TransformerBridge.boot_transformers(
                spec, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
            )
        if not hasattr(model, "blocks"):
            raise ValueError("it has no blocks of layers")
    except Exception as error:  # an adapter that does not fit a model's sizes raises anything
        architecture = type(hf_model).__name__
        meant_for_people = isinstance(error, ValueError | NotImplementedError)
        why = one_line(error) if meant_for_people else "its adapter does not fit this configuration"
        raise UserError(f"TransformerLens cannot hook {architecture}: {why}") from error
    tokenizer.init_kwargs = true_kwargs
    model.cfg.device = str(device)  # TransformerLens takes that of a weight, which may be on meta
    model.cfg.n_devices = max(n_devices, getattr(model.cfg, "n_devices", None) or 1)
    for component in model.modules():
        if isinstance(component, NormalizationBridge):
            _move_input(component)
        elif isinstance(component, PositionEmbeddingsAttentionBridge) and dtype.itemsize < 4:
            component.register_forward_pre_hook(_rotate_in_own_dtype, with_kwargs=True)
    note_forwards(model)
    connect_attention_hooks(model)
    connect_latent_attention(model)
    if dtype == torch.float64:
        for block in model.blocks:
            if hasattr(block, "attn"):
                block.attn.register_forward_pre_hook(_mask_within_float32, with_kwargs=True)
    return model


def _move_input(norm: NormalizationBridge) -> None:
    """Give a norm its input on the device of its weights.

    TransformerLens computes it past the module that accelerate's hook is in.
    """
    device = None if norm.original_component is None else execution_device(norm.original_component)
    if device is None:
        return

    def move(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return send_to_device(args, device), send_to_device(kwargs, device)

    norm.register_forward_pre_hook(move, with_kwargs=True)


def _rotate_in_own_dtype(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give attention its rotary embedding in the number type of its input.

    OLMo computes it in float32 and returns to the input's type behind the rotation, which
    TransformerLens leaves out: its queries are float32 then, and its values are not.
    """
    input = args[0] if args else kwargs.get("hidden_states")
    rotary = kwargs.get("position_embeddings")
    if isinstance(input, torch.Tensor) and isinstance(rotary, tuple):
        kwargs = {**kwargs, "position_embeddings": tuple(part.to(input.dtype) for part in rotary)}
    return args, kwargs


@contextmanager
def _without_processor() -> Iterator[None]:
    """Let TransformerLens load no processor of images or sound, which nothing here uses.

    For one it asks the hub, and installs torchvision with pip, which may bring another torch.
    """
    module: Any = source
    load = module.load_modality_processor
    module.load_modality_processor = lambda *_, **__: None
    try:
        yield
    finally:
        module.load_modality_processor = load


@contextmanager
def _without_mixed_map(hf_model: Any) -> Iterator[int]:
    """Hide a map of GPUs and offloaded weights, which TransformerLens refuses as not tried yet.

    The self-check compares all that is used here with transformers. Gives the number of devices.
    """
    placed = getattr(hf_model, "hf_device_map", None) or {}
    mixed = is_mixed_offload_gpu(placed.values())
    with without_map(hf_model) if mixed else nullcontext():
        yield len(set(placed.values()))


def _mask_within_float32(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Clamp an attention mask to the range of float32, in which attention takes its softmax.

    The lowest number of float64 becomes minus infinity there, and the softmax of a row of padding,
    which is masked everywhere, NaN.
    """
    mask = kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.is_floating_point():
        lowest = torch.finfo(torch.float32).min
        kwargs = {**kwargs, "attention_mask": mask.clamp(min=lowest)}
    return args, kwargs


@contextmanager
def before_each_pass(model: HookedModel, begin: Callable[..., None]) -> Iterator[None]:
    """While open, ``begin(tokens, mask, seen)`` is called before every forward pass of the model.

    See `interp.models.passes.before_each_call`.
    """
    with before_each_call(model.original_model, begin):
        yield
