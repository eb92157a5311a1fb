"""The measures of a projection's routing, each a function of its counts.

A measure sees `Counts`: the tables of one projection, with or without a fold of the texts, or those
of one untrained router. What a router was not counted by (a random one by token id) is None, and
the measure NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from interp.errors import UserError
from interp.experts.routing import measures
from interp.experts.routing.nulls import Alternative
from interp.experts.routing.records import RoutingRecords

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Counts:
    """The counts of one router on some texts, in float64.

    Attributes:
        task: [task expert], and likewise by class, position and token id (or None).
        pairs: [expert expert], tokens that had both.
        repeats: tokens with the same most probable expert as the one before.
        follows: tokens with one before.
        tokens: all tokens.
        probability: [expert], sums of the router's softmax.
        entropy: sum of the entropy of the router's softmax, nats.
        top_k: experts a token.
    """

    task: Array
    token_class: Array
    position: Array
    token_id: Array | None
    pairs: Array
    repeats: float
    follows: float
    tokens: float
    probability: Array
    entropy: float
    top_k: int


def counts_and_folds(records: RoutingRecords, number: int) -> list[Counts]:
    """The counts of a projection's own router: on all texts, then without each fold of them.

    Folds that no text fell into are left out. Raises UserError where there is one fold only.
    """
    folds = sorted(set(records.unit_fold))
    if len(folds) < 2:
        raise UserError("all texts fell into one fold: give more texts to each task")
    return [_counts_without(records, number, fold) for fold in (None, *folds)]


def _counts_without(records: RoutingRecords, number: int, fold: int | None) -> Counts:
    tables, sizes = records.tables, records.sizes
    experts = records.projections[number].n_experts
    keep = np.arange(sizes.folds) != (-1 if fold is None else fold)

    def by_kind(table: Tensor) -> Array:
        return table[number, :, :, :experts].numpy()[:, keep].sum(axis=1, dtype=float)

    def total(table: Tensor) -> float:
        return float(table.numpy()[:, keep].sum())

    return Counts(
        task=records.task_counts(number, without=fold).astype(float),
        token_class=by_kind(tables.class_load),
        position=by_kind(tables.position_load),
        token_id=by_kind(tables.id_load),
        pairs=tables.pairs[number, :, :experts, :experts].numpy()[keep].sum(axis=0, dtype=float),
        repeats=total(tables.repeats[number]),
        follows=total(tables.cell_follows),
        tokens=total(tables.cell_tokens),
        probability=tables.probability[number, :, :, :experts].numpy()[:, keep].sum(axis=(0, 1)),
        entropy=total(tables.entropy[number]),
        top_k=sizes.top_k,
    )


def random_counts(records: RoutingRecords, number: int) -> list[Counts]:
    """The counts of each untrained router that read what this projection reads."""
    tables, experts = records.tables, records.projections[number].n_experts

    def by_kind(table: Tensor, router: int) -> Array:
        return table[number, router, :, :experts].numpy().astype(float)

    return [
        Counts(
            task=by_kind(tables.random_load, router),
            token_class=by_kind(tables.random_class, router),
            position=by_kind(tables.random_position, router),
            token_id=(
                by_kind(tables.random_id, router) if router < tables.random_id.shape[1] else None
            ),
            pairs=by_kind(tables.random_pairs, router)[:experts],
            repeats=float(tables.random_repeats[number, router]),
            follows=float(tables.cell_follows.sum()),
            tokens=float(tables.cell_tokens.sum()),
            probability=tables.random_probability[number, router, :experts].numpy(),
            entropy=float(tables.random_entropy[number, router]),
            top_k=records.sizes.top_k,
        )
        for router in range(records.sizes.routers)
    ]


@dataclass(frozen=True)
class Measure:
    """A measure: its function, the alternative of its tests, its unit and its range."""

    of: Callable[[Counts], float]
    alternative: Alternative
    unit: str
    least: float = 0.0
    most: float = np.inf


Formula = Callable[[Array], measures.Value]


def _of_ids(formula: Formula) -> Callable[[Counts], float]:
    return lambda counts: np.nan if counts.token_id is None else float(formula(counts.token_id))


def _of_load(formula: Formula) -> Callable[[Counts], float]:
    return lambda counts: float(formula(measures.load_share(counts.task.sum(axis=0))))


TASK_MEASURES: dict[str, Callable[[Array, int], measures.Value]] = {
    "task_information": lambda counts, top_k: measures.mutual_information(counts),
    "domain_spread": lambda counts, top_k: measures.domain_spread(counts),
    "task_jaccard": lambda counts, top_k: measures.task_jaccard(counts, top_k=top_k),
}
"""Measures of counts [… task expert] alone, and so with a null over the tasks' names."""


def _of_tasks(name: str) -> Callable[[Counts], float]:
    return lambda counts: float(TASK_MEASURES[name](counts.task, counts.top_k))


def _entropy_of_tokens(counts: Counts) -> float:
    return measures.mean_entropy(counts.entropy, counts.tokens, experts=len(counts.probability))


def _entropy_of_mean(counts: Counts) -> float:
    return float(measures.normalised_entropy(counts.probability / counts.tokens))


def _information(kind: str) -> Callable[[Counts], float]:
    return lambda counts: float(measures.mutual_information(getattr(counts, kind)))


def _strongest_pair(counts: Counts) -> float:
    return float(measures.strongest_pair(counts.pairs))


def _repeat_rate(counts: Counts) -> float:
    return counts.repeats / max(counts.follows, 1.0)


_BOTH: Alternative = "two-sided"
_OF_LOG = "share of log E"
MEASURES: dict[str, Measure] = {
    "task_information": Measure(_of_tasks("task_information"), "greater", "nats"),
    "domain_spread": Measure(_of_tasks("domain_spread"), "greater", "share", most=1.0),
    "task_jaccard": Measure(_of_tasks("task_jaccard"), "less", "overlap", most=1.0),
    "token_information": Measure(_of_ids(measures.miller_madow), "greater", "nats", least=-np.inf),
    "class_information": Measure(_information("token_class"), "greater", "nats"),
    "position_information": Measure(_information("position"), "greater", "nats"),
    "vocabulary_specialization": Measure(
        _of_ids(measures.vocabulary_specialization), "greater", "share", most=1.0
    ),
    "load_cv": Measure(_of_load(measures.load_cv), _BOTH, ""),
    "dead_experts": Measure(_of_load(measures.dead_experts), _BOTH, "experts"),
    "load_entropy": Measure(_of_load(measures.normalised_entropy), _BOTH, _OF_LOG, most=1.0),
    "router_entropy": Measure(_entropy_of_tokens, _BOTH, _OF_LOG, most=1.0),
    "mean_router_entropy": Measure(_entropy_of_mean, _BOTH, _OF_LOG, most=1.0),
    "repeat_rate": Measure(_repeat_rate, _BOTH, "share", most=1.0),
    "strongest_pair": Measure(_strongest_pair, _BOTH, "share", most=1.0),
}
"""Every measure by its name; the formulas stand in `interp.experts.routing.measures`.

``router_entropy`` is the mean over tokens of the entropy of the router's softmax, as a share of
log E; ``mean_router_entropy`` that of the mean softmax; ``load_entropy`` that of the load.
``repeat_rate`` is the share of tokens whose most probable expert is that of the token before.
``token_information`` is corrected by Miller and Madow, the other information is the plug-in value.
"""
