"""One edge of an expert as a whole run of the hooked model, written out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interp.moelora.hooked import JointPart
from interp.moelora.layer import MoELoRALinear

Run = dict[str, Tensor]


def adapted_of_point(model: Any, name: str) -> MoELoRALinear:
    return model.get_submodule(name).original_component


def frozen(model: Any, name: str) -> Callable[[Tensor], Tensor]:
    """What a projection computes without its experts."""
    module = model.get_submodule(name).original_component
    if isinstance(module, JointPart):
        return module.split
    return module.base_layer if isinstance(module, MoELoRALinear) else module


def expert_by_hand(layer: MoELoRALinear, x: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """The gate [pos] and the output [pos d_out] of one expert, one position after another."""
    (name,) = layer.adapters_in_use
    config = layer.experts[name].config
    router, down, up = layer.moelora_router[name], layer.moelora_A[name], layer.moelora_B[name]
    own = slice(expert * config.r, (expert + 1) * config.r)
    gates, outputs = [], []
    for row in x:
        logits = router @ row
        best = logits.topk(config.top_k).indices.tolist()
        exponents = logits.exp()
        whole = exponents[best].sum() if config.renormalize else exponents.sum()
        gates.append(exponents[expert] / whole if expert in best else 0 * whole)
        outputs.append(config.scaling * up[:, own] @ (down[own] @ row))
    return torch.stack(gates), torch.stack(outputs)


@torch.no_grad()
def seen(model: Any, tokens: Tensor, hooks: Any = ()) -> tuple[Tensor, Run]:
    """The last logits of a prompt, and what its hook points show, experts' included."""
    found: Run = {}
    wanted = ("hook_z", "hook_resid_pre", "attn_out", "mlp_out", "hook_gate", "hook_expert_out")
    notes = [
        (name, lambda value, hook, name=name: found.update({name: value[0].clone()}))
        for name in model.hook_dict
        if name.endswith(wanted)
    ]
    with model.hooks(fwd_hooks=[*notes, *hooks]):
        logits = model(tokens[None])[:, -1]
    return logits, found


def put(values: Tensor) -> Callable[..., Tensor]:
    return lambda value, hook: values.reshape(value.shape).to(value)


def of_expert(run: Run, point: str, expert: int) -> Tensor:
    gate, output = (run[f"{point}.moelora.hook_{name}"] for name in ("gate", "expert_out"))
    return gate[:, expert, None] * output[:, expert]


def point_of(node: str) -> tuple[str, int, int]:
    """``a1.q.e2`` as (blocks.1.attn.q, 1, 2)."""
    layer, short, expert = node[1:].split(".")
    part = {"a": "attn", "m": "mlp"}[node[0]]
    return f"blocks.{layer}.{part}.{short}", int(layer), int(expert[1:])


@torch.no_grad()
def written(model: Any, run: Run, writer: str) -> Tensor:
    """What a writer adds to the residual stream [pos d_model], up to a bias."""
    if writer == "input":
        return run["blocks.0.hook_resid_pre"]
    if ".e" in writer:
        point, _, expert = point_of(writer)
        return of_expert(run, point, expert)
    if writer[0] == "a":
        layer, head = map(int, writer[1:].split(".h"))
        z = torch.zeros_like(run[f"blocks.{layer}.attn.hook_z"])
        z[:, head] = run[f"blocks.{layer}.attn.hook_z"][:, head]
        project = frozen(model, f"blocks.{layer}.attn.o")
        return project(z.flatten(1)) - project(torch.zeros_like(z).flatten(1))
    layer = int(writer[1:])
    point, whole = f"blocks.{layer}.mlp.out", run[f"blocks.{layer}.hook_mlp_out"]
    if f"{point}.moelora.hook_gate" not in run:
        return whole
    n_experts = run[f"{point}.moelora.hook_gate"].shape[1]
    return whole - sum(of_expert(run, point, expert) for expert in range(n_experts))


@torch.no_grad()
def patched(
    model: Any, tokens: Tensor, runs: tuple[Run, Run], edge: tuple[str, str], *, size: float = 1.0
) -> Tensor:
    """The last logits of the corrupted run with so much of a clean writer's change at a reader.

    ``tokens`` are the corrupted prompt's, ``runs`` what the clean and the corrupted one show.
    """
    writer, reader = edge
    clean, run = runs
    change = size * (written(model, clean, writer) - written(model, run, writer))
    if reader == "logits":
        norm = model.ln_final
        hook = norm.register_forward_pre_hook(lambda module, args: (args[0] + change,))
        try:
            return model(tokens[None])[:, -1]
        finally:
            hook.remove()
    layer = int(reader[1:].split(".")[0])
    block, before = model.blocks[layer], run[f"blocks.{layer}.hook_resid_pre"]
    norm = block.ln1
    if reader[0] == "m":
        norm = block.ln2
        if not getattr(model.original_model.config, "use_parallel_residual", False):
            before = before + run[f"blocks.{layer}.hook_attn_out"]
    x, new = norm(before[None])[0], norm((before + change)[None])[0]

    hooks: list[Any] = []
    if ".e" in reader:
        point, _, expert = point_of(reader)
        gate, output = expert_by_hand(adapted_of_point(model, point), new, expert)
        gates, outputs = (run[f"{point}.moelora.hook_{name}"] for name in ("gate", "expert_out"))
        gates, outputs = gates.clone(), outputs.clone()
        gates[:, expert], outputs[:, expert] = gate, output
        hooks = [
            (f"{point}.moelora.hook_gate", put(gates)),
            (f"{point}.moelora.hook_expert_out", put(outputs)),
        ]
    elif reader[0] == "a":
        unit, into = int(reader.split(".h")[1].split("<")[0]), reader[-2]
        project = frozen(model, f"blocks.{layer}.attn.{into}")
        moved = project(new) - project(x)

        def add(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[0, :, unit] += moved.reshape(value.shape[1:])[:, unit]
            return value

        hooks = [(f"blocks.{layer}.attn.hook_{into}", add)]
    else:
        hooks = [(f"blocks.{layer}.mlp.hook_in", put(new))]
        for name, value in run.items():
            if (
                name.startswith(f"blocks.{layer}.mlp.")
                and ".out." not in name
                and "moelora" in name
            ):
                hooks.append((name, put(value)))
    with model.hooks(fwd_hooks=hooks):
        return model(tokens[None])[:, -1]
