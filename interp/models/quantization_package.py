"""The package that a quantized checkpoint needs, and whether it is there."""

import importlib.util
from typing import Any

from interp.errors import UserError

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
    module, package = _PACKAGES.get(str(getattr(method, "value", method)), ("", ""))
    if module and not is_there(module):
        raise UserError(
            f"the weights of {spec} are quantized by {module}, which is not installed: "
            f"pip install {package}"
        )


def is_there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False
