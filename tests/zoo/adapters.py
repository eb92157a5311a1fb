"""A MoELoRA adapter on the architecture: trained a few steps with PEFT, then hooked."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import peft
import torch
from torch import Tensor, nn

import interp.moelora
from interp.moelora import MoELoRAConfig
from interp.patching import patch
from tests.zoo.effects import Pair
from tests.zoo.outcome import CLOSE
from tests.zoo.reference import Reference
from tests.zoo.specimen import CLEAN, CORRUPTED, PROMPTS, RIGHT, WRONG, Specimen, batch, metric
from tests.zoo.words import make_tokenizer

STEPS = 6


def targets(one: Specimen) -> list[str]:
    """Queries and values, or the one projection they come from; where there is no head, the first.

    Named by the last part of their path.
    """
    parts, model = one.reference.anatomy, one.reference.model
    wanted = []
    for layer in range(one.reference.n_layers):
        if layer not in parts.with_heads:
            continue
        for what in ("q", "v"):
            try:
                wanted.append(parts.projection(what, layer)[0])
            except LookupError:
                continue
    if not wanted:
        linear = [m for m in parts.layers[0].modules() if isinstance(m, nn.Linear)]
        wanted = linear[:1]
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if any(module is one for one in wanted)
    }
    return sorted(names)


def adapted_model(one: Specimen) -> Any:
    """A PEFT model whose experts have learned something."""
    torch.manual_seed(0)
    config = MoELoRAConfig(r=2, num_experts=3, top_k=2, lora_alpha=4, target_modules=targets(one))
    adapted: Any = peft.get_peft_model(one.species.make(), config)  # type: ignore[arg-type]
    learned = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.01)
    tokens = torch.tensor([CLEAN, CORRUPTED])

    def loss() -> Tensor:
        logits = adapted(input_ids=tokens, use_cache=False).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    with torch.enable_grad():
        before = float(loss().detach())
        adapted.train()
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        adapted.eval()
        after = float(loss().detach())
    assert after < before, f"training took the loss from {before:.3f} to {after:.3f}"
    return adapted


def adapter_checks(one: Specimen) -> Iterator[Any]:
    """The hooked model's logits are the adapted one's; so are its effects of heads."""

    @cache
    def adapted() -> Any:
        return adapted_model(one)

    @cache
    def hooked() -> Any:
        return interp.moelora.hooked(adapted(), make_tokenizer())

    tokens = torch.tensor([PROMPTS[2]])

    @torch.no_grad()
    def logits() -> Tensor:
        found = adapted()(input_ids=tokens, use_cache=False).logits[0, -1]
        moved = found - one.reference.logits(PROMPTS[2])
        assert float(moved.abs().max()) > 1e-3, "the adapter changes nothing"
        return found

    @torch.no_grad()
    def hooked_logits() -> Tensor:
        return hooked()(tokens)[0, -1]

    yield "logits", logits, hooked_logits, CLOSE
    if not one.layers or not one.reference.has("z", one.layers[0]):
        return

    def effects() -> Tensor:
        reference = Reference(adapted().get_base_model(), one.species.attention)
        return Pair(reference, CLEAN, CORRUPTED, RIGHT, WRONG).exact("z")

    def hooked_effects() -> Tensor:
        return patch(hooked(), batch(CLEAN), batch(CORRUPTED), metric(), progress=False).values[0]

    yield "z", effects, hooked_effects, CLOSE
