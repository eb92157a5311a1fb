"""One adapted projection: the frozen one, N low-rank experts and a router.

The experts' down-projections are stacked in ``moelora_A`` [expert·r, in], their up-projections in
``moelora_B`` [out, expert·r], so that no loop over experts is needed::

    y = W x + ((x Aᵀ) ⊙ (scaling · gates, repeated r times)) Bᵀ

In float32 one product computes the router's logits and x Aᵀ. Under mixed precision the router is
computed in float32 by itself. B begins as zero, so a fresh adapter changes nothing. Routing depends
on the token, so there is no merged weight.

The frozen projection may be quantized (as in QLoRA, arXiv 2305.14314): its own forward computes
W x, and the adapter is in its compute type.

Without hooks all of this is one operator (``interp.moelora.fused``); what is written out here is
for hooked models, and for what that operator does not do.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers.pytorch_utils import Conv1D

from interp.errors import UserError
from interp.models.placement import weight_device
from interp.moelora.config import MoELoRAConfig
from interp.moelora.fused import FUSED_TYPES, Gating, Inputs, Weights, adapted_projection
from interp.moelora.losses import pairwise_cosines
from interp.moelora.plain_projection import is_plain_projection
from interp.moelora.recorder import Recorder, Routed
from interp.moelora.routing import choose_experts, gates_of_logits, gates_of_probabilities, per_rank
from interp.precision import widened
from interp.quantized import is_quantized, place_of

NO_MERGE = (
    "a MoELoRA adapter cannot be merged into the weights: which experts act depends on the token; "
    "keep the adapter beside the model (save_pretrained saves it alone), and hook both with "
    "interp.moelora.hooked"
)
NO_ADAPTER = (
    "the model has no MoELoRA adapter: add one with peft.get_peft_model(model, "
    "MoELoRAConfig(...)), or load one with interp.moelora.load_adapter"
)


class ExpertHooks(nn.Module):
    """Hook points of one adapted projection; the model uses the values that hooks return.

    ``hook_router`` [batch pos expert] is the router's softmax, ``hook_gate`` [batch pos expert]
    what each expert is weighted with, ``hook_expert_out`` [batch pos expert d_out] what it would
    add with a gate of one. The last is computed only if something is hooked to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hook_router = HookPoint()
        self.hook_gate = HookPoint()
        self.hook_expert_out = HookPoint()


@dataclass(frozen=True)
class Experts:
    """How the experts of one adapter in one projection are used."""

    count: int
    config: MoELoRAConfig


