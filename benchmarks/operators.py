"""How many operators a sweep and a MoELoRA training step start, for each layer; and their seconds.

    python benchmarks/operators.py [--against FOLDER] [--rounds 12] [--out FILE]

An operator that computes something is one kernel on a GPU, with one exception: on a CPU a norm is
taken apart. Both numbers are given. Counts are of tiny random Llamas with four and with eight
layers: the difference by layer, and what does not grow with the layers. A sweep's is of one batch
that runs again from the first layer on, its heads' outputs given.

With ``--against`` another checkout of the repository is measured too, in a process of its own that
takes its turn, pair by pair; the ratio of seconds is the median over pairs.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import interp.models
from interp.forward.partial import record_run, resume
from interp.moelora import MoELoRAConfig, auxiliary_losses
from interp.patching import TokenBatch

ROOT = Path(__file__).parents[1]
NOT_COMPUTING = frozenset(
    [
        *("view", "_unsafe_view", "_reshape_alias", "view_as", "t", "transpose", "permute"),
        *("expand", "slice", "select", "split", "split_with_sizes", "unbind", "unsqueeze"),
        *("squeeze", "diagonal", "as_strided", "detach", "alias", "lift_fresh", "is_same_size"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("promote_types", "_local_scalar_dense", "sym_size"),
    ]
)
"""Views, memory without values, questions about types."""
NORM_PARTS, NORM_MARK = 7, "linalg_vector_norm"
"""A norm on a CPU has so many operators, one of which nothing else has."""
TARGETS = ["q_proj", "v_proj"]


class Operators(TorchDispatchMode):
    """Counts what computes while it is open, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += name not in NOT_COMPUTING
        return func(*args, **(kwargs or {}))


def llama(n_layers: int, *, dtype: torch.dtype = torch.float32, **sizes: int) -> Any:
    torch.manual_seed(0)
    tiny: dict[str, Any] = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": n_layers,
    }
    return LlamaForCausalLM(LlamaConfig(**(tiny | sizes))).to(dtype).eval()


