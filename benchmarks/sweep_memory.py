"""Peak memory of a search over so many prompts, shard by shard: prints one line of JSON."""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import timed
from transformers import LlamaConfig, LlamaForCausalLM

import interp.models
from interp.commands.locate import LOCATED, LocateJob, locate_shard
from interp.forward.memory import CPU_BUDGET, CPU_WHOLE
from interp.heads.locate import as_encoded
from interp.premises import Premises
from interp.runs.job_runner import StoredJobRunner
from interp.runs.shards import InProcess
from tests.fixtures import make_word_tokenizer, planted_relation


def hf_model_of(tokenizer: Any) -> Any:
    """Random weights: 8 layers of 512, 8 heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=128,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--method", choices=("attribution", "activation"), default="attribution")
    options = parser.parse_args()
    relation = planted_relation()
    tokenizer = make_word_tokenizer(relation)
    model = interp.models.from_hf(hf_model_of(tokenizer), tokenizer)
    premises = Premises(relation, relation.facts, relation.template_names)
    some = as_encoded(model, premises)
    encoded = some.take([index % len(some) for index in range(options.prompts)])
    budget = CPU_WHOLE if options.method == "attribution" else CPU_BUDGET

    def sweep(folder: Path) -> Mapping[str, torch.Tensor]:
        runner = StoredJobRunner(folder, InProcess(model))
        job = LocateJob(encoded, options.method, "output")
        return runner.run(
            locate_shard, model, job, description="", output=LOCATED, progress=False
        ).tensors

    with tempfile.TemporaryDirectory() as folder:
        measured = timed(lambda: sweep(Path(folder)))
    result = {
        "model": "random weights, 8 layers of 512, 8 heads",
        "method": options.method,
        "prompts": len(encoded),
        "tokens": encoded.batch("false").width,
        "seconds": measured.seconds,
        "mib": measured.mib,
        "budget_mib": budget / 2**20,
        "result_mib": sum(one.nbytes for one in measured.value.values()) / 2**20,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
