"""Three nulls: what routing would look like if it had nothing to do with the task.

* **texts**: the tasks' names are dealt out anew to whole units (texts, or all texts on a subject).
  It asks whether the routing of these texts differs between tasks by more than texts differ from
  each other. The tokens of one text are not independent, so this, and not a shuffle of tokens, is
  the test for a difference between tasks. An untrained router may well pass it: texts of different
  tasks hold different words, and any router reads words.
* **within_token**: the tasks' names are shuffled among the tokens of one token id. It asks whether
  routing depends on the task beyond which words occur in it. Exact given the counts; it takes the
  tokens of a text for independent, so small p-values are too small. Ids without a row of their
  own are left as they are.
* **untrained**: routers drawn anew read the same hidden states. It asks what training the router
  has added.

p-values are ``(1 + #{null ≥ observed}) / (1 + draws)``.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

from interp.experts.routing.records import RoutingRecords

Null = Literal["texts", "within_token", "untrained"]
Alternative = Literal["greater", "less", "two-sided"]

_BLOCK = 2**18
_DRAWS_AT_ONCE = 100


def permuted_texts(
    records: RoutingRecords, *, draws: int, seed: int = 0
) -> Int[np.ndarray, "draw projection task expert"]:
    """Counts by task after each new dealing of the tasks' names to whole units."""
    rng = np.random.default_rng(seed)
    tasks = np.array(records.unit_task)
    load = records.tables.unit_load.numpy().transpose(1, 0, 2)
    # Products of float64 are exact here and many times faster than those of whole numbers.
    flat = load.reshape(len(tasks), -1).astype(np.float64)
    names = np.eye(records.sizes.tasks)
    several = []
    for begin in range(0, draws, _DRAWS_AT_ONCE):
        now = min(_DRAWS_AT_ONCE, draws - begin)
        dealt = names[np.stack([rng.permutation(tasks) for _ in range(now)])]
        counts = np.einsum("dut,uc->dtc", dealt, flat, optimize=True)
        several.append(np.rint(counts).astype(np.int64))
    counts = np.concatenate(several).reshape(draws, records.sizes.tasks, *load.shape[1:])
    return counts.transpose(0, 2, 1, 3)


def permuted_within_token(
    records: RoutingRecords, *, draws: int, seed: int = 0
) -> Int[np.ndarray, "draw projection task expert"]:
    """Counts by task after each shuffle of the tasks' names within every token id.

    A shuffle of the labels is a draw of each id's table given its margins (multivariate
    hypergeometric), without any token having been kept: tokens of one id and one choice of experts
    are alike. All projections share a shuffle.
    """
    rng = np.random.default_rng(seed)
    sizes = records.sizes
    choices = records.tables.id_choice.numpy()
    counts = np.zeros((draws, sizes.projections, sizes.tasks * sizes.codes), dtype=np.int64)
    counts += choices[:, -1].reshape(sizes.projections, -1)
    for begin, end in _blocks(records):
        block = choices[:, begin:end]
        labels, ids = _expanded(block[0].sum(axis=-1))
        codes = np.stack([_expanded(table.sum(axis=1))[0] for table in block])
        for draw in range(draws):
            order = np.argsort(ids + rng.random(len(ids)))
            keys = labels[order] * sizes.codes + codes
            for number, key in enumerate(keys):
                counts[draw, number] += np.bincount(key, minlength=counts.shape[-1])
    by_code = counts.reshape(draws, sizes.projections, sizes.tasks, sizes.codes)
    return by_code @ sizes.experts_of_code


def p_value(
    observed: Num[np.ndarray, "..."] | float,
    null: Num[np.ndarray, "draw ..."],
    alternative: Alternative = "greater",
) -> Float[np.ndarray, "..."]:
    """The share of draws at least as extreme, the observation counted in; NaN without draws.

    Two-sided: twice the smaller of the two one-sided values, at most 1.
    """
    if not len(null):
        return np.full(np.shape(observed), np.nan)
    # Sums in another order differ in the last bits; equal values must count as equal.
    slack = 1e-9 * (1 + np.abs(observed))
    above = (1 + (null >= observed - slack).sum(axis=0)) / (1 + len(null))
    below = (1 + (null <= observed + slack).sum(axis=0)) / (1 + len(null))
    found = {
        "greater": above,
        "less": below,
        "two-sided": np.minimum(1.0, 2 * np.minimum(above, below)),
    }[alternative]
    return np.where(np.isnan(observed), np.nan, found)


def _blocks(records: RoutingRecords) -> Iterator[tuple[int, int]]:
    """Ranges of rows with their own ids, of a bounded number of tokens where one id allows it."""
    tokens = records.tables.id_tokens[:-1].sum(dim=-1).numpy()
    begin, size = 0, 0
    for row, count in enumerate(tokens):
        if size and size + count > _BLOCK:
            yield begin, row
            begin, size = row, 0
        size += int(count)
    if size:
        yield begin, len(tokens)


def _expanded(
    table: Int[np.ndarray, "id kind"],
) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]]:
    """The kinds that a table counts, one by one, id after id; and their ids."""
    rows, kinds = table.shape
    repeats = table.ravel()
    return (
        np.repeat(np.tile(np.arange(kinds), rows), repeats),
        np.repeat(np.repeat(np.arange(rows), kinds), repeats),
    )
