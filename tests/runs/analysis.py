"""Quick runs of ``interp moelora analyze``: a base model, its adapters, questions and settings."""

import json
from pathlib import Path
from typing import Any

import peft
import torch

from interp.commands.analyze import AnalyzeSettings
from interp.moelora import MoELoRAConfig
from tests.fixtures import make_hf_model

ROUTED = ("routing.safetensors", "similarity.csv")
SWITCHED = ("effects.safetensors", "effects_accuracy.safetensors", "effects.csv", "agreement.csv")
"""The files of a run that hold its counts, and the effects of experts that were switched off."""


def write_adapter_files(folder: Path, tokenizer: Any) -> Path:
    """A base model, an adapter, a LoRA, and the questions of two tasks."""
    for name, size in (("model", 32), ("larger", 64)):
        made = make_hf_model("llama", tokenizer, num_hidden_layers=2, hidden_size=size)
        made.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    settings = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    for name, config in (
        ("adapter", MoELoRAConfig(num_experts=4, top_k=2, **settings)),
        ("lora", peft.LoraConfig(**settings)),
    ):
        base = make_hf_model("llama", tokenizer, num_hidden_layers=2)
        torch.manual_seed(0)
        adapted = peft.get_peft_model(base, config)
        for key, weight in adapted.named_parameters():
            if "moelora_B" in key:
                weight.data.normal_(std=0.3)
        adapted.peft_config["default"].base_model_name_or_path = str(folder / "model")
        adapted.save_pretrained(str(folder / "run" / name), save_embedding_layers=False)
    sums = [{"prompt": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(60)]
    cities = [{"prompt": f"Is Rome number {i} in Italy?", "answer": "yes"} for i in range(60)]
    for name, rows in (("sums", sums), ("cities", cities)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def quick_analysis(adapter_files: Path, **changed: Any) -> AnalyzeSettings:
    usual = {
        "data": (str(adapter_files / "sums.jsonl"), str(adapter_files / "cities.jsonl")),
        "part": "both",
        "limit": 12,
        "least_tokens": 50,
        "draws": 39,
        "token_draws": 9,
        "routers": 19,
        "effects": 6,
        "effects_budget": 3,
    }
    return AnalyzeSettings(**{**usual, **changed})
