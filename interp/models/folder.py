"""A model directory, read by transformers: no code of its own runs, and its weights are numbers.

Whatever the directory's configuration says, only transformers' own classes are used
(``trust_remote_code=False``, passed to every reader: without it, some of them ask at the terminal),
only safetensors are opened, and nothing is downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from interp.models.quantization_package import check_package
from interp.models.quiet import reading
from interp.models.whole import check_shards, check_weights, load_whole


def read_folder(
    folder: Path, *, spec: str, dtype: torch.dtype, finite: bool = False, **more: Any
) -> tuple[Any, Any]:
    """The causal language model in a directory and its tokenizer, on the CPU.

    Args:
        spec: what the user called the model, for messages.
        finite: search every weight for NaN and infinity: a second pass over all of them.
        more: passed on to ``from_pretrained``.

    Raises:
        UserError: transformers cannot read the directory, its weights are not those of the model
            that its configuration describes (`interp.models.whole`), or a weight is not finite.
    """
    check_shards(folder, spec)
    with reading(f"cannot load {spec}: its config.json"):
        # The tokenizer's reader reads it too, and would be blamed for what is wrong in it.
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_package(config, spec)
    tokenizer = read_tokenizer(folder, spec=spec)
    with reading(f"cannot load {spec}: its configuration or its weights"):
        model = load_whole(folder, spec=spec, dtype=dtype, use_safetensors=True, **more)
    if finite:
        check_weights(model, spec)
    return model, tokenizer


def read_tokenizer(folder: Path, *, spec: str) -> Any:
    """The tokenizer in a directory. Raises UserError, with ``spec``, if it cannot be read."""
    with reading(f"cannot load {spec}: its tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
