"""An adapted model in TransformerLens, with hook points for its routers, gates and experts.

Every adapted projection gets three, under the projection's TransformerLens name, such as
``blocks.3.attn.q.moelora.hook_gate`` or ``blocks.3.mlp.gate.moelora.hook_router`` (see
`interp.moelora.layer.ExpertHooks`). They are read and written like any other; a gate of zero for
all experts is the base model. Where the model has one projection for queries, keys and values, the
name is ``blocks.3.attn.qkv.moelora…``.

The hooked model shares the weights of the adapted one and nothing else: the PEFT model stays as it
is, and may be trained further and saved. Its adapters are the ones that were active; choose with
``set_adapter`` before hooking.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge

from interp.checked import checked
from interp.errors import UserError
from interp.files import one_line
from interp.forward.partial import device_of
from interp.models import HookedModel
from interp.models.load import wrap
from interp.models.model_check import keep_check
from interp.models.self_check import check_model, trial_logits
from interp.models.unwrapped import check_tokenizer
from interp.models.versions import require_bridge
from interp.moelora.layer import ExpertHooks, MoELoRALinear


@checked
def hooked(adapted: nn.Module, tokenizer: Any, *, spec: str = "in-memory MoELoRA") -> HookedModel:
    """Wrap a model with MoELoRA adapters in TransformerLens; its logits are the PEFT model's.

    `spec` is what runs record the model by. Raises UserError if it has no MoELoRA adapter, if
    several are active at once, if TransformerLens cannot hook the architecture or a target, or on
    TransformerLens 3, which has modules of its own instead of the adapted ones.
    """
    require_bridge("hooking a MoELoRA model")
    _check_adapted(adapted)
    base = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted
    check_tokenizer(tokenizer)
    base.eval()
    expected = trial_logits(base)
    model = wrap(_sharing_copy(base), tokenizer, spec=spec)
    hooks: dict[str, ExpertHooks] = {}
    for name, component in _components(model):
        layer = component._modules.get("_original_component")
        if not isinstance(layer, MoELoRALinear) or not _active_in(layer):
            continue
        hooks[layer.name] = layer.hooks = ExpertHooks()
        component.add_module("moelora", layer.hooks)
        parent, _, child = name.rpartition(".")
        attention = model.get_submodule(parent)
        if child == "qkv" and isinstance(attention, JointQKVAttentionBridge):
            _add_to_parts(attention, layer, layer.hooks)
    # Found by scanning, as the bridge finds its own; this also gives them their names.
    model._scan_existing_hooks(model, "")
    driver = model._driver
    driver.supported_hook_points |= frozenset(model.hook_dict) - driver.non_fireable_hook_points
    _check_all_run(model, hooks)
    keep_check(model, check_model(model, expected))
    return model


def _components(module: Any, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The bridge's components by their TransformerLens names, without what they wrap."""
    for child_name, child in module.named_children():
        if child_name == "_original_component":
            continue
        name = f"{path}.{child_name}" if path else child_name
        yield name, child
        yield from _components(child, name)


def _check_all_run(model: HookedModel, hooks: dict[str, ExpertHooks]) -> None:
    """Every adapted projection must run through its hook points; two tokens show it."""
    ran: set[str] = set()
    with ExitStack() as stack:
        for name, points in hooks.items():
            handle = points.hook_gate.register_forward_hook(
                lambda module, args, output, name=name: ran.add(name)
            )
            stack.callback(handle.remove)
        tokens = torch.zeros(1, 2, dtype=torch.long, device=device_of(model))
        try:
            with torch.no_grad():
                model.original_model(input_ids=tokens)
        except (
            Exception
        ) as error:  # an adapter of TransformerLens that does not fit raises anything
            raise UserError(
                f"TransformerLens cannot run {type(model.original_model).__name__} with its hooks: "
                f"{one_line(error)}"
            ) from error
    wanted = {layer.name for layer in _layers(model.original_model) if _active_in(layer)}
    if missing := sorted(wanted - ran):
        raise UserError(
            f"TransformerLens computes {missing[0]!r} by another way than the model, past its "
            "adapter: a model with that target cannot be hooked"
        )


def _check_adapted(adapted: nn.Module) -> None:
    layers = _layers(adapted)
    if not layers:
        raise UserError(
            "the model has no MoELoRA adapter to hook: add or load one, or use "
            "interp.models.from_hf for the model without it"
        )
    active = {name for layer in layers for name in _active_in(layer)}
    if len(active) > 1:
        raise UserError(
            f"{len(active)} adapters are active at once ({', '.join(sorted(active))}): choose one "
            "with set_adapter before hooking"
        )
    if not active or layers[0].disable_adapters:
        raise UserError("no adapter is active: choose one with set_adapter before hooking")


def _active_in(layer: MoELoRALinear) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.experts]


def _layers(model: nn.Module) -> list[MoELoRALinear]:
    return [module for module in model.modules() if isinstance(module, MoELoRALinear)]


def _sharing_copy(model: nn.Module) -> Any:
    """A copy of the modules, with frozen parameters that share the original's memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    return copy.deepcopy(model, memo)


class _Shared(nn.Module):
    """What the experts add to a joint projection, computed once for its three parts."""

    def __init__(self, layer: MoELoRALinear, hooks: ExpertHooks) -> None:
        super().__init__()
        self.layer = layer
        self.hooks = hooks
        self.latest: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token d_out"]:
        if self.latest is None or self.latest[0] is not x:
            self.latest = x, self.layer.added(x, self.hooks)
        return self.latest[1]

    def forget(self, *args: Any) -> None:
        """Hold no tensor beyond one forward pass of the attention."""
        self.latest = None


class _Part(nn.Module):
    """One of the projections that TransformerLens split, plus its share of what experts add."""

    def __init__(self, split: nn.Module, shared: _Shared, columns: Int[Tensor, " d_part"]) -> None:
        super().__init__()
        self.split = split
        self.shared = shared
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token d_part"]:
        own = self.split(x)
        return (own + self.shared(x)[..., self.columns]).to(own.dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("split"), name)


def _add_to_parts(attention: Any, layer: MoELoRALinear, hooks: ExpertHooks) -> None:
    """TransformerLens computes q, k and v from slices of the joint weight; add the experts there.

    Which columns each slice is made of differs between architectures (blocks, or interleaved by
    head). To find out, the joint weight is replaced by the numbers of its columns for a moment and
    split by the same function.
    """
    base: Any = layer.get_base_layer()
    numbers = torch.arange(layer.out_features, dtype=torch.float32)
    transposed = isinstance(base, nn.Linear)
    shape = (layer.out_features, layer.in_features)
    numbered = numbers[:, None].expand(shape) if transposed else numbers.expand(shape[::-1])
    weight = base.weight
    base.weight = nn.Parameter(numbered.contiguous(), requires_grad=False)
    try:
        split = attention.split_qkv_matrix(attention.original_component)
    finally:
        base.weight = weight
    shared = _Shared(layer, hooks)
    for bridge, part in zip((attention.q, attention.k, attention.v), split, strict=True):
        columns = part.weight.detach()[:, 0].long().to(weight.device)
        bridge.set_original_component(_Part(bridge.original_component, shared, columns))
    attention.register_forward_hook(shared.forget, always_call=True)
