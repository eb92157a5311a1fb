"""MoELoRA (arXiv 2402.12851) as a PEFT method: experts and a router beside frozen projections.

Importing this package registers the method with PEFT::

    adapted = peft.get_peft_model(hf_model, MoELoRAConfig(r=4, num_experts=8, top_k=2))
    output = adapted(**batch)
    (output.loss + auxiliary_losses(adapted).total).backward()
    adapted.save_pretrained(folder)
    model = hooked(adapted, tokenizer)     # TransformerLens, with the experts' hook points
"""

from interp.moelora.auxiliary import AuxiliaryLosses, ExpertLoad, auxiliary_losses, expert_load
from interp.moelora.config import MoELoRAConfig
from interp.moelora.hooked import hooked
from interp.moelora.layer import ExpertHooks, MoELoRALinear
from interp.moelora.load import load_adapter
from interp.moelora.method import MoELoRAModel

__all__ = [
    "AuxiliaryLosses",
    "ExpertHooks",
    "ExpertLoad",
    "MoELoRAConfig",
    "MoELoRALinear",
    "MoELoRAModel",
    "auxiliary_losses",
    "expert_load",
    "hooked",
    "load_adapter",
]
