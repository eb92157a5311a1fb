"""How alike the experts of a trained adapter are: the cosine between their outputs.

For every token and every two experts of a projection, the cosine of what the two would add to the
projection's output; 0 for unrelated experts, 1 for experts that do the same. The contrastive loss
is there to lower it.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.forward.batch import in_batches
from interp.forward.out_of_memory import halving
from interp.models.call import evaluating
from interp.moelora.data.encoding import AnswerCollator, EncodedExample
from interp.moelora.layer import MoELoRALinear
from interp.moelora.losses import pairwise_cosines


def pairwise_cosine(
    hidden: Float[Tensor, "token expert r"], up: Float[Tensor, "d_out expert r"]
) -> Float[Tensor, "token expert expert"]:
    """The cosines between the experts' outputs of each token; 0 where an output is zero.

    `hidden` is A x of each expert, `up` its B. The outputs are never made, their products need BᵀB.
    """
    gram = einsum(up, up, "d_out one r, d_out other s -> one r other s")
    products = einsum(
        hidden, gram, hidden, "token one r, one r other s, token other s -> token one other"
    )
    return pairwise_cosines(products)


@torch.no_grad()
def expert_similarity(
    model: Any, examples: Sequence[EncodedExample], *, pad: int = 0, batch: int = 32
) -> dict[str, float]:
    """By projection, the mean cosine between different experts over all tokens; empty for LoRA."""
    layers = [one for one in model.modules() if isinstance(one, MoELoRALinear)]
    sums = dict.fromkeys((layer.name for layer in layers), 0.0)
    found: defaultdict[str, float] = defaultdict(float)
    n_tokens = 0
    mask: list[Bool[Tensor, "example pos"]] = []

    def add(layer: MoELoRALinear, args: tuple[Any, ...]) -> None:
        # Padding is no token.
        real = args[0][mask[0]].float()
        for adapter in layer.active_adapters:
            if adapter in layer.experts:
                found[layer.name] += float(_sum_over_tokens(layer, adapter, real))

    device = next(model.parameters()).device
    with evaluating(model), ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(add)
            stack.callback(handle.remove)

        def run_chunk(chunk: list[int]) -> dict[str, float]:
            found.clear()
            inputs = AnswerCollator(pad)([examples[index] for index in chunk])
            mask[:] = [inputs["attention_mask"].bool().to(device)]
            model(
                input_ids=inputs["input_ids"].to(device),
                attention_mask=inputs["attention_mask"].to(device),
            )
            return dict(found)

        chunks = in_batches(range(len(examples) if layers else 0), batch)
        for _, of_chunk in halving(chunks, run_chunk, what="one example"):
            n_tokens += int(mask[0].sum())
            for name, total in of_chunk.items():
                sums[name] += total
    return {name: total / max(n_tokens, 1) for name, total in sums.items()}


def _sum_over_tokens(
    layer: MoELoRALinear, adapter: str, x: Float[Tensor, "token d_in"]
) -> Float[Tensor, ""]:
    """The mean cosine between different experts, summed over tokens."""
    count, r = layer.experts[adapter].count, layer.experts[adapter].config.r
    down, up = layer.moelora_A[adapter].float(), layer.moelora_B[adapter].float()
    cosine = pairwise_cosine(
        rearrange(x @ down.T, "token (expert r) -> token expert r", r=r),
        rearrange(up, "d_out (expert r) -> d_out expert r", r=r),
    )
    different = ~torch.eye(count, dtype=torch.bool, device=cosine.device)
    return (cosine * different).sum() / max(count * (count - 1), 1)
