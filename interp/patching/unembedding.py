"""The end of a model as a norm and a matrix, and the refusal of models that end in another way.

What the residual stream, or a part of it, adds to the logits can be told where the logits are the
unembedding of the final norm's output, and nothing else: no cap (Gemma 2) and no scale (Granite).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import plain
from interp.errors import UserError
from interp.models.hooked_model import HookedModel
from interp.precision import agrees, dtype_of, widened

ROWS = 256
"""Positions whose logits over the whole vocabulary are in memory together."""


def unembedding(model: HookedModel) -> tuple[Float[Tensor, "d_vocab d_model"], Tensor | None]:
    """The unembedding's weight and bias."""
    module = model.original_model.get_output_embeddings()
    if hasattr(module, "weight"):
        return module.weight, getattr(module, "bias", None)
    return model.W_U.T, model.b_U  # TransformerLens 3


def unembedded(
    model: HookedModel, normed: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row d_vocab"]:
    """The logits of what the final norm gives, in float32 at least."""
    weight, bias = unembedding(model)
    logits = normed @ widened(weight).T
    return logits if bias is None else logits + widened(bias)


def check_unembedding(model: HookedModel, found: Tensor, logits: Tensor) -> None:
    """Raise UserError unless logits found through norm and unembedding are the model's own."""
    if not agrees(found, logits, dtype_of(model)):
        raise UserError(
            "the logits of this model are not a norm and an unembedding of its residual stream "
            "(it caps or scales them): its components cannot be told apart"
        )


def checked_tokens(model: HookedModel, tokens: Any, n_prompts: int) -> Int[Tensor, "prompt token"]:
    """One or more token ids for each prompt, on the CPU.

    Raises:
        UserError: tokens that do not fit the prompts or the vocabulary.
    """
    try:
        found = torch.as_tensor(plain(tokens)).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"tokens are ids, one or as many for each prompt, not {tokens!r:.60}"
        ) from error
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or len(found) != n_prompts or found.is_floating_point():
        raise UserError(
            f"tokens are one or more for each of the {n_prompts} prompts, not {list(found.shape)}"
        )
    if found.numel() == 0 or int(found.min()) < 0 or int(found.max()) >= model.cfg.d_vocab:
        raise UserError(f"the vocabulary has tokens 0 to {model.cfg.d_vocab - 1}")
    return found


def token_names(model: HookedModel, ids: Tensor) -> dict[int, str]:
    """The text of each token id that occurs; its number for a model without a tokenizer."""
    if model.tokenizer is None:
        return {token: str(token) for token in set(ids.flatten().tolist())}
    return {token: model.tokenizer.decode([token]) for token in set(ids.flatten().tolist())}
