"""The three adapters that are compared, made equal in trainable parameters.

* ``moelora``: experts with a router, load balance and contrastive loss (arXiv 2402.12851);
* ``moe``: the same without the contrastive loss;
* ``lora``: plain LoRA by PEFT.

Eight experts of rank 4 with a router have 32 (in + out) + 8 in parameters; LoRA of rank 36 has
36 (in + out), the same where in = out. The equal rank differs by module (38 for 576 → 192) and is
computed for each. Both kinds scale their output by alpha / rank.
"""

from collections import Counter
from typing import Any, Literal, get_args

from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from interp.arguments import check_choice
from interp.errors import UserError
from interp.models.quiet import quiet_libraries
from interp.moelora.config import MoELoRAConfig
from interp.moelora.layer import sizes_of

Method = Literal["lora", "moe", "moelora"]

METHOD_NAMES: dict[str, str] = {
    "lora": "LoRA",
    "moe": "LoRA + MoE, no contrastive loss",
    "moelora": "MoELoRA",
}


def check_method(method: str) -> None:
    """Raise `UserError` unless `method` is a `Method`."""
    check_choice("method", method, get_args(Method))


def adapt(model: nn.Module, method: Method, config: MoELoRAConfig) -> Any:
    """Put the adapter of a method on a model: experts as `config` says, or LoRA of the same size.

    Raises `UserError` when no module matches ``config.target_modules``.
    """
    check_method(method)
    made: PeftConfig = config
    if method == "lora":
        made = equal_lora(model, config)
    elif method == "moe":
        # Without what PEFT adds to a configuration.
        added = ("peft_type", "peft_version")
        known = {name: value for name, value in config.to_dict().items() if name not in added}
        made = MoELoRAConfig(**{**known, "contrastive_weight": 0.0})
    with quiet_libraries():
        return get_peft_model(model, made)  # type: ignore[arg-type]


def equal_lora(model: nn.Module, config: MoELoRAConfig) -> LoraConfig:
    """LoRA on the same modules, with the rank of each that comes closest in parameters."""
    ranks = equal_ranks(model, config)
    usual = Counter(ranks.values()).most_common(1)[0][0]
    other = {name: rank for name, rank in ranks.items() if rank != usual}
    return LoraConfig(
        r=usual,
        lora_alpha=_alpha(config, usual),
        lora_dropout=config.lora_dropout,
        target_modules=list(ranks),
        rank_pattern=other,
        alpha_pattern={name: _alpha(config, rank) for name, rank in other.items()},
        task_type="CAUSAL_LM",
        bias="none",
    )


def equal_ranks(model: nn.Module, config: MoELoRAConfig) -> dict[str, int]:
    """By module, the rank at which LoRA has as many parameters as the experts and their router."""
    experts = config.num_experts
    if not isinstance(experts, int):
        raise UserError("an equal LoRA needs the same num_experts in every layer")
    ranks = {}
    for name, module in model.named_modules():
        if targets(config, name):
            d_in, d_out = sizes_of(module)
            parameters = experts * (config.r * (d_in + d_out) + d_in)
            ranks[name] = max(1, round(parameters / (d_in + d_out)))
    if not ranks:
        raise UserError(f"no module of the model matches target_modules={config.target_modules}")
    return ranks


def targets(config: MoELoRAConfig, name: str) -> bool:
    """Whether the module of this name is adapted, when `target_modules` is a list of endings."""
    wanted = config.target_modules
    if not isinstance(wanted, list):
        raise UserError("target_modules must be a list of names, such as q_proj and v_proj")
    return any(name == ending or name.endswith(f".{ending}") for ending in wanted)


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _alpha(config: MoELoRAConfig, rank: int) -> Any:
    alpha = config.scaling * rank
    return int(alpha) if alpha == int(alpha) else alpha
