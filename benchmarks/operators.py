"""How many operators a sweep and a MoELoRA training step start, for each layer.

    python benchmarks/operators.py [--against FOLDER] [--rounds 0] [--out FILE]

Counted are the operators that reach a device's kernels and compute something: not views, not memory
without values, and not the functions that they are parts of. Each is one launch on a GPU, with one
exception: a norm and its gradient are one kernel each there, and are taken apart on a CPU. Both
numbers are given. Counts are of tiny random Llamas with two and with four layers: half of the
difference is what a layer takes, the rest does not grow with the layers. A sweep's are of one batch
that runs again from the first layer on, its heads' outputs given. A step's are forward (with the
loss and the auxiliary losses), backward, and the optimizer (AdamW on all weights at once, the same
number for any model), which is not part of a layer's.

With ``--against`` another checkout of the repository is counted by the same script, in a process of
its own. With ``--rounds`` both are timed too, in turn; the ratio of seconds is the median over
pairs.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
NORMS = [
    ("interp.forward.norms", "rms_norm"),
    ("interp.moelora.fused_modules", "rms_norm"),
    ("interp.forward.norms", "_Norm.backward"),
    ("interp.forward.fused_block", "rms_norm"),
]
"""Functions that are one kernel on a GPU, where a checkout has them."""
TARGETS = ["q_proj", "v_proj"]


class Operators(TorchDispatchMode):
    """Counts what computes while it is open, by name; what is part of a norm also by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.norms = self.norm_parts = 0
        self._in_norm = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        computes = name not in NOT_COMPUTING
        self.counts[name] += computes
        self.norm_parts += computes and self._in_norm
        return func(*args, **(kwargs or {}))

    @property
    def on_a_cpu(self) -> int:
        return self.counts.total()

    @property
    def on_a_gpu(self) -> int:
        return self.counts.total() - self.norm_parts + self.norms

    def as_norm(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """That function, counted as a norm; a norm within a norm is a part of it."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            outer = self._in_norm
            self.norms += not outer
            self._in_norm = True
            try:
                return function(*args, **kwargs)
            finally:
                self._in_norm = outer

        return counted

    @contextmanager
    def knowing_norms(self) -> Iterator[None]:
        before = []
        for module, path in NORMS:
            *parents, name = path.split(".")
            try:
                owner: Any = importlib.import_module(module)
                for parent in parents:
                    owner = getattr(owner, parent)
                function = getattr(owner, name)
            except (ImportError, AttributeError):  # an earlier checkout
                continue
            before.append((owner, name, owner.__dict__[name]))
            new = self.as_norm(function)
            setattr(owner, name, staticmethod(new) if parents else new)
        try:
            yield
        finally:
            for owner, name, function in reversed(before):
                setattr(owner, name, function)


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


Phases = dict[str, Callable[[], object]]


def training(hf_model: Any, method: str, *, batch: int = 2, width: int = 12) -> Phases:
    """The parts of one training step, to be run in their order."""
    common: dict[str, Any] = {"target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    lora = LoraConfig(r=36, lora_alpha=72, **common)
    config = lora if method == "lora" else MoELoRAConfig(r=4, num_experts=8, top_k=2, **common)
    model = get_peft_model(hf_model, config).train()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for name, parameter in trained.items():
        if "_B" in name:
            nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5, foreach=True)
    tokens = torch.randint(0, 300, (batch, width))
    mask = torch.ones_like(tokens)
    losses: list[Tensor] = []

    def forward() -> None:
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens, attention_mask=mask).loss
        losses[:] = [loss if method == "lora" else loss + auxiliary_losses(model).total]

    return {
        "forward": forward,
        "backward": lambda: losses[0].backward(),
        "optimizer": optimizer.step,
    }


def step(hf_model: Any, method: str, *, batch: int, width: int) -> Callable[[], object]:
    """A training step without its optimizer, to be timed."""
    phases = training(hf_model, method, batch=batch, width=width)
    return lambda: [phases[name]() for name in ("forward", "backward")]


def counted(phases: Phases) -> dict[str, Operators]:
    for run in phases.values():
        run()
    found = {}
    for name, run in phases.items():
        found[name] = operators = Operators()
        with operators.knowing_norms(), operators:
            run()
    return found


def by_layer(make: Callable[[int], Phases]) -> dict[str, dict[str, float]]:
    """Operators by phase: for each layer, on a CPU and on a GPU, and beside the layers (a CPU)."""
    two, four = counted(make(2)), counted(make(4))
    return {
        phase: {
            "per_layer": (four[phase].on_a_cpu - two[phase].on_a_cpu) / 2,
            "per_layer_on_a_gpu": (four[phase].on_a_gpu - two[phase].on_a_gpu) / 2,
            "beside_the_layers": 2 * two[phase].on_a_cpu - four[phase].on_a_cpu,
        }
        for phase in two
    }


def counts() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for width, what in ((60, ""), (24, ", few positions on a CPU")):
            phases = by_layer(
                lambda n, dtype=dtype, width=width: {
                    "sweep": resuming(llama(n, dtype=dtype), width)
                }
            )
            found[f"sweep {name}{what}"] = phases["sweep"]
        for method in ("lora", "moelora"):
            phases = by_layer(
                lambda n, dtype=dtype, method=method: training(llama(n, dtype=dtype), method)
            )
            passes = [phases["forward"], phases["backward"]]
            found[f"step {name}, {method}"] = {
                key: sum(p[key] for p in passes) for key in passes[0]
            }
            found |= {f"step {name}, {method}: {phase}": of for phase, of in phases.items()}
    return found


def timed_jobs(tiny: bool) -> dict[str, Callable[[], object]]:
    """What is timed: the embedded model's sizes, six layers of it."""
    sizes = {} if tiny else {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }  # fmt: skip
    batch, width = (2, 12) if tiny else (8, 48)
    many = {"rows": 32 if tiny else 96}

    return {
        "sweep, few positions": resuming(llama(6, **sizes), 30, **many),
        "sweep, many positions": resuming(llama(6, **sizes), 80, **many),
        "sweep bfloat16": resuming(llama(6, dtype=torch.bfloat16, **sizes), 30, **many),
        **{
            f"step {method}": step(llama(6, **sizes), method, batch=batch, width=width)
            for method in ("lora", "moelora")
        },
    }


def serve(tiny: bool) -> None:
    """Print the counts; then time whatever is named on a line of standard input."""
    print(json.dumps(counts()), flush=True)
    if sys.stdin.readline().strip() != "time":
        return
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
        self.counts: dict[str, dict[str, float]] = {}

    def count(self) -> None:
        """Wait for the counts."""
        self.counts = self._answer()

    def prepare(self) -> list[str]:
        """Make what is timed; its names."""
        self.process.stdin.write("time\n")
        self.process.stdin.flush()
        return self._answer()

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
    jobs, _ = now.prepare(), before.prepare()
    for job in jobs:
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
    parser.add_argument("--rounds", type=int, default=0, help="time so many pairs as well")
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
    before = None if options.against is None else Checkout(options.against, options.tiny)
    now.count()
    result: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads}
    result["now"] = now.counts
    if before is not None:
        before.count()
        result["before"] = before.counts
        result["ratios"] = {
            name: {
                key: round(of[key] / before.counts[name][key], 3)
                for key in ("per_layer", "per_layer_on_a_gpu")
            }
            for name, of in now.counts.items()
            if not name.endswith(": optimizer")
        }
        if options.rounds:
            result["seconds"] = compare(now, before, options.rounds)
        before.close()
    now.close()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