@dataclass(frozen=True)
class ExpertWeights:
    """The weights of one adapter in one projection, for reading what its experts do.

    Attributes:
        down: A of all experts.
        up: B of all experts.
        router: the router's weight.
        r: rank of each expert.
    """

    down: Float[Tensor, "expert_rank d_in"]
    up: Float[Tensor, "d_out expert_rank"]
    router: Float[Tensor, "expert d_in"]
    r: int

    def router_logits(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token expert"]:
        """The router's logits, in float32 or in float64 where the adapter is."""
        dtype = torch.promote_types(self.router.dtype, torch.float32)
        return F.linear(x.to(self.router.dtype).to(dtype), self.router.to(dtype))

    def hidden(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token expert r"]:
        """A x of each expert, in float32."""
        hidden = F.linear(x.to(self.down.dtype), self.down).float()
        return rearrange(hidden, "token (expert r) -> token expert r", r=self.r)

    @property
    def gram(self) -> Float[Tensor, "expert r expert r"]:
        """BᵀB, the dot products between the columns of the experts' up-projections, in float64."""
        up = self.up.detach().double().cpu()
        return rearrange(up.T @ up, "(i r) (j s) -> i r j s", r=self.r, s=self.r)

    def cosines(
        self, hidden: Float[Tensor, "token expert r"]
    ) -> Float[Tensor, "token expert expert"]:
        """The cosines between the experts' outputs of each token; 0 where an output is zero.

        The outputs themselves are never computed: their dot products need only BᵀB.
        """
        up = rearrange(self.up.float(), "d_out (expert r) -> d_out expert r", r=self.r)
        return pairwise_cosine(hidden, up)


def pairwise_cosine(
    hidden: Float[Tensor, "token expert r"], up: Float[Tensor, "d_out expert r"]
) -> Float[Tensor, "token expert expert"]:
    """The cosines between the outputs ``up @ hidden`` of a token's experts."""
    gram = einsum(up, up, "d_out one r, d_out other s -> one r other s")
    products = einsum(
        hidden, gram, hidden, "token one r, one r other s, token other s -> token one other"
    )
    return pairwise_cosines(products)


class MoELoRALinear(nn.Module, BaseTunerLayer):
    """A linear projection (``nn.Linear``, transformers' ``Conv1D``, quantized) with adapters."""

    adapter_layer_names = ("moelora_A", "moelora_B", "moelora_router")
    other_param_names = ("experts",)
    fused = True
    """Whether one operator computes the projection with its experts, where it can."""

    def __init__(self, base_layer: nn.Module, name: str, recorder: Recorder) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = sizes_of(base_layer)
        self.name = name
        self.recorder = recorder
        self.experts: dict[str, Experts] = {}
        self.moelora_A = nn.ParameterDict()
        self.moelora_B = nn.ParameterDict()
        self.moelora_router = nn.ParameterDict()
        self.hooks: ExpertHooks | None = None
        self._disable_adapters = False
        self.merged_adapters = []

    def add_adapter(self, adapter_name: str, config: MoELoRAConfig, count: int) -> None:
        """Add fresh experts and their router under that name, on the projection's device."""
        base = self.get_base_layer()
        zeros = partial(torch.zeros, device=weight_device(base), dtype=place_of(base)[1])
        rank, d_in = count * config.r, self.in_features
        self.experts[adapter_name] = Experts(count, config)
        self.moelora_A[adapter_name] = down = nn.Parameter(zeros(rank, d_in))
        self.moelora_B[adapter_name] = nn.Parameter(zeros(self.out_features, rank))
        self.moelora_router[adapter_name] = router = nn.Parameter(zeros(count, d_in))
        for weight in (down, router):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.set_adapter(self.active_adapters)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Not possible; raises UserError with the reason."""
        raise UserError(NO_MERGE)

    def unmerge(self) -> None:
        """Not possible either; raises UserError."""
        raise UserError(NO_MERGE)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The projection's output, with what the active adapters add."""
        names = () if self.disable_adapters else self.adapters_in_use
        fused = self.hooks is None and self.fused
        if not (fused and names and is_plain_projection(self.base_layer, x)) or args or kwargs:
            result: Any = self.base_layer(x, *args, **kwargs)
        else:
            result = None  # the first adapter's operator computes it
        for adapter_name in names:
            if fused and self.moelora_A[adapter_name].dtype in FUSED_TYPES:
                result = self._adapted_at_once(result, x, adapter_name)
            else:
                result = self._adapted(
                    self.base_layer(x) if result is None else result, x, adapter_name
                )
        return result

    @property
    def adapters_in_use(self) -> list[str]:
        """The active adapters that have experts in this projection."""
        return [name for name in self.active_adapters if name in self.experts]

    def weights(self, adapter_name: str) -> ExpertWeights:
        """The weights of one adapter."""
        return ExpertWeights(
            down=self.moelora_A[adapter_name],
            up=self.moelora_B[adapter_name],
            router=self.moelora_router[adapter_name],
            r=self.experts[adapter_name].config.r,
        )

    def added(
        self, x: Float[Tensor, "*token d_in"], hooks: ExpertHooks
    ) -> Float[Tensor, "*token d_out"]:
        """Only what the one active adapter adds, through the hook points."""
        (adapter_name,) = self.adapters_in_use
        logits, hidden = self._project(x, adapter_name)
        return self._added_through(hooks, logits, hidden, adapter_name=adapter_name)

    def _adapted_at_once(
        self,
        result: Float[Tensor, "*token d_out"] | None,
        x: Float[Tensor, "*token d_in"],
        adapter_name: str,
    ) -> Float[Tensor, "*token d_out"]:
        experts = self.experts[adapter_name]
        config, down = experts.config, self.moelora_A[adapter_name]
        cast = getattr(self, "cast_input_dtype_enabled", True)
        dropped, noise = None, 0.0
        if self.training:
            noise = config.router_noise
            if config.lora_dropout:
                dropped = F.dropout(self._cast_input_dtype(x, down.dtype), config.lora_dropout)
        inputs = Inputs(x, dropped, result)
        if result is None:
            base: Any = self.base_layer
            inputs = Inputs(x, dropped, None, base.weight, base.bias)
        found = adapted_projection(
            inputs,
            Weights(self.moelora_router[adapter_name], down, self.moelora_B[adapter_name]),
            Gating(config.top_k, config.renormalize, config.scaling, config.r, noise),
            cast_input=cast,
        )
        if not self.training:
            return found.output
        key = (self.name, adapter_name)
        values = found.joint, found.logits, found.hidden
        routed = Routed(key, config, experts.count, found.chosen, found.up, *values)
        return self.recorder.keep(routed, found.output)

    def _adapted(
        self,
        result: Float[Tensor, "*token d_out"],
        x: Float[Tensor, "*token d_in"],
        adapter_name: str,
    ) -> Float[Tensor, "*token d_out"]:
        experts = self.experts[adapter_name]
        config = experts.config
        up = self.moelora_B[adapter_name]
        logits, hidden = self._project(x, adapter_name)
        if self.training and config.router_noise:
            logits = logits + config.router_noise * torch.randn_like(logits)
        if self.hooks is not None:
            added = self._added_through(self.hooks, logits, hidden, adapter_name=adapter_name)
            return (result + added).to(result.dtype)
        chosen = choose_experts(logits, config.top_k)
        gates = gates_of_logits(logits, chosen, renormalize=config.renormalize)
        weighted = hidden * per_rank(config.scaling * gates, config.r).to(hidden.dtype)
        if weighted.dtype == up.dtype == result.dtype:
            flat = torch.addmm(result.flatten(0, -2), weighted.flatten(0, -2), up.T)
            adapted = flat.view_as(result)
        else:  # mixed precision: as in PEFT, add first and round then
            adapted = (result + F.linear(weighted, up)).to(result.dtype)
        if not self.training:
            return adapted
        key = (self.name, adapter_name)
        routed = Routed(key, config, experts.count, chosen, up, None, logits, hidden)
        return self.recorder.keep(routed, adapted)

    def _project(
        self, x: Float[Tensor, "*token d_in"], adapter_name: str
    ) -> tuple[Float[Tensor, "*token expert"], Float[Tensor, "*token expert_rank"]]:
        """Router logits in float32 at least, and x times the experts' down-projections."""
        down, router = self.moelora_A[adapter_name], self.moelora_router[adapter_name]
        dropout = self.experts[adapter_name].config.lora_dropout if self.training else 0.0
        x = self._cast_input_dtype(x, down.dtype)
        kind = x.device.type
        if not (dropout or torch.is_autocast_enabled(kind)) and x.dtype == torch.float32:
            both = F.linear(x, torch.cat([router, down]))
            logits, hidden = both.split([len(router), len(down)], dim=-1)
            return logits, hidden
        with torch.autocast(kind, enabled=False):
            logits = F.linear(widened(x), widened(router))
        return logits, F.linear(F.dropout(x, dropout), down)

    def _added_through(
        self,
        hooks: ExpertHooks,
        logits: Float[Tensor, "*token expert"],
        hidden: Float[Tensor, "*token expert_rank"],
        *,
        adapter_name: str,
    ) -> Float[Tensor, "*token d_out"]:
        """What the experts add, with the values handed through the hook points."""
        config, up = self.experts[adapter_name].config, self.moelora_B[adapter_name]
        if hooks.hook_router.has_hooks():
            written = hooks.hook_router(logits.softmax(dim=-1))
            gates = gates_of_probabilities(written, config.top_k, renormalize=config.renormalize)
        else:
            chosen = choose_experts(logits, config.top_k)
            gates = gates_of_logits(logits, chosen, renormalize=config.renormalize)
        gates = hooks.hook_gate(gates)
        if not hooks.hook_expert_out.has_hooks():
            weights = per_rank(config.scaling * gates, config.r).to(hidden.dtype)
            return F.linear(hidden * weights, up)
        outputs = config.scaling * einsum(
            rearrange(hidden, "... (expert r) -> ... expert r", r=config.r),
            rearrange(up, "d_out (expert r) -> expert r d_out", r=config.r),
            "... expert r, expert r d_out -> ... expert d_out",
        )
        outputs = hooks.hook_expert_out(outputs)
        return einsum(gates.to(outputs.dtype), outputs, "... expert, ... expert d_out -> ... d_out")

    def __repr__(self) -> str:
        return "moelora." + super().__repr__()


def sizes_of(layer: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear projection; UserError for anything else.

    A quantized one may be a class of its own, which keeps torch's names for its widths.
    """
    if isinstance(layer, nn.Linear) or (is_quantized(layer) and hasattr(layer, "in_features")):
        return int(layer.in_features), int(layer.out_features)  # type: ignore[arg-type]
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    raise UserError(
        f"MoELoRA adapts linear projections (torch.nn.Linear, transformers' Conv1D), not "
        f"{type(layer).__name__}: choose other target_modules"
    )


def adapted_layers(model: nn.Module) -> list[MoELoRALinear]:
    """The adapted projections of a model, in the order of its modules; perhaps none."""
    return [module for module in model.modules() if isinstance(module, MoELoRALinear)]


@contextmanager
def observing(
    layers: Iterable[nn.Module], on_input: Callable[[int, Tensor], object]
) -> Iterator[None]:
    """Call ``on_input(number, input)`` whenever a layer runs."""

    def hook(layer: Any, args: tuple[Any, ...], *, number: int) -> None:
        on_input(number, args[0])

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(partial(hook, number=number)).remove)
        yield


def layers_in_use(model: nn.Module) -> list[MoELoRALinear]:
    """The adapted projections in which the one active adapter has experts.

    Raises:
        UserError: the model has no MoELoRA adapter, or none or several are active.
    """
    layers = adapted_layers(model)
    if not layers:
        raise UserError(NO_ADAPTER)
    active = sorted({name for layer in layers for name in layer.adapters_in_use})
    if len(active) > 1:
        raise UserError(
            f"{len(active)} adapters are active at once ({', '.join(active)}): choose one with "
            "set_adapter"
        )
    found = [layer for layer in layers if layer.adapters_in_use and not layer.disable_adapters]
    if not found:
        raise UserError("no adapter is active: choose one with set_adapter")
    return found
