"""Quantized weights: which quantization a model is loaded with, by name or as transformers' config.

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
_PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "hqq": "hqq",
    "quanto": "optimum.quanto",
}
"""The package that a method of transformers quantizes with, where it is one of these."""

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
        _check_installed(str(given.quant_method.value), _described(given)[:40])
        return given
    if given not in NAMES:
        raise UserError(
            f"quantization is {given!r:.60}: choose one of {', '.join(NAMES)}, or give a "
            "quantization configuration of transformers"
        )
    _check_installed("bitsandbytes", given)
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


def _check_installed(method: str, name: str) -> None:
    package = _PACKAGES.get(method)
    try:
        missing = package is not None and importlib.util.find_spec(package) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise UserError(
            f"quantization {name} needs the package {package}, which is not installed: pip install "
            f"{(package or '').partition('.')[0]}"
        )
