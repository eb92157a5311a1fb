"""Architectures with experts in their MLPs, or in their attention."""

from tests.zoo.species import GROUPED, SIZES, Species

_HEAD = {"head_dim": 8}
_MIXED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_OWN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {
    **SIZES,
    **_ROUTED,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
_ONE_DENSE = {"mlp_layer_types": ["dense", "sparse"]}

EXPERTS = (
    Species("Mixtral", "MixtralForCausalLM", "attention, experts", {**GROUPED, **_LOCAL}),
    Species(
        "Qwen 2 MoE",
        "Qwen2MoeForCausalLM",
        "attention, experts and a shared one",
        {
            **GROUPED,
            **_OWN,
            "shared_expert_intermediate_size": 32,
        },
    ),
    Species(
        "Qwen 3 MoE",
        "Qwen3MoeForCausalLM",
        "attention, experts",
        {
            **GROUPED,
            **_HEAD,
            **_OWN,
        },
    ),
    Species("OLMoE", "OlmoeForCausalLM", "attention, experts", {**GROUPED, **_OWN}),
    Species(
        "FlexOlmo",
        "FlexOlmoForCausalLM",
        "attention, experts, norms behind",
        {
            **GROUPED,
            **_OWN,
        },
    ),
    Species(
        "Granite MoE",
        "GraniteMoeForCausalLM",
        "attention, experts",
        {
            **GROUPED,
            **_LOCAL,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
        },
    ),
    Species(
        "DeepSeek V2",
        "DeepseekV2ForCausalLM",
        "latent attention, experts",
        {
            **_LATENT,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
        },
    ),
    Species(
        "DeepSeek V3",
        "DeepseekV3ForCausalLM",
        "latent attention, experts",
        {
            **_LATENT,
            "first_k_dense_replace": 1,
        },
    ),
    Species(
        "DeepSeek V4",
        "DeepseekV4ForCausalLM",
        "compressed attention, hyper-connections",
        {
            **SIZES,
            **_ROUTED,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "q_lora_rank": 16,
            "partial_rotary_factor": 0.5,
            "hc_mult": 2,
            "hc_sinkhorn_iters": 4,
            "o_groups": 2,
            "o_lora_rank": 8,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk": 4,
            "sliding_window": 8,
            "mlp_layer_types": ["moe", "moe"],
            "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        },
    ),
    Species(
        "GLM 4 MoE",
        "Glm4MoeForCausalLM",
        "attention, experts",
        {
            **GROUPED,
            **_HEAD,
            **_ROUTED,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
        },
    ),
    Species(
        "GLM 4 MoE Lite",
        "Glm4MoeLiteForCausalLM",
        "latent attention, experts",
        {
            **_LATENT,
            **_ONE_DENSE,
        },
    ),
    Species(
        "Ernie 4.5 MoE",
        "Ernie4_5_MoeForCausalLM",
        "attention, experts",
        {
            **GROUPED,
            "moe_intermediate_size": 32,
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
        },
    ),
    Species(
        "Llama 4",
        "Llama4ForCausalLM",
        "chunked and full attention, experts",
        {
            **GROUPED,
            **_HEAD,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 64,
            "no_rope_layers": [1, 0],
            "attention_chunk_size": 5,
        },
    ),
    Species(
        "gpt-oss",
        "GptOssForCausalLM",
        "windowed and full attention with sinks, experts",
        {
            **GROUPED,
            **_HEAD,
            **_LOCAL,
            **_MIXED,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    Species(
        "MiniMax M2",
        "MiniMaxM2ForCausalLM",
        "attention, normed whole, experts",
        {
            **GROUPED,
            **_HEAD,
            **_LOCAL,
        },
    ),
    Species(
        "AFMoE",
        "AfmoeForCausalLM",
        "windowed and full attention with gates, experts",
        {
            **GROUPED,
            **_HEAD,
            **_OWN,
            **_MIXED,
            "num_shared_experts": 1,
            "num_dense_layers": 1,
        },
    ),
    Species(
        "Laguna",
        "LagunaForCausalLM",
        "windowed and full attention with gates, experts",
        {
            **GROUPED,
            **_HEAD,
            **_OWN,
            **_MIXED,
            **_ONE_DENSE,
            "shared_expert_intermediate_size": 32,
            "num_attention_heads_per_layer": [4, 4],
        },
    ),
    Species(
        "Phi MoE",
        "PhimoeForCausalLM",
        "attention, experts",
        {
            **GROUPED,
            **_LOCAL,
            "router_jitter_noise": 0.0,
            "input_jitter_noise": 0.0,
            "attention_bias": True,
            "lm_head_bias": True,
            "architectures": [
                "PhiMoEForCausalLM"
            ],  # as checkpoints say, and TransformerLens knows it
        },
    ),
    Species(
        "JetMoE",
        "JetMoeForCausalLM",
        "attention of experts, experts",
        {
            **SIZES,
            **_LOCAL,
            "num_key_value_heads": 2,
            "kv_channels": 8,
        },
    ),
)
