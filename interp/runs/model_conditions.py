"""All that decides what a hooked model computes, beside what is asked of it.

What a run keeps belongs to these too: values of another dtype or device have other last bits, and
answers hang on the tokenizer and on the tokens that end them, which the model's fingerprint does
not cover. The chat template is not among them: what is kept names the tokens of its prompts itself.
"""

import torch

from interp.forward.generate import end_tokens
from interp.models import model_info
from interp.models.hooked_model import HookedModel
from interp.models.tokenizer_fingerprint import tokenizer_fingerprint
from interp.runs.shards import digest_of


def conditions(model: HookedModel) -> dict[str, str]:
    """Fingerprints of model and tokenizer, dtype, kind of device, end tokens of answers."""
    info = model_info(model)
    return {
        "fingerprint": info.fingerprint,
        "dtype": info.dtype,
        "device": torch.device(info.device).type,
        "tokenizer": tokenizer_fingerprint(model.tokenizer),
        "generation": digest_of(str(end_tokens(model.original_model, model.tokenizer))),
    }


def conditions_digest(model: HookedModel) -> str:
    """The conditions as one text."""
    return digest_of(conditions(model))
