"""Joint projections of a quantized model as plain ones.

TransformerLens splits a joint projection of queries, keys and values (GPT-2, GPT-NeoX, Falcon,
Phi-3), and Phi-3's of gate and up, into projections of its own when it wraps the model, and needs
plain weights for it. The quantized weights are dequantized once: the numbers stay, these
projections take the memory of plain ones, and their input is not rounded.
"""

import logging
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interp.quantized import can_read, kind_of, quantized_modules, weight_of

logger = logging.getLogger(__name__)

JOINT = frozenset({"c_attn", "query_key_value", "qkv_proj", "Wqkv", "gate_up_proj"})
"""Their names in transformers' classes."""


def dequantize_joint(hf_model: Any) -> None:
    """Put a plain projection in place of every quantized joint one whose weights can be read."""
    found = [
        (name, module)
        for name, module in quantized_modules(hf_model)
        if name.removesuffix(".base_layer").rpartition(".")[2] in JOINT and can_read(module)
    ]
    for name, module in found:
        hf_model.set_submodule(name, _plain(module))
    if found:
        logger.info(
            "%d joint projections, such as %s, are kept dequantized from %s: TransformerLens "
            "splits them",
            len(found),
            found[0][0],
            kind_of(found[0][1]),
        )


def _plain(module: Any) -> nn.Module:
    weight = weight_of(module, needed_by="TransformerLens").detach()
    d_out, d_in = weight.shape
    with torch.device("meta"):
        if getattr(module, "source_cls", None) is Conv1D:  # as transformers notes it
            plain: Any = Conv1D(d_out, d_in)
            weight = weight.T.contiguous()
        else:
            plain = nn.Linear(d_in, d_out)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    bias = module.bias
    plain.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return plain.train(module.training)
