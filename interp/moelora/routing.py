"""Top-k routing: the experts that a token is routed to, and their gates.

The router is linear and without bias; its softmax gives the router probabilities. The ``top_k``
experts with the highest logits are kept. Their gates are the probabilities, divided by their sum if
``renormalize`` (which is the softmax over the kept logits alone); all other gates are zero.
"""

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor


def choose_experts(
    logits: Float[Tensor, "*token expert"], top_k: int
) -> Int[Tensor, "*token slot"]:
    """The `top_k` experts of each token; exactly that many, whatever ties there are."""
    return logits.detach().topk(top_k, dim=-1, sorted=False).indices


def gates_of_logits(
    logits: Float[Tensor, "*token expert"], chosen: Int[Tensor, "*token slot"], *, renormalize: bool
) -> Float[Tensor, "*token expert"]:
    """Gates, zero outside `chosen`; they sum to one if `renormalize`."""
    if renormalize:
        kept = logits.gather(-1, chosen).softmax(dim=-1)
    else:
        kept = logits.softmax(dim=-1).gather(-1, chosen)
    return torch.zeros_like(logits).scatter(-1, chosen, kept)


def gates_of_probabilities(
    probabilities: Float[Tensor, "*token expert"], top_k: int, *, renormalize: bool
) -> Float[Tensor, "*token expert"]:
    """Gates from router probabilities, which a hook may have changed."""
    chosen = choose_experts(probabilities, top_k)
    kept = probabilities.gather(-1, chosen)
    if renormalize:
        kept = kept / kept.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
    return torch.zeros_like(probabilities).scatter(-1, chosen, kept)


def per_rank(gates: Float[Tensor, "*token expert"], r: int) -> Float[Tensor, "*token expert_rank"]:
    """Each expert's gate, once for each of its `r` directions."""
    return repeat(gates, "... expert -> ... (expert r)", r=r)
