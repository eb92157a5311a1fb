"""``load_plain``: the model that a spec names, as transformers has it, without hooks."""

from pathlib import Path
from typing import Any

from interp.arguments import check_choice
from interp.models.device_map import DeviceMap, MaxMemory, check_placing, choose_device
from interp.models.folder import read_folder
from interp.models.load import DTYPES
from interp.models.quantization import Quantization
from interp.models.spec import EMBEDDED, resolve


def load_plain(
    spec: str | Path = EMBEDDED,
    *,
    device: str | None = None,
    dtype: str = "float32",
    allow_pickle: bool = False,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    quantization: Quantization | None = None,
) -> tuple[Any, Any]:
    """A transformers model, in evaluation mode with frozen parameters, and its tokenizer.

    The arguments and errors are those of ``interp.load_model``.
    """
    check_placing(device, device_map, max_memory)
    hf_model, tokenizer = read_folder(
        resolve(spec, allow_pickle=allow_pickle),
        spec=str(spec),
        dtype=DTYPES[check_choice("dtype", dtype, DTYPES)],
        device=choose_device(device) if device_map is None else None,
        device_map=device_map,
        max_memory=max_memory,
        quantization=quantization,
    )
    return hf_model.eval().requires_grad_(False), tokenizer
