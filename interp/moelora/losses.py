"""The auxiliary losses of MoELoRA (arXiv 2402.12851), each a pure function and smaller when better.

* Load balance: ``N · Σ_i f_i · p_i``, with f_i the share of routed (token, slot) pairs that went to
  expert i and p_i the mean router probability; 1 when both are even, N when one expert gets all.
* Contrastive (InfoNCE): each output of an expert is drawn to the same expert's outputs for other
  tokens and pushed from other experts' outputs. With q the anchor, k+ the same expert's and k- the
  others' outputs, all of unit length, it is ``log Σ_{k+,k-} exp(q·k/τ) - log Σ_{k+} exp(q·k+/τ)``,
  the mean over the anchors that have a k+.
* Router z: the mean squared log-sum-exp of the router's logits, which keeps them small.

An expert's output is ``B_i A_i x``. The products of two outputs need only the small matrix BᵀB
(``B_i A_i x · B_j A_j y = (A_i x)ᵀ (B_iᵀ B_j) (A_j y)``), so the outputs are never made. While B is
near zero their directions mean nothing and the gradient of the cosine grows without bound; outputs
whose root mean square is below ``start`` are left out of the loss.
"""

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Stands for minus infinity in a log-sum-exp, where that would make gradients undefined.
_EXCLUDED = -1e9
# From this temperature on, two cosines differ by a factor that float32 can hold.
_NO_UNDERFLOW = 0.03


def load_balance_loss(
    probabilities: Float[Tensor, "*projection token expert"],
    chosen: Int[Tensor, "*projection token slot"],
    real: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, " *projection"]:
    """The load-balance loss over the tokens that are `real` (None: all); the f_i have no gradient.

    `probabilities` is the softmax over the experts, `chosen` the experts each token was routed to.
    """
    share = expert_share(chosen, probabilities.shape[-1], real)
    mean = _mean_over_tokens(probabilities, real)
    return probabilities.shape[-1] * (share * mean).sum(dim=-1)


def expert_share(
    chosen: Int[Tensor, "*projection token slot"],
    experts: int,
    real: Bool[Tensor, " token"] | None = None,
) -> Float[Tensor, "*projection expert"]:
    """The share of routed (token, slot) pairs that each expert got; the shares sum to one."""
    routed = torch.zeros(*chosen.shape[:-1], experts, device=chosen.device)
    routed.scatter_(-1, chosen, 1.0 / chosen.shape[-1])
    return _mean_over_tokens(routed, real)


def router_z_loss(
    logits: Float[Tensor, "*projection token expert"], real: Bool[Tensor, " token"] | None = None
) -> Float[Tensor, " *projection"]:
    """The mean over real tokens of ``logsumexp(logits)²``."""
    return _mean_over_tokens(logits.logsumexp(dim=-1, keepdim=True).square(), real)[..., 0]


def pairwise_cosines(
    products: Float[Tensor, "*projection one other"],
) -> Float[Tensor, "*projection one other"]:
    """The cosines between vectors from their dot products; 0 where a vector is zero."""
    squared = products.diagonal(dim1=-2, dim2=-1)
    length = squared.clamp_min(torch.finfo(products.dtype).tiny).sqrt()
    there = (squared[..., :, None] > 0) & (squared[..., None, :] > 0)
    return torch.where(there, products / (length[..., :, None] * length[..., None, :]), 0.0)


def contrastive_loss(
    products: Float[Tensor, "*projection pair pair"],
    expert: Int[Tensor, "*projection pair"],
    *,
    temperature: float,
    least: float | Float[Tensor, " *projection"] = 0.0,
) -> Float[Tensor, " *projection"]:
    """The contrastive loss over (token, expert) pairs; 0 where no anchor has a positive.

    Args:
        products: the dot products of the experts' outputs; squared lengths on the diagonal.
        expert: whose output each pair is.
        least: outputs shorter than this take no part.
    """
    squared = products.diagonal(dim1=-2, dim2=-1)
    tiny = torch.finfo(products.dtype).tiny
    if isinstance(least, Tensor):
        present = squared >= least[..., None].square().clamp_min(tiny)
    else:
        present = squared >= max(least**2, tiny)
    length = squared.clamp_min(tiny).sqrt()  # of those that take no part nothing is read
    similarity = products / (length[..., :, None] * (temperature * length)[..., None, :])
    others = ~torch.eye(products.shape[-1], dtype=torch.bool, device=products.device)
    key = present[..., None, :] & others
    positive = key & (expert[..., :, None] == expert[..., None, :])
    anchor = present & positive.any(dim=-1)
    per_anchor = torch.where(anchor, _log_ratio(similarity, key, positive, temperature), 0.0)
    return per_anchor.sum(dim=-1) / anchor.sum(dim=-1).clamp_min(1)


def _log_ratio(
    similarity: Tensor, key: Tensor, positive: Tensor, temperature: float
) -> Float[Tensor, "*projection anchor"]:
    """``log Σ_key exp(similarity) - log Σ_positive exp(similarity)``."""
    if temperature < _NO_UNDERFLOW:
        everything = similarity.masked_fill(~key, _EXCLUDED).logsumexp(dim=-1)
        return everything - similarity.masked_fill(~positive, _EXCLUDED).logsumexp(dim=-1)
    # The largest similarity is known: 1 / temperature.
    weights = (similarity - 1 / temperature).exp()
    tiny = torch.finfo(weights.dtype).tiny  # for anchors without a positive, of which none is read
    sums = [(weights * some).sum(dim=-1).clamp_min(tiny).log() for some in (key, positive)]
    return sums[0] - sums[1]


def output_products(
    hidden: Float[Tensor, "*projection token expert_rank"],
    chosen: Int[Tensor, "*projection token slot"],
    gram: Float[Tensor, "*projection expert_rank expert_rank"],
    *,
    r: int,
) -> Float[Tensor, "*projection pair pair"]:
    """Dot products between the outputs of all (token, chosen expert) pairs, slots fastest.

    Args:
        hidden: A x, all experts' ranks side by side.
        gram: BᵀB.
        r: rank of each expert.
    """
    experts = hidden.shape[-1] // r
    is_chosen = chosen[..., None] == torch.arange(experts, device=chosen.device)
    by_expert = rearrange(hidden, "... token (expert r) -> ... token 1 expert r", r=r)
    pairs = (is_chosen[..., None] * by_expert).flatten(-2).flatten(-3, -2)
    return pairs @ gram @ pairs.mT


def _mean_over_tokens(
    values: Float[Tensor, "*projection token value"], real: Bool[Tensor, " token"] | None
) -> Float[Tensor, "*projection value"]:
    if real is None:
        return reduce(values, "... token value -> ... value", "mean")
    weights = real.to(values.dtype)
    total = einsum(values, weights, "... token value, token -> ... value")
    return total / weights.sum().clamp_min(1)
