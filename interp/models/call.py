"""One forward pass of a transformers model over padded prompts, for the last logits only.

It runs in evaluation mode, whatever mode each part of the model was left in.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from interp.errors import UserError
from interp.models.hooked_model import HookedModel
from interp.models.placement import input_device
from interp.modules import modules


def call_model(
    hf_model: Any,
    tokens: Int[Tensor, "prompt pos"],
    mask: Bool[Tensor, "prompt seen"],
    *,
    cache: Cache | None = None,
    keep: int = 1,
) -> Float[Tensor, "prompt keep d_vocab"]:
    """Run the last ``pos`` of ``seen`` positions; those before them are in the cache.

    The model runs in evaluation mode, and is left in the mode that it was in. Position ids count
    the real tokens, so that padding on the left changes nothing. Tokens and mask may be on any
    device. Models that take no position ids,
    or always compute all logits, are called accordingly.

    Args:
        mask: of all positions, including those in the cache; True for real tokens.
        keep: how many of the last positions' logits are returned.
    """
    accepted = inspect.signature(hf_model.forward).parameters
    tokens, mask = tokens.to(device := input_device(hf_model)), mask.to(device)
    arguments: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask.long()}
    if "use_cache" in accepted:
        arguments["use_cache"] = cache is not None
    if "position_ids" in accepted:
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        arguments["position_ids"] = positions[:, mask.shape[1] - tokens.shape[1] :]
    if cache is not None:
        arguments["past_key_values"] = cache
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = keep
        if first_shared_keys(hf_model.config) is not None:
            # Given a number, Gemma 4 runs its upper layers at the last positions only, and their
            # hook points then show nothing of the others.
            arguments["logits_to_keep"] = torch.arange(-keep, 0, device=tokens.device)
    if not getattr(hf_model.config, "return_dict", True):  # a checkpoint that asks for tuples
        arguments["return_dict"] = True
    with evaluating(hf_model), contiguous_unembedding(hf_model):
        return hf_model(**arguments).logits[:, -keep:]


def first_shared_keys(config: Any) -> int | None:
    """The lowest layer whose keys and values layers above it read; None where there is none.

    Gemma 3n and 4: each of the upper layers reads those of the last lower layer of its own kind.
    """
    text = config.get_text_config()
    n_sharing = getattr(text, "num_kv_shared_layers", None) or 0
    if not n_sharing:
        return None
    kinds = list(text.layer_types)
    lower, upper = kinds[:-n_sharing], kinds[-n_sharing:]
    return min(len(lower) - 1 - lower[::-1].index(kind) for kind in set(upper))


@contextmanager
def contiguous_unembedding(hf_model: Any) -> Iterator[None]:
    """Give the unembedding its input as one block of memory.

    The last positions of a batch are a strided view, for which torch uses a batched product that is
    many times slower on a CPU.
    """
    unembedding = hf_model.get_output_embeddings()

    def contiguous(module: Any, args: tuple[Any, ...]) -> Any:
        return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in args)

    if unembedding is None:
        yield
        return
    with unembedding.register_forward_pre_hook(contiguous):
        yield


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """All modules of a model in evaluation mode; on exit each is in its own mode again.

    A model may be in training mode as a whole (a Trainer leaves it so), or in some of its parts:
    one dropout module is enough to make every value random.
    """
    # The flag alone, as ``train`` of a module may do more, or hand it on to modules below.
    training = [module for module in modules(model) if module.__dict__.get("training")]
    for module in training:
        module.__dict__["training"] = False
    try:
        yield
    finally:
        for module in training:
            module.__dict__["training"] = True


@contextmanager
def with_gradients(model: HookedModel) -> Iterator[None]:
    """Gradients on, whatever they were. Raises UserError for weights that cannot have any."""
    if any(weight.is_inference() for weight in model.parameters()):
        raise UserError(
            "the model's weights were made under torch.inference_mode, through which no gradient "
            "goes: load the model outside of it, or use a method without gradients (exact)"
        )
    with torch.enable_grad():
        yield
