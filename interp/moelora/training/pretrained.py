"""Loading the base model of a training run, with its tokenizer and fingerprint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.errors import UserError
from interp.models import cache_root, fingerprint_of_folder, resolve
from interp.models.device_map import DeviceMap, MaxMemory
from interp.models.folder import read_folder
from interp.models.quantization import Quantization, quantization_name, quantized_fingerprint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Pretrained:
    """A transformers model in evaluation mode, its tokenizer, spec and fingerprint."""

    model: Any
    tokenizer: Any
    spec: str
    fingerprint: str

    @property
    def context(self) -> int:
        """How many tokens the model can read."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2**31)


def load_pretrained(
    spec: str | Path,
    *,
    dtype: str = "float32",
    device: str | None = None,
    allow_pickle: bool = False,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    quantization: Quantization | None = None,
) -> Pretrained:
    """The model that `spec` names (see `interp.models.resolve`), as transformers loads it.

    Without a `device` it stays on the CPU; the Trainer moves it. `device_map`, `max_memory` and
    `quantization` are those of `interp.load_model`. `allow_pickle` lets weights be
    read that are pickle files only: say so for a model whose maker you trust. Raises UserError for
    an unknown spec or dtype, and for a directory that holds no causal language model.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    folder = resolve(spec, allow_pickle=allow_pickle)
    model, tokenizer = read_folder(
        folder,
        spec=str(spec),
        dtype=DTYPES[dtype],
        device=device,
        device_map=device_map,
        max_memory=max_memory,
        quantization=quantization,
    )
    digest = fingerprint_of_folder(folder, cache=cache_root() / "fingerprints")
    return Pretrained(
        model=model.eval(),
        tokenizer=tokenizer,
        spec=str(spec),
        fingerprint=quantized_fingerprint(digest, quantization_name(quantization)),
    )
