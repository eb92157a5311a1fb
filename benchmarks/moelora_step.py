"""What MoELoRA costs beside LoRA, and beside the usual loop over experts.

    python benchmarks/moelora_step.py [--rounds 8] [--out benchmarks/results/moelora_step.json]

Whole model: the embedded SmolLM2-135M, 16 x 48 tokens, q_proj and v_proj, two threads. LoRA r = 36
(PEFT's) against 8 experts of r = 4 with routers: the same number of trainable parameters but for
the routers of the narrower value projections (2 % more). A training
step is forward, loss, the auxiliary losses, backward and AdamW. Memory is the most that the tensors
made in one training step take up at once.

Layer alone (what the adapter adds, without the frozen projection): against a loop that gathers each
expert's tokens with ``where`` and puts their outputs back with ``index_add_``.

All variants run in one process, in turn. Seconds are medians over rounds, ratios are medians of
each round's ratio.
"""

import argparse
import gc
import json
import platform
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

import interp.models
from interp.moelora import MoELoRAConfig, MoELoRALinear, auxiliary_losses
from interp.moelora.recorder import Recorder

TARGETS = ["q_proj", "v_proj"]
EXPERTS, RANK, TOP_K = 8, 4, 2
BATCH, WIDTH = 16, 48
LIMITS = {
    "training_step": 1.15,
    "eval_forward": 1.10,
    "memory": 1.20,
    "gather_loop_768x576": 2.3,
    "gather_loop_4096x2048": 2.3,
}


def adapted(config: peft.PeftConfig) -> nn.Module:
    folder = interp.models.resolve("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "_B" in name:  # a few steps on: with zero the contrastive loss would not act
            nn.init.normal_(parameter, std=0.02)
    return model


def training_step(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    trainable = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5)
    experts = any(isinstance(one, MoELoRALinear) for one in model.modules())

    def step() -> None:
        loss = model(input_ids=tokens, labels=tokens).loss
        if experts:
            loss = loss + auxiliary_losses(model).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant by round; the order turns round from one round to the next."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    names = list(variants)
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):
            seconds[name].append(timed(variants[name]))
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in seconds.items()}


def ratio(seconds: dict[str, list[float]], first: str, second: str) -> float:
    """Median over rounds of how many times as long `first` took: what slows a round slows both."""
    pairs = zip(seconds[first], seconds[second], strict=True)
    return round(median(one / other for one, other in pairs), 3)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, of those made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that tensors made during `run` take up at once."""
    gc.collect()
    with PeakMemory() as memory:
        run()
    return memory.peak


def whole_model(rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    lora = peft.LoraConfig(
        r=EXPERTS * RANK + RANK, lora_alpha=72, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    moelora = MoELoRAConfig(
        r=RANK, num_experts=EXPERTS, top_k=TOP_K, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    plain = MoELoRAConfig(**{**moelora.to_dict(), "contrastive_weight": 0.0, "base": None})
    models = {"lora": adapted(lora), "moelora": adapted(moelora), "moe": adapted(plain)}
    tokens = torch.randint(0, 49152, (BATCH, WIDTH))
    steps = {name: training_step(model.train(), tokens) for name, model in models.items()}
    training = in_turn(steps, rounds)
    memory = {name: peak_bytes(step) for name, step in steps.items()}

    def forward(model: nn.Module) -> Callable[[], Any]:
        def run() -> None:
            with torch.no_grad():
                model(input_ids=tokens)

        return run

    forwards = {name: forward(model.eval()) for name, model in models.items()}
    evaluation = in_turn(forwards, 2 * rounds)
    ratios = {
        "training_step": ratio(training, "moelora", "lora"),
        "training_step_without_contrastive": ratio(training, "moe", "lora"),
        "eval_forward": ratio(evaluation, "moelora", "lora"),
        "memory": round(memory["moelora"] / memory["lora"], 3),
    }
    return ratios, {
        "trainable_parameters": {
            name: sum(one.numel() for one in model.parameters() if one.requires_grad)
            for name, model in models.items()
        },
        "training_step_seconds": medians(training),
        "eval_forward_seconds": medians(evaluation),
        "training_step_peak_bytes": memory,
    }


class GatherLoop(nn.Module):
    """The usual implementation: each expert in turn, on the tokens that were routed to it."""

    def __init__(self, layer: MoELoRALinear) -> None:
        super().__init__()
        self.scaling = layer.experts["default"].config.scaling
        down, up = layer.moelora_A["default"], layer.moelora_B["default"]
        self.down = nn.ParameterList(nn.Parameter(one.clone()) for one in down.split(RANK))
        self.up = nn.ParameterList(nn.Parameter(one.clone()) for one in up.split(RANK, dim=1))
        self.router = nn.Parameter(layer.moelora_router["default"].detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        gates, chosen = F.linear(flat, self.router).softmax(dim=-1).topk(TOP_K, dim=-1)
        gates = gates / gates.sum(dim=-1, keepdim=True)
        added = torch.zeros(len(flat), len(self.up[0]))
        for expert in range(EXPERTS):
            token, slot = torch.where(chosen == expert)
            output = F.linear(F.linear(flat[token], self.down[expert]), self.up[expert])
            added.index_add_(0, token, self.scaling * gates[token, slot, None] * output)
        return added.view(*x.shape[:-1], -1)


class Nothing(nn.Linear):
    """Stands for the frozen projection, at no cost."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, bias=False, device="meta")
        self.register_buffer("zero", torch.zeros(1), persistent=False)
        self.output: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.output is None:
            self.output = torch.zeros_like(input)
        return self.output


def layer_alone(tokens: int, width: int, rounds: int) -> dict[str, list[float]]:
    torch.manual_seed(0)
    config = MoELoRAConfig(r=RANK, num_experts=EXPERTS, top_k=TOP_K)
    base = nn.Linear(width, width, bias=False)
    layer = MoELoRALinear(base, "layer", Recorder())
    layer.add_adapter("default", config, EXPERTS)
    layer.base_layer = Nothing(width)
    nn.init.normal_(layer.moelora_B["default"], std=0.02)
    lora = nn.ParameterList([torch.randn(36, width) / width, torch.randn(width, 36) / width])
    loop = GatherLoop(layer)
    x = torch.randn(16, tokens // 16, width, requires_grad=True)
    gradient = torch.randn(16, tokens // 16, width)

    def both_ways(forward: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            x.grad = None
            forward(x).backward(gradient)

        return run

    torch.testing.assert_close(layer(x), loop(x), atol=1e-4, rtol=1e-4)
    return in_turn(
        {
            "moelora": both_ways(layer),
            "gather_loop": both_ways(loop),
            "lora": both_ways(lambda x: 2.0 * F.linear(F.linear(x, lora[0]), lora[1])),
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What MoELoRA costs.")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/moelora_step.json"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    ratios, model = whole_model(arguments.rounds)
    small = layer_alone(768, 576, 10 * arguments.rounds)
    large = layer_alone(4096, 2048, arguments.rounds)
    for name, seconds in (("768x576", small), ("4096x2048", large)):
        ratios[f"gather_loop_{name}"] = ratio(seconds, "gather_loop", "moelora")
        ratios[f"layer_over_lora_{name}"] = ratio(seconds, "moelora", "lora")
    result = {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "whole_model": model,
        "layer_alone_seconds": {"768x576": medians(small), "4096x2048": medians(large)},
        "ratios": ratios,
        "limits": LIMITS,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, value in ratios.items():
        print(f"{name:36s} {value:.3f}   limit {LIMITS.get(name, '')}")


if __name__ == "__main__":
    main()
