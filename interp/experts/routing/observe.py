"""The inputs of the adapted projections while a model runs, without its logits.

The model's own modules run as they are; a light hook sees what each adapted projection reads. The
unembedding, a fifth of a small model's work, is left out; what all texts begin with is run once.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor
from transformers.cache_utils import DynamicCache

from interp.errors import UserError
from interp.experts.routing.records import Projection
from interp.moelora.layer import Experts, MoELoRALinear
from interp.moelora.method import layer_of

LEAST_SHARED = 4
"""A beginning of fewer tokens is not worth a cache."""

See = Callable[[int, MoELoRALinear, Tensor], None]


def base_of(model: Any) -> Any:
    """The transformers model inside a PEFT model or a hooked one, or the model itself."""
    if isinstance(model, PeftModel):
        return model.get_base_model()
    original = getattr(model, "original_model", None)
    return model if original is None else original


def adapted_layers(model: Any) -> tuple[MoELoRALinear, ...]:
    """The adapted projections with their one active adapter, in the order of the modules.

    Raises UserError if there are none, or if none or several adapters are active.
    """
    layers = [one for one in base_of(model).modules() if isinstance(one, MoELoRALinear)]
    if not layers:
        raise UserError(
            "the model has no MoELoRA adapter: load one with interp.moelora.load_adapter"
        )
    active = [one for one in layers if active_in(one) and not one.disable_adapters]
    if not active:
        raise UserError("no adapter is active: choose one with set_adapter")
    if several := next((one for one in active if len(active_in(one)) > 1), None):
        raise UserError(
            f"several adapters are active at once ({', '.join(active_in(several))}): choose one "
            "with set_adapter"
        )
    return tuple(active)


def active_in(layer: MoELoRALinear) -> list[str]:
    """The names of the adapters that are active in a projection."""
    return [name for name in layer.active_adapters if name in layer.experts]


def experts_of(layer: MoELoRALinear) -> Experts:
    """How the experts of its active adapter are used."""
    return layer.experts[active_in(layer)[0]]


def projection_of(layer: MoELoRALinear) -> Projection:
    """What a table says of it; a projection outside the numbered layers counts as of layer 0."""
    target = layer.name.rpartition(".")[2]
    return Projection(layer.name, layer_of(layer.name) or 0, target, experts_of(layer).count)


def router_logits(
    layer: MoELoRALinear, x: Float[Tensor, "*token d_in"]
) -> Float[Tensor, "*token expert"]:
    """The router's logits, in float32 or in float64 where the adapter is."""
    router = layer.moelora_router[active_in(layer)[0]]
    kind = torch.promote_types(router.dtype, torch.float32)
    return F.linear(x.to(router.dtype).to(kind), router.to(kind))


def _calling(see: See, number: int) -> Callable[[Any, tuple[Any, ...]], None]:
    def hook(layer: Any, args: tuple[Any, ...]) -> None:
        see(number, layer, args[0])

    return hook


@contextmanager
def observing(layers: tuple[MoELoRALinear, ...], see: See) -> Iterator[None]:
    """Call ``see(number, layer, input)`` whenever an adapted projection runs."""
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(_calling(see, number)).remove)
        yield


class Runner:
    """Forward passes up to the last hidden states; what all texts begin with is run once."""

    def __init__(self, model: Any, beginning: Sequence[int] = ()) -> None:
        base = base_of(model)
        self.inner: Any = getattr(base, "base_model", base)
        self.device = next(iter(base.parameters())).device
        self.begun: DynamicCache | None = None
        # A hooked model's own hooks may act on whole prompts only.
        if len(beginning) >= LEAST_SHARED and base is not getattr(model, "original_model", None):
            self.begun = DynamicCache(config=base.config)
            tokens = torch.tensor([list(beginning)], device=self.device)
            self.inner(input_ids=tokens, past_key_values=self.begun, use_cache=True)
            self.length = len(beginning)

    def __call__(self, tokens: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> None:
        """Run texts padded on the right, whole or behind the beginning that they share."""
        tokens, whole = tokens.to(self.device), mask.long().to(self.device)
        if self.begun is None:
            self.inner(input_ids=tokens, attention_mask=whole, use_cache=False)
            return
        cache = copy.deepcopy(self.begun)
        cache.batch_repeat_interleave(len(tokens))
        self.inner(
            input_ids=tokens[:, self.length :],
            attention_mask=whole,
            past_key_values=cache,
            use_cache=True,
        )
