"""Cosine similarity between the outputs of a trained adapter's experts.

For every token and every two experts of a projection, the cosine of what the two would add to the
projection's output; 0 for unrelated experts, 1 for experts that do the same. The contrastive loss
is there to lower it.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.forward.batch import in_batches
from interp.forward.out_of_memory import halving
from interp.models.modes import evaluating
from interp.moelora.data.encoding import AnswerCollator, EncodedExample
from interp.moelora.layer import ExpertWeights, MoELoRALinear, adapted_layers
from interp.moved import old_names

__getattr__ = old_names(__name__)


@torch.no_grad()
def expert_similarity(
    model: Any, examples: Sequence[EncodedExample], *, pad: int = 0, batch: int = 32
) -> dict[str, float]:
    """By projection, the mean cosine between different experts over all tokens; empty for LoRA."""
    layers = adapted_layers(model)
    if not layers:
        return {}
    device = next(model.parameters()).device

    def run_chunk(chunk: list[int]) -> dict[str, float]:
        inputs = AnswerCollator(pad)([examples[index] for index in chunk])
        mask = inputs["attention_mask"].bool().to(device)
        sums: dict[str, float] = defaultdict(float)

        def add(layer: MoELoRALinear, args: tuple[Any, ...]) -> None:
            for adapter in layer.adapters_in_use:
                sums[layer.name] += _summed_cosine(layer.weights(adapter), args[0][mask].float())

        with ExitStack() as stack:
            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(add).remove)
            model(input_ids=inputs["input_ids"].to(device), attention_mask=mask.long())
        return sums

    total = dict.fromkeys((layer.name for layer in layers), 0.0)
    chunks = in_batches(range(len(examples)), batch)
    with evaluating(model):
        for _, sums in halving(chunks, run_chunk, what="one example"):
            for name, value in sums.items():
                total[name] += value
    n_tokens = sum(len(example.tokens) for example in examples)
    return {name: value / max(n_tokens, 1) for name, value in total.items()}


def _summed_cosine(weights: ExpertWeights, x: Float[Tensor, "token d_in"]) -> float:
    """The mean cosine between different experts, summed over tokens."""
    cosine = weights.cosines(weights.hidden(x))
    count = len(weights.router)
    different = ~torch.eye(count, dtype=torch.bool, device=cosine.device)
    return float((cosine * different).sum() / max(count * (count - 1), 1))
