"""Is a module's code the one that a replacement with fewer operators stands for?

Compared are the compiled forwards, with those of transformers' Llama, Mistral, Qwen2 and Qwen3: a
class of any name with the same code is known, and a changed one is not.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

from torch import nn

_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}


def _code(function: Callable[..., Any]) -> tuple[Any, ...]:
    """What a function does, without its docstring."""
    return _of_code(inspect.unwrap(function).__code__)


@cache
def _of_code(code: CodeType) -> tuple[Any, ...]:
    consts = [item for item in code.co_consts if not (isinstance(item, str) and "\n" in item)]
    return code.co_code, code.co_names, code.co_varnames, tuple(map(str, consts))


@dataclass(frozen=True)
class _Codes:
    """The code of transformers' modules."""

    norm: Any
    block: Any
    mlp: Any
    attention: list[Any]
    rotary: list[Any]


@cache
def _codes() -> _Codes:
    # Imported here because transformers' models take seconds, and reports need none.
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.mistral import modeling_mistral as mistral
    from transformers.models.qwen2 import modeling_qwen2 as qwen2
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    attentions = (
        *(llama.LlamaAttention, mistral.MistralAttention),
        *(qwen2.Qwen2Attention, qwen3.Qwen3Attention),
    )
    return _Codes(
        norm=_code(llama.LlamaRMSNorm.forward),
        block=_code(llama.LlamaDecoderLayer.forward),
        mlp=_code(llama.LlamaMLP.forward),
        attention=[_code(attention.forward) for attention in attentions],
        rotary=[_code(llama.apply_rotary_pos_emb), _code(llama.rotate_half)],
    )


def is_norm(module: nn.Module) -> bool:
    """Whether a module is ``x / sqrt(mean(x²) + eps) * weight`` over the last axis."""
    return _code(type(module).forward) == _codes().norm


def is_known_attention(module: Any) -> bool:
    """Whether a module is rotary attention as in Llama; norms of queries and keys may be in it."""
    forward = inspect.unwrap(type(module).forward)
    if _code(forward) not in _codes().attention:
        return False
    rotary = [forward.__globals__.get(n) for n in ("apply_rotary_pos_emb", "rotate_half")]
    norms = [module._modules[n] for n in ("q_norm", "k_norm") if n in module._modules]
    return (
        all(callable(function) for function in rotary)
        and list(map(_code, rotary)) == _codes().rotary  # type: ignore[arg-type]
        and all(map(is_norm, norms))
    )


def is_known_mlp(module: nn.Module) -> bool:
    """Whether a module is ``down(act(gate(x)) * up(x))``."""
    return _code(type(module).forward) == _codes().mlp


def is_known_block(module: nn.Module) -> bool:
    """Whether a module is attention and an MLP, each behind a norm and added to its input."""
    parts: Any = module
    return (
        set(module._modules) == _PARTS
        and _code(type(module).forward) == _codes().block
        and is_known_attention(parts.self_attn)
        and is_known_mlp(parts.mlp)
        and is_norm(parts.input_layernorm)
        and is_norm(parts.post_attention_layernorm)
    )
