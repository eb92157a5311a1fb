"""A model directory, read by transformers: no code of its own runs, and its weights are numbers.

Whatever the directory's configuration says, only transformers' own classes are used
(``trust_remote_code=False``, passed to every reader: without it, some of them ask at the terminal),
only safetensors are opened, and nothing is downloaded.
"""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from interp.models.device_map import (
    DeviceMap,
    MaxMemory,
    check_placing,
    plan,
    read_device_map,
    read_max_memory,
)
from interp.models.quantization import Quantization, check_package, quantization_config
from interp.models.quiet import reading
from interp.models.whole import check_shards, check_weights, load_whole
from interp.quantized import keep_precision


def read_folder(
    folder: Path,
    *,
    spec: str,
    dtype: torch.dtype,
    finite: bool = False,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    quantization: Quantization | None = None,
    **more: Any,
) -> tuple[Any, Any]:
    """The causal language model in a directory and its tokenizer, by default on the CPU.

    Args:
        spec: what the user called the model, for messages.
        finite: search every weight for NaN and infinity: a second pass over all of them.
        device: where the whole model goes.
        device_map, max_memory: where its parts go, and how much may go there; see
            `interp.models.device_map`.
        quantization: how its weights are quantized while they are read; see
            `interp.models.quantization`.
        more: passed on to ``from_pretrained``.

    Raises:
        UserError: transformers cannot read the directory, its weights are not those of the model
            that its configuration describes (`interp.models.whole`), a weight is not finite, or the
            model cannot be placed or quantized so.
    """
    check_placing(device, device_map, max_memory)
    if quantization is not None:
        more["quantization_config"] = quantization_config(quantization, dtype=dtype)
    check_shards(folder, spec)
    with reading(f"cannot load {spec}: its config.json"):
        # The tokenizer's reader reads it too, and would be blamed for what is wrong in it.
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_package(config, spec)
    tokenizer = read_tokenizer(folder, spec=spec)
    offloaded = None
    if device_map is not None or quantization is not None:
        if device_map is None:  # quantized weights are made where they stay
            more["device_map"] = {"": str(device or "cpu")}
        elif quantization is not None and isinstance(read_device_map(device_map), str):
            # transformers knows how large the quantized weights are.
            more |= {"device_map": device_map, "max_memory": read_max_memory(max_memory)}
        else:
            options: Any = {"spec": spec, "dtype": dtype, "max_memory": max_memory}
            more["device_map"] = plan(folder, device_map, **options)
        offloaded = more["offload_folder"] = tempfile.mkdtemp(prefix="faithlens-offloaded-")
    elif device is not None and torch.device(device).type != "cpu":
        more["device_map"] = {"": str(device)}  # each weight straight to the device
    with reading(f"cannot load {spec}: its configuration or its weights"):
        model = load_whole(folder, spec=spec, dtype=dtype, use_safetensors=True, **more)
    if offloaded is not None:  # holds weights that the files have in another form
        weakref.finalize(model, shutil.rmtree, offloaded, ignore_errors=True)
    if finite:
        check_weights(model, spec)
    if device is not None and quantization is None:
        model = model.to(device)
    keep_precision(model)
    return model, tokenizer


def read_tokenizer(folder: Path, *, spec: str) -> Any:
    """The tokenizer in a directory. Raises UserError, with ``spec``, if it cannot be read."""
    with reading(f"cannot load {spec}: its tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
