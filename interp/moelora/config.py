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

from interp.arguments import check_choice
from interp.errors import UserError

MOELORA = "MOELORA"


def add_peft_type(name: str = MOELORA) -> PeftType:
    """The member of ``PeftType`` with that name, added if it is not there yet.

    PEFT reads the method of an adapter from ``adapter_config.json`` as a member of ``PeftType``,
    and offers no way to add one. The member is made in the way `enum` makes members itself; nothing
    of PEFT is replaced.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    # The order matters: a class attribute can be set only while its name is not a member's.
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member


add_peft_type()


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
        if self.task_type is not None:
            check_choice("task_type", self.task_type, [known.value for known in TaskType])
        super().__post_init__()
        self.peft_type = PeftType(MOELORA)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(names := getattr(self, name), set | tuple):
                setattr(self, name, sorted(names))
        if isinstance(self.num_experts, tuple):
            self.num_experts = list(self.num_experts)
        self._check_numbers()
        if isinstance(self.target_modules, str | list) and not self.target_modules:
            raise UserError("target_modules is empty: name at least one projection")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise UserError(
                "layers_to_transform goes with a list of target_modules; in a regex, name the "
                "layers"
            )
        if self.bias != "none":
            raise UserError(f"bias is 'none' in MoELoRA, not {self.bias!r}")
        # Only a configuration that was read from a file is compared with its base.
        self.made_for = self.base

    def _check_numbers(self) -> None:
        counts: Any = self.num_experts
        if not isinstance(counts, list):
            counts = [counts]
        if not counts or not all(_is_whole(count, 1) for count in counts):
            raise UserError(
                "num_experts is a whole number of at least 1, or a list of such numbers, one per "
                f"layer, not {self.num_experts}"
            )
        for name, least in (("r", 1), ("top_k", 1), ("contrastive_tokens", 2)):
            if not _is_whole(value := getattr(self, name), least):
                raise UserError(f"{name} is a whole number of at least {least}, not {value}")
        if self.top_k > min(counts):
            raise UserError(
                f"top_k={self.top_k} is more than the {min(counts)} experts there are "
                f"(num_experts={self.num_experts}): choose at most {min(counts)}"
            )
        for name in ("lora_alpha", "contrastive_temperature"):
            if not _is_finite(value := getattr(self, name)) or value <= 0:
                raise UserError(f"{name} is a positive number, not {value}")
        names = ("router_noise", "load_balance_weight", "contrastive_weight", "router_z_weight")
        for name in (*names, "contrastive_start"):
            if not _is_finite(value := getattr(self, name)) or value < 0:
                raise UserError(f"{name} is zero or more, not {value}")
        if not _is_finite(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout is at least 0 and below 1, not {self.lora_dropout}")

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


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
