"""The measures that are taken of every projection, each a number of its counts.

A measure sees `Counts`: the tables of one projection, with or without a fold of the texts, or those
of one untrained router. What a router was not counted by (a random one by token id) is None, and
the measure NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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


def counts_of(records: RoutingRecords, number: int, *, without: int | None = None) -> Counts:
    """The counts of a projection's own router, perhaps without one fold of the texts."""
    tables, sizes = records.tables, records.sizes
    experts = records.projections[number].experts
    keep = np.arange(sizes.folds) != (-1 if without is None else without)
    units = np.array([keep[fold] for fold in records.unit_fold])
    task = np.zeros((sizes.tasks, experts))
    load = tables.unit_load[number, :, :experts].numpy()
    np.add.at(task, np.array(records.unit_task)[units], load[units])
    ids = tables.id_load[number, :, :, :experts].numpy()
    return Counts(
        task=task,
        token_class=tables.class_load[number, :, :, :experts].numpy()[:, keep].sum(1, dtype=float),
        position=tables.position_load[number, :, :, :experts].numpy()[:, keep].sum(1, dtype=float),
        token_id=ids[:, keep].sum(axis=1, dtype=float),
        pairs=tables.pairs[number, :, :experts, :experts].numpy()[keep].sum(axis=0, dtype=float),
        repeats=float(tables.repeats[number].numpy()[:, keep].sum()),
        follows=float(tables.cell_follows.numpy()[:, keep].sum()),
        tokens=float(tables.cell_tokens.numpy()[:, keep].sum()),
        probability=tables.probability[number, :, :, :experts].numpy()[:, keep].sum(axis=(0, 1)),
        entropy=float(tables.entropy[number].numpy()[:, keep].sum()),
        top_k=sizes.top_k,
    )


def random_counts(records: RoutingRecords, number: int) -> list[Counts]:
    """The counts of each untrained router that read what this projection reads."""
    tables, experts = records.tables, records.projections[number].experts
    follows = float(tables.cell_follows.sum())
    return [
        Counts(
            task=tables.random_load[number, router, :, :experts].numpy().astype(float),
            token_class=tables.random_class[number, router, :, :experts].numpy().astype(float),
            position=tables.random_position[number, router, :, :experts].numpy().astype(float),
            token_id=(
                tables.random_id[number, router, :, :experts].numpy().astype(float)
                if router < tables.random_id.shape[1]
                else None
            ),
            pairs=tables.random_pairs[number, router, :experts, :experts].numpy().astype(float),
            repeats=float(tables.random_repeats[number, router]),
            follows=follows,
            tokens=float(tables.cell_tokens.sum()),
            probability=tables.random_probability[number, router, :experts].numpy(),
            entropy=float(tables.random_entropy[number, router]),
            top_k=records.sizes.top_k,
        )
        for router in range(records.sizes.routers)
    ]


@dataclass(frozen=True)
class Measure:
    """How a measure is taken, what of it is evidence, its range, and its unit for a figure."""

    of: Callable[[Counts], float]
    alternative: Alternative
    unit: str
    least: float = 0.0
    most: float = np.inf


def _load(counts: Counts) -> Array:
    return measures.load_share(counts.task.sum(axis=0))


def _of_ids(measure: Callable[[Array], measures.Value]) -> Callable[[Counts], float]:
    return lambda counts: np.nan if counts.token_id is None else float(measure(counts.token_id))


def _entropy_of_tokens(counts: Counts) -> float:
    return measures.mean_entropy(counts.entropy, counts.tokens, len(counts.probability))


TASK_MEASURES: dict[str, Callable[[Array, int], measures.Value]] = {
    "task_information": lambda counts, top_k: measures.mutual_information(counts),
    "domain_spread": lambda counts, top_k: measures.domain_spread(counts),
    "task_jaccard": lambda counts, top_k: measures.task_jaccard(counts, top_k=top_k),
}
"""Measures of counts [… task expert] alone, and so with a null over the tasks' names."""


def _of_tasks(name: str) -> Callable[[Counts], float]:
    return lambda counts: float(TASK_MEASURES[name](counts.task, counts.top_k))


MEASURES: dict[str, Measure] = {
    "task_information": Measure(_of_tasks("task_information"), "greater", "nats"),
    "domain_spread": Measure(_of_tasks("domain_spread"), "greater", "share", most=1.0),
    "task_jaccard": Measure(_of_tasks("task_jaccard"), "less", "overlap", most=1.0),
    "token_information": Measure(_of_ids(measures.miller_madow), "greater", "nats", least=-np.inf),
    "class_information": Measure(
        lambda counts: float(measures.mutual_information(counts.token_class)), "greater", "nats"
    ),
    "position_information": Measure(
        lambda counts: float(measures.mutual_information(counts.position)), "greater", "nats"
    ),
    "vocabulary_specialization": Measure(
        _of_ids(measures.vocabulary_specialization), "greater", "share", most=1.0
    ),
    "load_cv": Measure(lambda counts: float(measures.load_cv(_load(counts))), "two-sided", ""),
    "dead_experts": Measure(
        lambda counts: float(measures.dead_experts(_load(counts))), "two-sided", "experts"
    ),
    "load_entropy": Measure(
        lambda counts: float(measures.normalised_entropy(_load(counts))),
        "two-sided",
        "share of log E",
        most=1.0,
    ),
    "router_entropy": Measure(_entropy_of_tokens, "two-sided", "share of log E", most=1.0),
    "mean_router_entropy": Measure(
        lambda counts: float(measures.normalised_entropy(counts.probability / counts.tokens)),
        "two-sided",
        "share of log E",
        most=1.0,
    ),
    "repeat_rate": Measure(
        lambda counts: counts.repeats / max(counts.follows, 1.0), "two-sided", "share", most=1.0
    ),
    "strongest_pair": Measure(
        lambda counts: float(measures.strongest_pair(counts.pairs)), "two-sided", "share", most=1.0
    ),
}
"""Every measure by its name; the formulas stand in `interp.experts.routing.measures`.

``router_entropy`` is the mean over tokens of the entropy of the router's softmax, as a share of
log E; ``mean_router_entropy`` that of the mean softmax; ``load_entropy`` that of the load.
``repeat_rate`` is the share of tokens whose most probable expert is that of the token before.
``token_information`` is corrected by Miller and Madow, the other information is the plug-in value.
"""