def tokenizer() -> Any:
    """One whose tokens are numbers; nothing is tokenized."""
    words = {str(number): number for number in range(384)}
    backend = Tokenizer(WordLevel(words, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="0", eos_token="1")


def resuming(hf_model: Any, width: int, *, rows: int = 16, start: int = 10) -> Callable[[], Tensor]:
    """One batch of a sweep, from the first layer on."""
    model = interp.models.from_hf(hf_model, tokenizer(), spec="random")
    batch = TokenBatch.from_padded(torch.randint(0, 300, (2, width)))
    with torch.no_grad():
        run = record_run(model, batch, start=start, keep=("z",))
    chosen = torch.arange(2).repeat(rows // 2)
    tokens = torch.randint(0, 300, (len(chosen), 2))
    z = run.z[0, chosen]

    @torch.no_grad()
    def again() -> Tensor:
        return resume(model, run, layer=0, rows=chosen, z=z, tokens=tokens)

    return again


def training(hf_model: Any, method: str, *, batch: int = 2, width: int = 12) -> Callable[[], None]:
    """Loss, auxiliary losses and gradients of one batch, without the optimizer."""
    common: dict[str, Any] = {"target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    lora = LoraConfig(r=36, lora_alpha=72, **common)
    config = lora if method == "lora" else MoELoRAConfig(r=4, num_experts=8, top_k=2, **common)
    model = get_peft_model(hf_model, config).train()
    for name, parameter in model.named_parameters():
        if "_B" in name:
            nn.init.normal_(parameter, std=0.02)
    tokens = torch.randint(0, 300, (batch, width))
    mask = torch.ones_like(tokens)

    def step() -> None:
        loss = model(input_ids=tokens, labels=tokens, attention_mask=mask).loss
        if method != "lora":
            loss = loss + auxiliary_losses(model).total
        loss.backward()
        model.zero_grad()

    return step


def counted(run: Callable[[], object]) -> Counter[str]:
    run()
    with Operators() as operators:
        run()
    return operators.counts


def by_layer(make: Callable[[int], Callable[[], object]]) -> dict[str, float]:
    """Operators for each layer, on a CPU and on a GPU, and beside the layers."""
    four, eight = counted(make(4)), counted(make(8))
    each, norms = ((eight.total() - four.total()) / 4, (eight - four)[NORM_MARK] / 4)
    return {
        "per_layer": each,
        "per_layer_on_a_gpu": each - (NORM_PARTS - 1) * norms,
        "beside_the_layers": 2 * four.total() - eight.total(),
    }


def counts() -> dict[str, dict[str, float]]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for width, kernel in ((24, "stepwise attention"), (60, "fused attention")):
            found[f"sweep {name}, {kernel}"] = by_layer(
                lambda n, dtype=dtype, width=width: resuming(llama(n, dtype=dtype), width)
            )
        for method in ("lora", "moelora"):
            found[f"step {name}, {method}"] = by_layer(
                lambda n, dtype=dtype, method=method: training(llama(n, dtype=dtype), method)
            )
    return found


def timed_jobs(tiny: bool) -> dict[str, Callable[[], object]]:
    """What is timed: the embedded model's sizes, six layers of it."""
    sizes = {} if tiny else {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }  # fmt: skip
    batch, width = (2, 12) if tiny else (8, 48)
    many = {"rows": 32 if tiny else 96}
    made = {f"step {one}": training(llama(6, **sizes), one, batch=batch, width=width)
            for one in ("lora", "moelora")}  # fmt: skip
    return {
        "sweep, few positions": resuming(llama(6, **sizes), 30, **many),
        "sweep, many positions": resuming(llama(6, **sizes), 80, **many),
        "sweep bfloat16": resuming(llama(6, dtype=torch.bfloat16, **sizes), 30, **many),
        **made,
    }


def serve(tiny: bool) -> None:
    """Print the counts; then time whatever is named on a line of standard input."""
    print(json.dumps(counts()), flush=True)
    jobs = timed_jobs(tiny)
    for run in jobs.values():
        run()
    print(json.dumps(list(jobs)), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        jobs[line.strip()]()
        print(time.perf_counter() - begin, flush=True)


class Checkout:
    """Another process that measures one checkout of the repository."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
        command = [sys.executable, __file__, "--serve", *(["--tiny"] if tiny else [])]
        options: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
        }
        self.process: Any = subprocess.Popen(command, env=environment, cwd=folder, **options)
        self.counts: dict[str, dict[str, float]] = self._answer()
        self.jobs: list[str] = self._answer()

    def _answer(self) -> Any:
        return json.loads(self.process.stdout.readline())

    def seconds(self, job: str) -> float:
        self.process.stdin.write(job + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(now: Checkout, before: Checkout, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of both, taken in turn, and the median of each pair's ratio."""
    found = {}
    for job in now.jobs:
        pairs = []
        for index in range(rounds):
            order = (now, before) if index % 2 else (before, now)
            took = {id(one): one.seconds(job) for one in order}
            pairs.append((took[id(now)], took[id(before)]))
        found[job] = {
            "now": median(one for one, _ in pairs),
            "before": median(other for _, other in pairs),
            "ratio": median(one / other for one, other in pairs),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="time tiny models")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/operators.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if options.serve:
        serve(options.tiny)
        return
    now = Checkout(ROOT, options.tiny)
    result: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads}
    result["now"] = now.counts
    if options.against is not None:
        before = Checkout(options.against, options.tiny)
        result["before"] = before.counts
        key = "per_layer_on_a_gpu"
        result["ratios"] = {
            name: round(now.counts[name][key] / before.counts[name][key], 3) for name in now.counts
        }
        result["seconds"] = compare(now, before, options.rounds)
        before.close()
    now.close()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
