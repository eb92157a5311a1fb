"""All that decides what a hooked model computes, beside what is asked of it.

What a run keeps belongs to these too: values of another dtype or device have other last bits, and
answers hang on the tokenizer and on the generation config, which no fingerprint covers.
"""

from typing import Any

import torch

from interp.models import model_info
from interp.runs.shards import digest_of


def conditions(model: Any) -> dict[str, str]:
    """Fingerprint, dtype, kind of device, and digests of tokenizer and generation config."""
    info = model_info(model)
    generation = getattr(model.original_model, "generation_config", None)
    return {
        "fingerprint": info.fingerprint,
        "dtype": info.dtype,
        "device": torch.device(info.device).type,
        "tokenizer": digest_of(_described(model.tokenizer)),
        "generation": digest_of(None if generation is None else str(generation.to_dict())),
    }


def conditions_digest(model: Any) -> str:
    """The conditions as one text."""
    return digest_of(conditions(model))


def _described(tokenizer: Any) -> Any:
    """What a tokenizer does with text, there and back."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    whole = sorted(tokenizer.get_vocab().items()) if fast is None else fast.to_str()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [whole, special]
