"""The configuration of a MoELoRA adapter, as PEFT stores it in ``adapter_config.json``.

MoELoRA (arXiv 2402.12851) puts N low-rank experts and a router beside a frozen projection, and
adds a load-balance loss and a contrastive loss between the experts' outputs. What the paper does
not state is our choice: the renormalised gates, the weights of the losses, the temperature, how
many tokens the contrastive loss samples and when it starts.

The names follow PEFT's ``LoraConfig`` where the meaning is the same.
"""

import math
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig, TaskType
from peft.utils import PeftType

from interp.errors import UserError
from interp.moelora.peft_type import MOELORA


@dataclass
class MoELoRAConfig(PeftConfig):
    """Settings of a MoELoRA adapter; ``get_peft_model(model, MoELoRAConfig(...))`` adds it.

    The output of an adapted projection is ``W x + scaling · Σ_i gate_i(x) · B_i A_i x`` with
    ``scaling = lora_alpha / r`` (``lora_alpha / √r`` with rsLoRA). A field out of range raises
    UserError.

    Attributes:
        r: rank of each expert.
        num_experts: experts per projection, or a list with one count per layer of the model.
        top_k: experts that each token is routed to.
        lora_alpha: numerator of the scaling.
        use_rslora: divide by the root of `r` instead of `r`.
        lora_dropout: dropout on the experts' input in training; the router sees all of it.
        target_modules: names of the projections (their endings), a regex for the whole name, or
            "all-linear"; by default the query and value projections of a known architecture.
        exclude_modules: projections that stay as they are, by name or regex.
        layers_to_transform: adapt only these layers; not with a regex.
        layers_pattern: name of the module list that holds the layers.
        modules_to_save: other modules to train whole and to save.
        renormalize: the gates of the chosen experts sum to one; else they are the raw softmax.
        router_noise: standard deviation of what is added to the router's logits in training.
        load_balance_weight: weight of the load-balance loss, which is a mean over projections. The
            usual 0.01 belongs to a sum over layers; a mean of that weight lets experts die.
        contrastive_weight: weight of the contrastive loss, also a mean over projections.
        contrastive_temperature: its temperature.
        contrastive_tokens: how many tokens of a batch it samples.
        contrastive_start: root mean square that an expert's output must have to be contrasted;
            without it the direction of an output that is nearly zero would be pushed about.
        router_z_weight: weight of the squared log-sum-exp of the router's logits.
        bias: "none", as biases are not trained.
        base: the base model; recorded when the adapter is made, compared when it is loaded.
    """

    r: int = 4
    num_experts: int | list[int] | tuple[int, ...] = 8
    top_k: int = 2
    lora_alpha: int | float = 8
    use_rslora: bool = False
    lora_dropout: float = 0.0
    target_modules: list[str] | set[str] | tuple[str, ...] | str | None = None
    exclude_modules: list[str] | set[str] | tuple[str, ...] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    renormalize: bool = True
    router_noise: float = 0.0
    load_balance_weight: float = 1.0
    contrastive_weight: float = 0.1
    contrastive_temperature: float = 0.1
    contrastive_tokens: int = 64
    contrastive_start: float = 1e-3
    router_z_weight: float = 0.0
    bias: str = "none"
    base: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Validate; sets and tuples of names become sorted lists, as they will be in JSON."""
        known = [one.value for one in TaskType]
        _require(
            self.task_type is None or self.task_type in known,
            f"task_type is one of {', '.join(known)}, not {self.task_type!r}",
        )
        super().__post_init__()
        self.peft_type = PeftType(MOELORA)
        if isinstance(self.target_modules, set | tuple):
            self.target_modules = sorted(self.target_modules)
        if isinstance(self.exclude_modules, set | tuple):
            self.exclude_modules = sorted(self.exclude_modules)
        if isinstance(self.num_experts, tuple):
            self.num_experts = list(self.num_experts)
        self._check_sizes()
        self._check_training()
        # A plain attribute, so that only a configuration read from a file is held to its base.
        self.made_for = self.base

    def _check_sizes(self) -> None:
        counts: list[Any] = [self.num_experts]
        if isinstance(self.num_experts, list):
            counts = list(self.num_experts)
        _require(_whole(self.r) and self.r >= 1, f"r is a whole number of at least 1, not {self.r}")
        _require(
            bool(counts) and all(_whole(count) and count >= 1 for count in counts),
            "num_experts is a whole number of at least 1, or a list of such numbers, one per "
            f"layer, not {self.num_experts}",
        )
        _require(
            _whole(self.top_k) and self.top_k >= 1,
            f"top_k is a whole number of at least 1, not {self.top_k}",
        )
        _require(
            self.top_k <= min(counts),
            f"top_k={self.top_k} is more than the {min(counts)} experts there are "
            f"(num_experts={self.num_experts}): choose at most {min(counts)}",
        )
        _require(
            _finite(self.lora_alpha) and self.lora_alpha > 0,
            f"lora_alpha is a positive number, not {self.lora_alpha}",
        )
        if isinstance(self.target_modules, str | list):
            _require(
                bool(self.target_modules), "target_modules is empty: name at least one projection"
            )
        _require(self.bias == "none", f"bias is 'none' in MoELoRA, not {self.bias!r}")
        _require(
            self.layers_to_transform is None or not isinstance(self.target_modules, str),
            "layers_to_transform goes with a list of target_modules; in a regex, name the layers",
        )

    def _check_training(self) -> None:
        _require(
            _finite(self.lora_dropout) and 0 <= self.lora_dropout < 1,
            f"lora_dropout is at least 0 and below 1, not {self.lora_dropout}",
        )
        names = ("router_noise", "load_balance_weight", "contrastive_weight", "router_z_weight")
        for name in (*names, "contrastive_start"):
            value = getattr(self, name)
            _require(_finite(value) and value >= 0, f"{name} is zero or more, not {value}")
        _require(
            _finite(self.contrastive_temperature) and self.contrastive_temperature > 0,
            f"contrastive_temperature is a positive number, not {self.contrastive_temperature}",
        )
        _require(
            _whole(self.contrastive_tokens) and self.contrastive_tokens >= 2,
            f"contrastive_tokens is a whole number of at least 2, not {self.contrastive_tokens}",
        )

    @property
    def scaling(self) -> float:
        """What the gated sum of the experts' outputs is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def experts_in(self, layer: int | None, module: str) -> int:
        """How many experts the projection `module` of that layer has.

        Raises UserError if the counts are per layer and the layer is not known or not among them.
        """
        if isinstance(self.num_experts, int):
            return self.num_experts
        if layer is None:
            raise UserError(
                f"num_experts is a list, one count per layer, but {module!r} is in no numbered "
                "layer: give one number, or exclude that module"
            )
        if layer >= len(self.num_experts):
            raise UserError(
                f"num_experts has {len(self.num_experts)} counts, one per layer, but {module!r} "
                f"is in layer {layer}: give one for every layer"
            )
        return self.num_experts[layer]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(fine: bool, otherwise: str) -> None:
    if not fine:
        raise UserError(otherwise)
