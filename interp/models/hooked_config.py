"""Sizes and kinds of a transformers model, in the words of TransformerLens 3's configuration.

TransformerLens 3 knows models by name, and from a directory it reads some configurations amiss (a
``head_dim`` of its own, a rotary base per kind of layer), so that they are written here, for the
architectures whose weights it can convert as they are. What a configuration asks for and
TransformerLens 3 has not is refused; whatever this overlooks, the comparison of logits at loading
(`interp.models.hooked_transformer`) finds.
"""

import math
from collections.abc import Callable
from typing import Any

from interp.errors import UserError

_ROPE_KNOWN = ("default", "linear", "llama3")


def config_entries(hf_config: Any, architecture: str) -> dict[str, Any]:
    """The entries of a ``HookedTransformerConfig`` for a model of this configuration.

    Raises UserError, with the architecture's name, for one that TransformerLens 3 does not have.
    """
    if architecture not in READERS:
        raise UserError(
            f"TransformerLens 3 cannot hook {architecture}, only {', '.join(READERS)}: "
            "install version 4 (pip install 'transformer-lens>=4,<5')"
        )
    return {**READERS[architecture](hf_config), "original_architecture": architecture}


def _gpt2(hf_config: Any) -> dict[str, Any]:
    return {
        "d_model": hf_config.n_embd,
        "d_head": hf_config.n_embd // hf_config.n_head,
        "n_heads": hf_config.n_head,
        "d_mlp": hf_config.n_inner or 4 * hf_config.n_embd,
        "n_layers": hf_config.n_layer,
        "n_ctx": hf_config.n_positions,
        "eps": hf_config.layer_norm_epsilon,
        "d_vocab": hf_config.vocab_size,
        "act_fn": hf_config.activation_function,
        "use_attn_scale": hf_config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": hf_config.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
    }


def _neox(hf_config: Any) -> dict[str, Any]:
    d_head = hf_config.hidden_size // hf_config.num_attention_heads
    rope = _rope(hf_config, hf_config.rope_parameters, d_head)
    share = hf_config.rope_parameters.get("partial_rotary_factor", 1.0)
    return {
        **_sizes(hf_config, d_head),
        **rope,
        "rotary_dim": round(share * d_head),
        "eps": hf_config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": hf_config.use_parallel_residual,
    }


def _llama(hf_config: Any) -> dict[str, Any]:
    """Llama and what differs from it in biases or in norms of queries and keys only."""
    d_head = getattr(hf_config, "head_dim", None) or (
        hf_config.hidden_size // hf_config.num_attention_heads
    )
    n_kv_heads = hf_config.num_key_value_heads
    return {
        **_sizes(hf_config, d_head),
        **_rope(hf_config, getattr(hf_config, "rope_parameters", None), d_head),
        "n_key_value_heads": None if n_kv_heads == hf_config.num_attention_heads else n_kv_heads,
        "eps": hf_config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
    }


def _mistral(hf_config: Any) -> dict[str, Any]:
    # Its weights are converted as if keys and values were always grouped.
    return {
        **_llama(hf_config),
        "n_key_value_heads": hf_config.num_key_value_heads,
        **_windows(hf_config),
    }


def _qwen3(hf_config: Any) -> dict[str, Any]:
    return {**_llama(hf_config), **_windows(hf_config), "use_qk_norm": True}


def _gemma3(hf_config: Any) -> dict[str, Any]:
    ropes = hf_config.rope_parameters
    whole, local = ropes["full_attention"], ropes["sliding_attention"]
    _rope(hf_config, local, hf_config.head_dim)  # refuses what is not known
    if local.get("factor", 1.0) != 1.0:
        raise UserError("TransformerLens 3 does not scale the rotary embedding of sliding windows")
    return {
        **_sizes(hf_config, hf_config.head_dim),
        **_rope(hf_config, whole, hf_config.head_dim),
        **_windows(hf_config),
        "rotary_base_local": local["rope_theta"],
        "n_key_value_heads": hf_config.num_key_value_heads,
        "act_fn": hf_config.hidden_activation,
        "eps": hf_config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "use_qk_norm": True,
        "use_normalization_before_and_after": True,
        "attn_scale": math.sqrt(hf_config.query_pre_attn_scalar),
        "attn_scores_soft_cap": hf_config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": hf_config.final_logit_softcapping or -1.0,
    }


READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "GPT2LMHeadModel": _gpt2,
    "GPTNeoXForCausalLM": _neox,
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _mistral,
    "Qwen3ForCausalLM": _qwen3,
    "Gemma3ForCausalLM": _gemma3,
}


def _sizes(hf_config: Any, d_head: int) -> dict[str, Any]:
    return {
        "d_model": hf_config.hidden_size,
        "d_head": d_head,
        "n_heads": hf_config.num_attention_heads,
        "d_mlp": hf_config.intermediate_size,
        "n_layers": hf_config.num_hidden_layers,
        "n_ctx": hf_config.max_position_embeddings,
        "d_vocab": hf_config.vocab_size,
        "act_fn": getattr(hf_config, "hidden_act", None),
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "rotary_adjacent_pairs": False,
    }


def _rope(hf_config: Any, parameters: dict[str, Any] | None, d_head: int) -> dict[str, Any]:
    """Base and scaling of the rotary embedding."""
    parameters = parameters or {}
    kind = parameters.get("rope_type") or "default"
    if kind not in _ROPE_KNOWN:
        raise UserError(
            f"TransformerLens 3 has no rotary embedding of type {kind!r}, only "
            f"{', '.join(_ROPE_KNOWN)}: install version 4 (pip install 'transformer-lens>=4,<5')"
        )
    entries: dict[str, Any] = {"rotary_base": parameters.get("rope_theta", 10000.0)}
    if kind == "linear":
        entries["rotary_scaling_factor"] = parameters["factor"]
    if kind == "llama3":
        entries |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": parameters["factor"],
            "NTK_by_parts_low_freq_factor": parameters["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": parameters["high_freq_factor"],
            "NTK_original_ctx_len": parameters["original_max_position_embeddings"],
        }
    return entries


def _windows(hf_config: Any) -> dict[str, Any]:
    """Which layers see the last columns only."""
    window = getattr(hf_config, "sliding_window", None)
    kinds = getattr(hf_config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * hf_config.num_hidden_layers
    if "sliding_attention" not in kinds:
        return {}
    return {
        "use_local_attn": True,
        "window_size": window,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in kinds],
    }
