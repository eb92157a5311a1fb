"""Same seed, same machine: the same bytes. Threads, batches and shards change rounding only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.commands.locate import LocateSettings, locate_run
from interp.evaluation.preference import preference
from interp.heads.effects import HeadEffects
from interp.heads.headset import HeadSet
from interp.heads.locate import as_encoded, locate_heads
from interp.heads.random_sets import random_head_sets
from interp.interventions.head_constraint import Constraint
from interp.models import HookedModel
from interp.premises import Premises, load_premises
from interp.runs.resources import using_threads
from tests.runs.killing import write_premises

TOLERANCE = 1e-4
SMALL = 24 * 2**20
"""Bytes: a budget for a few rows of one or two prompts of the embedded model."""


def largest_difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    assert bool(one.isfinite().all())
    return float((one - other).abs().max())


def both(effects: HeadEffects) -> Tensor:
    """Both measures of a search."""
    return torch.stack([effects.values, effects.probability])


@pytest.mark.parametrize("method", ["attribution", "activation", "path"])
@pytest.mark.parametrize("site", ["output", "attention"])
def test_threads_and_batches_change_a_search_by_rounding_alone(
    method: Any, site: Any, planted: HookedModel, planted_premises: Premises
) -> None:
    encoded = as_encoded(planted, planted_premises).take(range(0, 64, 8))

    def run(threads: int, budget: int | None = None) -> Tensor:
        with using_threads(threads):
            return both(
                locate_heads(
                    planted,
                    encoded,
                    method=method,
                    site=site,
                    budget=budget,
                    progress=False,
                )
            )

    first = run(1)
    assert torch.equal(first, run(1))
    assert torch.equal(run(2), run(2))
    for other in (run(2), run(1, 2**19)):
        assert largest_difference(first, other) < TOLERANCE
    assert float(first[0].abs().max()) > 0.5  # and there is something to change


def test_shards_change_a_run_by_rounding_alone(planted: HookedModel, tmp_path: Path) -> None:
    premises = str(write_premises(tmp_path))
    found = []
    for shard in (1, 5, 16):
        settings = LocateSettings(premises=premises, method="activation", shard=shard)
        effects = locate_run(planted, settings, tmp_path / str(shard), progress=False)
        found.append(torch.stack([both(one) for one in effects.values()]))
    for other in found[1:]:
        assert largest_difference(found[0], other) < TOLERANCE


def test_the_same_seed_draws_the_same_random_sets() -> None:
    chosen = HeadSet(((0, 1), (1, 2)))
    first, again, other = (
        random_head_sets(chosen, n_layers=3, n_heads=4, n_sets=20, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_the_embedded_model_gives_the_same_values(smollm: HookedModel) -> None:
    """Its logits are about 20, so that 1e-4 is a few units of float32's last place, summed."""
    premises = load_premises("capitals", limit=4)
    encoded = as_encoded(smollm, premises).take([0, 9])
    sets = (HeadSet(()), HeadSet(((10, 3),)), HeadSet(((20, 1), (25, 8))))
    found = []
    for threads, budget in ((1, None), (1, None), (2, SMALL)):
        with using_threads(threads):
            searched = locate_heads(smollm, encoded, budget=budget and 4 * budget, progress=False)
            swept = preference(
                smollm,
                encoded,
                "false",
                constraint=Constraint(sets[1]),
                sets=sets,
                budget=budget,
                progress=False,
            )
        found.append((both(searched), torch.from_numpy(swept.logit_difference)))
    (effects, preferred), again, otherwise = found
    assert torch.equal(effects, again[0])
    assert torch.equal(preferred, again[1])
    assert largest_difference(effects, otherwise[0]) < TOLERANCE
    assert largest_difference(preferred, otherwise[1]) < TOLERANCE
