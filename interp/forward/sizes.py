"""Memory of runs, in bytes: a row of a forward pass, what is kept of a prompt, a graph.

Estimates from the model's sizes, meant to be above the truth and below twice the truth (see
``tests/patching/test_sizes.py``, which measures). Numbers per token and layer:

* **row**: the widest layer's activations, MLP inner values three times (four on the hooked model),
  the residual stream's size ten times; besides, per row, the keys and values that attention sees,
  one layer's attention pattern, and the logits.
* **kept**: every layer's input and what else is recorded, twice while it is put together, and keys
  and values of all positions.
* **graph**: what the backward pass needs of every layer at once.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from interp.forward.hook_points import axis_of
from interp.models.hooked_model import HookedModel
from interp.models.versions import wraps_transformers
from interp.modules import named_modules
from interp.precision import result_dtype

FLOAT32 = 4
"""Bytes: metrics are of float32 logits, whatever the model's dtype."""
_ACTIVE_EXPERTS = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k"),
    *("moe_topk", "moe_k", "top_k_experts"),
)
_ALL_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class ModelSizes:
    """The sizes that memory follows.

    Attributes:
        d_model: the residual stream, or all heads together where they are wider.
        inner: an MLP's inner values for one token, those of the experts that it runs included.
        routed: how many experts a token goes to; 0 without experts.
        gated: whether an MLP multiplies two halves: its graph then holds less.
        kv: all key heads together.
        last_only: whether logits can be computed at the last position only.
        eager: whether patterns are held in every run, because no fused kernel computes them.
        itemsize: bytes of a number.
    """

    n_layers: int
    d_model: int
    inner: int
    routed: int
    gated: bool
    n_heads: int
    kv: int
    d_vocab: int
    last_only: bool
    eager: bool
    itemsize: int

    def row(self, n_run: int, width: int, *, eager: bool = False, logits: bool = True) -> int:
        """One row in a forward pass without a graph, of which ``n_run`` of ``width`` positions run.

        Args:
            eager: the pattern is looked at, or the hooked model runs.
            logits: of the whole vocabulary.
        """
        eager = eager or self.eager
        numbers = n_run * ((4 if eager else 3) * self.inner + (10 + 2 * self.routed) * self.d_model)
        numbers += 2 * width * self.kv + (4 if eager else 1) * self._pattern(n_run, width)
        return numbers * self.itemsize + (self._logits(n_run, 1) if logits else 0)

    def kept(self, n_run: int, width: int, *components: str) -> int:
        """What is recorded of one prompt: every layer's input, some components, keys and values."""
        each = sum(self._component(name, n_run, width) for name in components)
        numbers = 2 * width * self.kv + 2 * (n_run * self.d_model + each)
        # The whole model and its plain modules are compared, and a metric is taken of the logits.
        return self.n_layers * numbers * self.itemsize + self._logits(n_run, 5)

    def edit(self, component: str, n_run: int, width: int) -> int:
        """What an edit of one prompt holds: a value of the component in every layer."""
        return self.n_layers * self._component(component, n_run, width) * self.itemsize

    def graph(self, n_run: int, width: int, *, watched: str = "z") -> int:
        """One prompt's run and the graph of all layers, and its gradients at one component."""
        of_mlp = (4 if self.gated else 7) * self.inner + 4 * self.routed * self.d_model
        numbers = n_run * (11 * self.d_model + of_mlp) + 6 * width * self.kv
        patterns = 4 if self.eager or watched == "pattern" else 1
        numbers += patterns * self._pattern(n_run, width)
        numbers += 2 * self._component(watched, n_run, width)
        return self.n_layers * numbers * self.itemsize + self._logits(n_run, 6)

    def pattern_changes(self, n_run: int, width: int) -> int:
        """One prompt's attention patterns in all layers, half as many again while they are made."""
        return self.n_layers * 3 * self._pattern(n_run, width) * self.itemsize // 2

    def _pattern(self, n_run: int, width: int) -> int:
        return self.n_heads * n_run * width

    def _logits(self, n_run: int, times: int) -> int:
        return times * (1 if self.last_only else n_run) * self.d_vocab * FLOAT32

    def _component(self, name: str, n_run: int, width: int) -> int:
        if name == "pattern":
            return self._pattern(n_run, width)
        widths = {"kv_head": self.kv, "neuron": self.inner}
        return n_run * widths.get(str(axis_of(name)), self.d_model)


def sizes_of(model: HookedModel) -> ModelSizes:
    """The sizes of a hooked model."""
    cfg = model.cfg
    n_heads, d_head = cfg.n_heads or 1, cfg.d_head or 0
    n_kv_heads = getattr(cfg, "n_key_value_heads", None) or n_heads
    dense, of_expert = _widest(model)
    routed = _active_experts(model) if of_expert else 0
    return ModelSizes(
        n_layers=cfg.n_layers,
        d_model=max(cfg.d_model, n_heads * d_head),
        inner=max(dense + routed * of_expert, getattr(cfg, "d_mlp", None) or 0),
        routed=routed,
        gated=bool(getattr(cfg, "gated_mlp", False)) or bool(of_expert),
        n_heads=n_heads,
        kv=n_kv_heads * d_head,
        d_vocab=cfg.d_vocab,
        last_only="logits_to_keep" in inspect.signature(model.original_model.forward).parameters,
        eager=not wraps_transformers(model),
        itemsize=result_dtype(model).itemsize,  # activations are float32 at least
    )


def _widest(model: HookedModel) -> tuple[int, int]:
    """The widest side of any weight in the blocks: of those outside experts, of an expert's."""
    dense = of_expert = 0
    for block in model.blocks:
        for name, module in named_modules(block):
            width = max((side for side in _sides(name, module)), default=0)
            if "experts" in name.split("."):
                of_expert = max(of_expert, width)
            else:
                dense = max(dense, width)
    return dense, of_expert


def _sides(name: str, module: nn.Module) -> Iterator[int]:
    """The sides of a module's own matrices; of two halves that are multiplied, one."""
    attributes = module.__dict__
    # Quantized weights are packed: their modules say how wide they are, their shapes do not.
    if "out_features" in attributes:
        yield attributes["in_features"]
        yield attributes["out_features"] // _halves(name)
        return
    for of_weight, weight in attributes.get("_parameters", {}).items():
        if weight is not None and weight.ndim > 1:
            yield max(weight.shape[-2:]) // _halves(of_weight)


def _halves(name: str) -> int:
    return 2 if "gate_up" in name else 1


def _active_experts(model: HookedModel) -> int:
    """How many experts a token goes to; all of them where no config says."""
    whole = getattr(model.original_model, "config", None)
    configs = [whole, getattr(whole, "text_config", None), model.cfg]
    for names in (_ACTIVE_EXPERTS, _ALL_EXPERTS):
        for config in configs:
            for name in names:
                value = getattr(config, name, None)
                if isinstance(value, int) and value > 0:
                    return value
    return 1
