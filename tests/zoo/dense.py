"""Architectures all of whose layers are attention and one MLP."""

from tests.zoo.species import GROUPED, SIZES, Species
from tests.zoo.words import TOKENS

_HEAD = {"head_dim": 8}
_GPT = {
    **TOKENS,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.2,
}
_WINDOW = {"sliding_window": 5}
_MIXED = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_BIG = {"query_pre_attn_scalar": 8}
_LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}

DENSE = (
    Species("Llama", "LlamaForCausalLM", "attention", GROUPED),
    Species("Mistral", "MistralForCausalLM", "windowed attention", {**GROUPED, **_WINDOW}),
    Species(
        "Ministral 3",
        "Ministral3ForCausalLM",
        "attention, scaled queries",
        {
            **GROUPED,
            **_HEAD,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    Species("Qwen 2", "Qwen2ForCausalLM", "attention", GROUPED),
    Species("Qwen 3", "Qwen3ForCausalLM", "attention, normed heads", {**GROUPED, **_HEAD}),
    Species("Gemma", "GemmaForCausalLM", "attention", {**GROUPED, **_HEAD}),
    Species(
        "Gemma 2",
        "Gemma2ForCausalLM",
        "windowed and full attention, capped scores",
        {
            **GROUPED,
            **_HEAD,
            **_MIXED,
            **_BIG,
        },
    ),
    Species(
        "Gemma 3",
        "Gemma3ForCausalLM",
        "windowed and full attention, normed heads",
        {
            **GROUPED,
            **_HEAD,
            **_MIXED,
            **_BIG,
        },
    ),
    Species(
        "Gemma 4",
        "Gemma4ForCausalLM",
        "windowed and full attention, normed heads",
        {
            **GROUPED,
            **_HEAD,
            **_MIXED,
            "global_head_dim": 8,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": TOKENS["vocab_size"],
        },
    ),
    Species(
        "Gemma 4, inputs by layer",
        "Gemma4ForCausalLM",
        "windowed and full attention, keys from below, inputs by layer",
        {
            **GROUPED,
            **_HEAD,
            "sliding_window": 5,
            "num_hidden_layers": 4,
            "global_head_dim": 8,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": TOKENS["vocab_size"],
        },
    ),
    Species(
        "VaultGemma",
        "VaultGemmaForCausalLM",
        "windowed and full attention, capped scores",
        {
            **GROUPED,
            **_HEAD,
            **_MIXED,
            **_BIG,
        },
    ),
    Species("Phi", "PhiForCausalLM", "attention beside MLP", GROUPED),
    Species("Phi 3", "Phi3ForCausalLM", "attention, joint projections", GROUPED),
    Species("GPT-2", "GPT2LMHeadModel", "attention, joint projection", _GPT),
    Species(
        "OpenAI GPT", "OpenAIGPTLMHeadModel", "attention, norms behind, no cache", _GPT, gain=4.0
    ),
    Species("GPT-J", "GPTJForCausalLM", "attention beside MLP", {**_GPT, "rotary_dim": 4}),
    Species(
        "CodeGen",
        "CodeGenForCausalLM",
        "attention beside MLP, joint projection",
        {
            **_GPT,
            "n_embd": 64,
            "rotary_dim": 4,
        },
    ),
    Species(
        "GPT-Neo",
        "GPTNeoForCausalLM",
        "full and windowed attention",
        {
            **SIZES,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 5,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    Species("GPT-NeoX", "GPTNeoXForCausalLM", "attention beside MLP, joint projection", SIZES),
    Species(
        "GPT-NeoX, one after the other",
        "GPTNeoXForCausalLM",
        "attention, joint projection",
        {
            **SIZES,
            "use_parallel_residual": False,
        },
    ),
    Species(
        "GPTBigCode",
        "GPTBigCodeForCausalLM",
        "attention, one key, joint projection",
        {
            **_GPT,
            "multi_query": True,
        },
    ),
    Species(
        "GPTBigCode, a key a head",
        "GPTBigCodeForCausalLM",
        "attention, joint projection",
        {
            **_GPT,
            "multi_query": False,
        },
    ),
    Species(
        "OPT",
        "OPTForCausalLM",
        "attention",
        {
            **SIZES,
            "ffn_dim": 64,
            "init_std": 0.2,
            "word_embed_proj_dim": 32,
        },
    ),
    Species(
        "XGLM",
        "XGLMForCausalLM",
        "attention",
        {
            **TOKENS,
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": 256,
            "init_std": 0.2,
        },
    ),
    Species(
        "BLOOM",
        "BloomForCausalLM",
        "attention with ALiBi, joint projection",
        {
            **SIZES,
            "n_layer": 2,
            "n_head": 4,
        },
    ),
    Species("Falcon", "FalconForCausalLM", "attention beside MLP, one key", SIZES),
    Species(
        "Falcon, new decoder",
        "FalconForCausalLM",
        "attention beside MLP, joint projection",
        {
            **SIZES,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
        },
    ),
    Species(
        "Falcon RW",
        "FalconForCausalLM",
        "attention with ALiBi, joint projection",
        {
            **SIZES,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    Species(
        "MPT",
        "MptForCausalLM",
        "attention with ALiBi, joint projection",
        {
            **TOKENS,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 256,
            "expansion_ratio": 2,
            "initializer_range": 0.2,
        },
    ),
    Species("StableLM", "StableLmForCausalLM", "attention", {**GROUPED, "use_qkv_bias": True}),
    Species(
        "StableLM 2",
        "StableLmForCausalLM",
        "attention beside MLP, normed heads",
        {
            **GROUPED,
            "use_parallel_residual": True,
            "qk_layernorm": True,
        },
    ),
    Species(
        "OLMo",
        "OlmoForCausalLM",
        "attention, clipped projections",
        {
            **GROUPED,
            "clip_qkv": 0.8,
        },
    ),
    Species("OLMo 2", "Olmo2ForCausalLM", "attention, queries and keys normed whole", GROUPED),
    Species(
        "OLMo 3",
        "Olmo3ForCausalLM",
        "windowed and full attention, normed whole",
        {
            **GROUPED,
            **_MIXED,
        },
    ),
    Species(
        "Granite",
        "GraniteForCausalLM",
        "attention, scaled residuals",
        {
            **GROUPED,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
            "embedding_multiplier": 1.5,
            "logits_scaling": 2.0,
        },
    ),
    Species(
        "Cohere",
        "CohereForCausalLM",
        "attention beside MLP",
        {
            **GROUPED,
            "logit_scale": 0.5,
            "use_qk_norm": True,
        },
    ),
    Species(
        "Cohere 2",
        "Cohere2ForCausalLM",
        "windowed and full attention beside MLP",
        {
            **GROUPED,
            **_HEAD,
            **_MIXED,
            "logit_scale": 0.5,
        },
    ),
    Species("GLM", "GlmForCausalLM", "attention, joint gate", {**GROUPED, **_HEAD}),
    Species("GLM 4", "Glm4ForCausalLM", "attention, norms on either side", {**GROUPED, **_HEAD}),
    Species("Nemotron", "NemotronForCausalLM", "attention", {**GROUPED, **_HEAD}),
    Species("StarCoder 2", "Starcoder2ForCausalLM", "attention", GROUPED),
    Species(
        "Apertus",
        "ApertusForCausalLM",
        "attention, normed heads",
        {
            **GROUPED,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    Species("Arcee", "ArceeForCausalLM", "attention", GROUPED),
    Species(
        "SmolLM3",
        "SmolLM3ForCausalLM",
        "attention with and without positions",
        {
            **GROUPED,
            "no_rope_layers": [1, 0],
        },
    ),
    Species(
        "EXAONE 4",
        "Exaone4ForCausalLM",
        "windowed and full attention, norms behind",
        {
            **GROUPED,
            **_HEAD,
            **_MIXED,
            "sliding_window_pattern": 2,
        },
    ),
    Species("Ernie 4.5", "Ernie4_5ForCausalLM", "attention", {**GROUPED, **_HEAD}),
    Species(
        "HunYuan dense",
        "HunYuanDenseV1ForCausalLM",
        "attention, normed heads",
        {
            **GROUPED,
            **_HEAD,
        },
    ),
    Species("Seed-OSS", "SeedOssForCausalLM", "attention", {**GROUPED, **_HEAD}),
    Species("Jais 2", "Jais2ForCausalLM", "attention", {**GROUPED, **_HEAD}),
    Species("BitNet", "BitNetForCausalLM", "attention, a norm inside it", GROUPED),
    Species("nanochat", "NanoChatForCausalLM", "attention, normed heads", GROUPED),
    Species(
        "ModernBERT decoder",
        "ModernBertDecoderForCausalLM",
        "full and windowed attention",
        {
            **SIZES,
            "local_attention": 10,
            "cls_token_id": 0,
            "sep_token_id": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    Species(
        "BERT decoder",
        "BertLMHeadModel",
        "attention, norms behind",
        {
            **SIZES,
            "is_decoder": True,
        },
    ),
    Species(
        "Youtu",
        "YoutuForCausalLM",
        "latent attention",
        {
            **_LATENT,
            "embedding_initializer_range": 0.2,
        },
    ),
)
