"""An adapted model in TransformerLens, with hook points for its routers, gates and experts.

Every adapted projection gets three hook points (`interp.moelora.layer.ExpertHooks`) under its
TransformerLens name, such as ``blocks.3.attn.q.moelora.hook_gate``. A gate of zero for all experts
gives the base model. Where the model has one projection for queries, keys and values, the name is
``blocks.3.attn.qkv.moelora…``.

The hooked model shares the weights of the adapted one and nothing else: the PEFT model stays as it
is, and may be trained further and saved. It has the adapter that is active; choose with
``set_adapter`` before hooking.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge

from interp.checked import checked
from interp.errors import UserError
from interp.files.text import one_line
from interp.forward.partial import device_of
from interp.models import HookedModel
from interp.models.call import evaluating
from interp.models.joint_projections import dequantize_joint
from interp.models.load import wrap
from interp.models.model_check import keep_check
from interp.models.placement import aligning_hooks
from interp.models.self_check import check_model, trial_logits
from interp.models.unwrapped import check_tokenizer
from interp.models.versions import require_bridge
from interp.moelora.layer import ExpertHooks, MoELoRALinear, layers_in_use, observing
from interp.quantized import keep_precision, shared_parameter, shared_states


@checked
def hooked(adapted: nn.Module, tokenizer: Any, *, spec: str = "in-memory MoELoRA") -> HookedModel:
    """Wrap a model with MoELoRA adapters in TransformerLens; its logits are the PEFT model's.

    `spec` is what runs record the model by. Raises UserError if it has no MoELoRA adapter, if
    several are active at once, if TransformerLens cannot hook the architecture or a target, or on
    TransformerLens 3, which has modules of its own instead of the adapted ones.
    """
    require_bridge("hooking a MoELoRA model")
    layers_in_use(adapted)  # raises unless there is exactly one active adapter
    base = adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted
    check_tokenizer(tokenizer)
    keep_precision(base)
    with evaluating(base):
        expected = trial_logits(base)
    twin = _sharing_copy(base).eval()
    dequantize_joint(twin)
    model = wrap(twin, tokenizer, spec=spec)
    hooks: dict[str, ExpertHooks] = {}
    for name, component in _components(model):
        layer = component._modules.get("_original_component")
        if not isinstance(layer, MoELoRALinear) or not layer.adapters_in_use:
            continue
        hooks[layer.name] = layer.hooks = ExpertHooks().eval()
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
    """Raise UserError unless two tokens run every adapted projection through its hook points."""
    names, ran = list(hooks), set[str]()
    gates = [points.hook_gate for points in hooks.values()]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=device_of(model))
    try:
        with observing(gates, lambda number, gate: ran.add(names[number])), torch.no_grad():
            model.original_model(input_ids=tokens)
    except Exception as error:  # TransformerLens raises anything for a model that does not fit
        raise UserError(
            f"TransformerLens cannot run {type(model.original_model).__name__} with its hooks: "
            f"{one_line(error)}"
        ) from error
    wanted = {layer.name for layer in layers_in_use(model.original_model)}
    if missing := sorted(wanted - ran):
        raise UserError(
            f"TransformerLens computes {missing[0]!r} by another way than the model, past its "
            "adapter: a model with that target cannot be hooked"
        )


def _sharing_copy(model: nn.Module) -> Any:
    """A copy of the modules, with frozen parameters that share the original's memory."""
    shared: tuple[Any, ...] = (*model.buffers(), *shared_states(model))
    memo: dict[int, Any] = {id(part): part for part in shared}
    for parameter in model.parameters():
        memo[id(parameter)] = shared_parameter(parameter)
    for module in model.modules():
        for hook in aligning_hooks(module):  # what is kept on the CPU is shared too
            memo[id(hook.weights_map)] = hook.weights_map
    return copy.deepcopy(model, memo)


class SharedExperts(nn.Module):
    """What the experts add to a joint projection, computed once for its three parts."""

    def __init__(self, layer: MoELoRALinear, hooks: ExpertHooks) -> None:
        super().__init__()
        self.layer = layer
        self.hooks = hooks
        self.latest: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token d_out"]:
        """What the experts add; computed again only for another input."""
        if self.latest is None or self.latest[0] is not x:
            self.latest = x, self.layer.added(x, self.hooks)
        return self.latest[1]

    def forget(self, *args: Any) -> None:
        """Drop the kept tensors after a forward pass of the attention."""
        self.latest = None


class JointPart(nn.Module):
    """One of the projections that TransformerLens split, plus its share of what experts add."""

    def __init__(
        self, split: nn.Module, shared: SharedExperts, columns: Int[Tensor, " d_part"]
    ) -> None:
        super().__init__()
        self.split = split
        self.shared = shared
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token d_part"]:
        """The part's output with its columns of what the experts add."""
        output = self.split(x)
        return (output + self.shared(x)[..., self.columns]).to(output.dtype)

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
    if any(hook.offload for hook in aligning_hooks(base)):
        raise UserError(
            f"experts on {layer.name!r}, which holds queries, keys and values, cannot be hooked "
            "while its weights are offloaded to the CPU or the disk: keep that layer on a device"
        )
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
    shared = SharedExperts(layer, hooks)
    for bridge, part in zip((attention.q, attention.k, attention.v), split, strict=True):
        columns = part.weight.detach()[:, 0].long().to(weight.device)
        bridge.set_original_component(JointPart(bridge.original_component, shared, columns))
    attention.register_forward_hook(shared.forget, always_call=True)
