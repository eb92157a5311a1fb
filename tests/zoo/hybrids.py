"""Architectures some or all of whose layers mix tokens by other means than attention."""

from tests.zoo.species import GROUPED, SIZES, Species
from tests.zoo.words import TOKENS

_HEAD = {"head_dim": 8}
_OWN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_THREE = {**GROUPED, "num_hidden_layers": 3}
_DELTA = {
    **_THREE,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
}
_STATE = {
    **TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "initializer_range": 0.2,
}
_SSM = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_CONV = {**_THREE, "layer_types": ["full_attention", "conv", "full_attention"]}
_OUTER = (0, 2)

HYBRIDS = (
    Species("Mamba", "MambaForCausalLM", "state space", _STATE, ()),
    Species(
        "Mamba 2",
        "Mamba2ForCausalLM",
        "state space",
        {
            **_STATE,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
        (),
    ),
    Species("Falcon Mamba", "FalconMambaForCausalLM", "state space", _STATE, ()),
    Species(
        "RWKV",
        "RwkvForCausalLM",
        "linear recurrence",
        {
            **TOKENS,
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "context_length": 256,
        },
        (),
        gain=4.0,
    ),
    Species(
        "Jamba",
        "JambaForCausalLM",
        "state space and attention; experts",
        {
            **GROUPED,
            "num_hidden_layers": 4,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
        (1, 3),
    ),
    Species(
        "Bamba",
        "BambaForCausalLM",
        "attention and state space",
        {
            **_THREE,
            **_SSM,
            "attn_layer_indices": [0, 2],
        },
        _OUTER,
    ),
    Species(
        "Falcon H1",
        "FalconH1ForCausalLM",
        "attention beside state space",
        {
            **GROUPED,
            **_SSM,
            "mamba_d_ssm": 64,
            "attention_out_multiplier": 0.7,
            "key_multiplier": 0.8,
        },
    ),
    Species(
        "Granite MoE hybrid",
        "GraniteMoeHybridForCausalLM",
        "attention and state space; experts and a shared one",
        {
            **_THREE,
            **_SSM,
            **_LOCAL,
            "shared_intermediate_size": 32,
            "layer_types": ["attention", "mamba", "attention"],
            "residual_multiplier": 0.7,
        },
        _OUTER,
    ),
    Species(
        "Nemotron H",
        "NemotronHForCausalLM",
        "state space, attention, MLP, each by itself",
        {
            **{key: value for key, value in GROUPED.items() if key != "num_hidden_layers"},
            **_HEAD,
            "layers_block_type": ["mamba", "attention", "mlp", "attention"],
            "use_mamba_kernels": False,
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
        (1, 3),
    ),
    Species(
        "Zamba 2",
        "Zamba2ForCausalLM",
        "state space, some with shared attention",
        {
            **SIZES,
            "num_key_value_heads": 4,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "chunk_size": 8,
            "use_mamba_kernels": False,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
        },
        (1, 2),
    ),
    Species(
        "Qwen 3 Next",
        "Qwen3NextForCausalLM",
        "linear and gated attention; experts",
        {
            **_DELTA,
            **_HEAD,
            **_OWN,
            "shared_expert_intermediate_size": 32,
        },
        (1, 2),
    ),
    Species(
        "Qwen 3.5",
        "Qwen3_5ForCausalLM",
        "linear and gated attention",
        {
            **_DELTA,
            **_HEAD,
        },
        (1, 2),
    ),
    Species(
        "Qwen 3.5 MoE",
        "Qwen3_5MoeForCausalLM",
        "linear and gated attention; experts",
        {
            **_DELTA,
            **_HEAD,
            **_OWN,
            "shared_expert_intermediate_size": 32,
        },
        (1, 2),
    ),
    Species("OLMo hybrid", "OlmoHybridForCausalLM", "linear and full attention", _DELTA, (1, 2)),
    Species(
        "LFM 2",
        "Lfm2ForCausalLM",
        "attention and convolution",
        {
            **_CONV,
            "block_auto_adjust_ff_dim": False,
        },
        _OUTER,
    ),
    Species(
        "LFM 2 MoE",
        "Lfm2MoeForCausalLM",
        "attention and convolution; experts",
        {
            **_CONV,
            **_OWN,
            "num_dense_layers": 1,
        },
        _OUTER,
    ),
    Species(
        "RecurrentGemma",
        "RecurrentGemmaForCausalLM",
        "linear recurrence and attention",
        {
            **_THREE,
            "lru_width": 32,
            "attention_window_size": 5,
            "block_types": ["recurrent", "attention", "attention"],
            "w_init_variance_scale": 1.0,
            "final_w_init_variance_scale": 1.0,
        },
        (1, 2),
    ),
)
