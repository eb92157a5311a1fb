"""Which quantization a model is loaded with, by name or as transformers' configuration.

The weights are quantized by transformers while they are read; see its ``quantization_config``. A
quantized model is another model than the one in the files: its fingerprint is another.
"""

import hashlib
import importlib.util
import json
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from interp.errors import UserError

NAMES = ("bnb-4bit", "bnb-8bit")
_PACKAGES: dict[str, tuple[str, str]] = {
    "bitsandbytes": ("bitsandbytes", "'faithlens[quantized]'"),
    "torchao": ("torchao", "torchao"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "eetq": ("eetq", "eetq"),
    "aqlm": ("aqlm", "aqlm"),
}
"""By transformers' ``quant_method``: the module, and what pip installs."""

Quantization = str | QuantizationConfigMixin


def quantization_config(given: Any, *, dtype: torch.dtype) -> QuantizationConfigMixin:
    """transformers' configuration of a quantization.

    Args:
        given: ``bnb-4bit``, ``bnb-8bit``, or a configuration of transformers.
        dtype: in which products are computed.

    Raises:
        UserError: anything else, or a package that is not installed.
    """
    if isinstance(given, QuantizationConfigMixin):
        _check_installed(str(given.quant_method.value), f"quantization {_described(given):.40}")
        return given
    if given not in NAMES:
        raise UserError(
            f"quantization is {given!r:.60}: choose one of {', '.join(NAMES)}, or give a "
            "quantization configuration of transformers"
        )
    _check_installed("bitsandbytes", f"quantization {given}")
    if given == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def quantization_name(given: Any) -> str | None:
    """What a run records of a quantization: its name, or its method with all settings."""
    return given if given is None or isinstance(given, str) else _described(given)


def quantized_fingerprint(fingerprint: str, quantization: str | None) -> str:
    """The fingerprint of a model whose weights are quantized while they are read, as hex."""
    if quantization is None:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {quantization}".encode()).hexdigest()


def _described(config: Any) -> str:
    """A configuration as text. A checkpoint's own may be a dict."""
    content = config if isinstance(config, dict) else config.to_dict()
    return json.dumps(content, sort_keys=True, default=str)


def check_package(config: Any, spec: str) -> None:
    """Raise UserError if a model's configuration asks for a quantization whose package is missing.

    Args:
        config: of transformers; its ``quantization_config`` is a mapping, as read from a file.
        spec: what the user called the model.
    """
    settings = getattr(config, "quantization_config", None) or {}
    get: Any = getattr(settings, "get", None) or (lambda name: getattr(settings, name, None))
    method = get("quant_method")
    if method is None and (get("load_in_4bit") or get("load_in_8bit")):
        method = "bitsandbytes"  # checkpoints of before transformers wrote the method
    _check_installed(str(getattr(method, "value", method)), f"the quantization of {spec}")


def is_there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _check_installed(method: str, what: str) -> None:
    module, package = _PACKAGES.get(method, ("", ""))
    if module and not is_there(module):
        raise UserError(
            f"{what} needs the package {module}, which is not installed: pip install {package}"
        )
