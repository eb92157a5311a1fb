"""Measures of how experts are used, as functions of counts.

``counts[..., a, e]`` is how often an expert e was chosen for a token of kind a (a task, a token id,
a class, a position); a token that goes to k experts counts k times, once in each *slot*. Leading
axes are independent tables. All information is in nats.

Domain and vocabulary specialization and co-activation are those of OLMoE (arXiv 2409.02060), with
k the adapter's ``top_k``.
"""

import itertools

import numpy as np
from jaxtyping import Num

from interp.lazy import special

Array = np.ndarray
Value = Num[Array, "..."] | np.number
"""One number for each table."""


def load_share(counts: Num[Array, "... expert"]) -> Num[Array, "... expert"]:
    """Load of each expert: ``f_e = n_e / Σ n``, its share of the routed slots."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)


def load_cv(load: Num[Array, "... expert"]) -> Value:
    """Coefficient of variation of the load: ``std_e(f) / mean_e(f)``; 0 when it is even."""
    return load.std(axis=-1) / load.mean(axis=-1)


def normalised_entropy(share: Num[Array, "... expert"]) -> Value:
    """``−Σ_e p_e log p_e / log E``; 1 when even, 0 when one expert has all, 0 for one expert."""
    experts = share.shape[-1]
    return special.entr(share).sum(axis=-1) / (np.log(experts) if experts > 1 else 1.0)


def mean_entropy(total: float, tokens: float, *, experts: int) -> float:
    """Mean entropy of the router's softmax over tokens, as a share of log E; ``total`` in nats."""
    return total / tokens / (np.log(experts) if experts > 1 else 1.0)


def dead_experts(load: Num[Array, "... expert"], *, below: float = 0.01) -> Value:
    """How many experts have a load under ``below / E``: less than that share of an even load."""
    return (load < below / load.shape[-1]).sum(axis=-1).astype(float)


def mutual_information(counts: Num[Array, "... kind expert"]) -> Value:
    """``Σ_ae p(a,e) log( p(a,e) / (p(a) p(e)) )`` in nats, over routed slots (the plug-in value).

    At most the entropy of the kinds and of the load. It is biased upwards by about
    ``(A − 1)(E − 1) / 2N``; compare with a null, or see `miller_madow`.
    """
    total = counts.sum(axis=(-2, -1), keepdims=True)
    joint = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    kinds, experts = joint.sum(axis=-1), joint.sum(axis=-2)
    entr = special.entr
    value = entr(kinds).sum(-1) + entr(experts).sum(-1) - entr(joint).sum(axis=(-2, -1))
    return np.maximum(value, 0.0)


def miller_madow(counts: Num[Array, "... kind expert"]) -> Value:
    """Mutual information less its first-order bias ``(K_ae − K_a − K_e + 1) / 2N``.

    K are the numbers of cells, kinds and experts that occur, N the slots. As the slots of one text
    are not independent, the true bias is larger; a null over whole texts shows it.
    """
    occupied = (counts > 0).sum(axis=(-2, -1)) + 1.0
    occupied -= (counts.sum(axis=-1) > 0).sum(-1) + (counts.sum(axis=-2) > 0).sum(-1)
    return mutual_information(counts) - occupied / (2 * np.maximum(counts.sum(axis=(-2, -1)), 1))


def domain_specialization(
    counts: Num[Array, "... expert"], *, top_k: int
) -> Num[Array, "... expert"]:
    """OLMoE: ``N_{E,D} / N_D``, the share of a task's tokens of which E is one of the k experts.

    An even router has ``k / E`` everywhere; a task's values sum to k.
    """
    return top_k * load_share(counts)


def domain_spread(counts: Num[Array, "... task expert"]) -> Value:
    """How far tasks are from each other: ``½ Σ_e |f_te − f̄_e|``, the mean over tasks.

    f̄ is the mean load over tasks, each weighing the same; 0 when all tasks are routed alike.
    """
    share = load_share(counts)
    return 0.5 * np.abs(share - share.mean(axis=-2, keepdims=True)).sum(-1).mean(-1)


def vocabulary_specialization(counts: Num[Array, "... id expert"]) -> Value:
    """OLMoE: ``N_{x,E} / N_x`` is the share of a token id's slots that E got.

    Here the largest one of each id, averaged over ids weighted by their occurrences:
    ``Σ_x max_E N_{x,E} / Σ_x N_x``. ``1 / k`` if every id always goes to the same k experts, 1 / E
    at the least.
    """
    return counts.max(axis=-1).sum(axis=-1) / np.maximum(counts.sum(axis=(-2, -1)), 1)


def co_activation(pairs: Num[Array, "... expert expert"]) -> Num[Array, "... expert expert"]:
    """OLMoE: ``N_{i,j} / N_i``, of the tokens of expert i the share that j also got.

    `pairs` counts tokens with both experts, on its diagonal tokens with the one. NaN for an expert
    without tokens.
    """
    tokens = np.diagonal(pairs, axis1=-2, axis2=-1)[..., :, None]
    return np.divide(pairs, tokens, out=np.full(pairs.shape, np.nan), where=tokens > 0)


def strongest_pair(pairs: Num[Array, "... expert expert"]) -> Value:
    """The largest co-activation of two different experts in both directions.

    ``max_{i≠j} N_ij / max(N_i, N_j)``: 1 when two experts always come together, 0 with top-1.
    """
    tokens = np.diagonal(pairs, axis1=-2, axis2=-1)
    larger = np.maximum(tokens[..., :, None], tokens[..., None, :])
    share = np.divide(pairs, larger, out=np.zeros(pairs.shape), where=larger > 0)
    return np.where(np.eye(pairs.shape[-1], dtype=bool), 0.0, share).max(axis=(-2, -1))


def top_experts(load: Num[Array, "... expert"], k: int) -> Array:
    """Whether an expert is among the k with the largest load; of equals the first. Bool."""
    order = np.argsort(-load, axis=-1, kind="stable")[..., :k]
    chosen = np.zeros(load.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=-1)
    return chosen


def task_jaccard(counts: Num[Array, "... task expert"], *, top_k: int) -> Value:
    """Overlap of two tasks' k most used experts, ``|A ∩ B| / |A ∪ B|``, the mean over pairs."""
    chosen = top_experts(counts, top_k)
    several = [
        (chosen[..., a, :] & chosen[..., b, :]).sum(-1)
        / (chosen[..., a, :] | chosen[..., b, :]).sum(-1)
        for a, b in itertools.combinations(range(counts.shape[-2]), 2)
    ]
    if not several:
        return np.full(counts.shape[:-2], np.nan)
    return np.mean(several, axis=0)
