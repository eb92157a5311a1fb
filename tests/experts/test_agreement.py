"""Routing beside ablation: agreement by hand."""

import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch

from interp.errors import UserError
from interp.experts.effects.agreement import routing_agreement
from interp.experts.effects.effects import ExpertEffects
from interp.interventions import Projection
from interp.patching.result import PatchEffects


def loads(share: Callable[[int, str], float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "layer": 0,
                "target": target,
                "expert": expert,
                "task": task,
                "load": share(expert, task),
            }
            for target in ("q_proj", "v_proj")
            for expert in range(4)
            for task in "ab"
        ]
    )


def by_hand() -> ExpertEffects:
    """Expert 0 is for a, 1 for b, 2 for a, and 3 for nothing, in every projection."""
    generator = torch.Generator().manual_seed(0)
    values = torch.zeros(16, 2, 4)
    noise = 0.01 * torch.randn(16, 2, 4, generator=generator)
    values[:8, :, 0], values[8:, :, 1], values[:8, :, 2] = 1.0, 0.5, 0.25
    values = torch.where(values > 0, values + noise, values)
    result = PatchEffects(
        values=values,
        axes=("prompt", "projection", "expert"),
        corrupted=torch.zeros(16),
        component="expert gate",
        method="exact",
        metric="loss",
        source="off",
        templates=("a",) * 8 + ("b",) * 8,
        labels={"projection": ("blocks.0.attn.q", "blocks.0.attn.v")},
    )
    projections = tuple(
        Projection(f"blocks.0.attn.{one}", f"model.layers.0.self_attn.{one}_proj", 4)
        for one in "qv"
    )
    return ExpertEffects(result, projections=projections)


def test_agreement_by_hand() -> None:
    """Routing says 0 and 1 rightly, 2 wrongly; 3 has no effect and does not count."""
    routed = {0: "a", 1: "b", 2: "b", 3: "a"}
    effects = by_hand()
    load = loads(lambda expert, task: 0.4 if routed[expert] == task else 0.1)
    found = routing_agreement(effects, load)
    assert found.n == 6
    assert found.share == pytest.approx(4 / 6)
    # Routed: a, b, b; affected: a, b, a.
    assert found.chance == pytest.approx(1 / 3 * 2 / 3 + 2 / 3 * 1 / 3)
    assert 0 < found.p_value < 1
    assert found.spearman > 0
    table = found.table.set_index(["target", "expert"])
    assert table.loc[("q_proj", 0), ["routed_task", "affected_task"]].tolist() == ["a", "a"]
    assert table.loc[("v_proj", 2), ["routed_task", "affected_task"]].tolist() == ["b", "a"]
    assert not table.loc[("v_proj", 2), "agree"]
    assert table.loc[("q_proj", 1), "load_elsewhere"] == pytest.approx(0.1)
    assert not table.loc[("q_proj", 3), "significant"]
    # The hook points' names will do as well.
    other = load.replace({"target": {"q_proj": "attn.q", "v_proj": "attn.v"}})
    pd.testing.assert_frame_equal(routing_agreement(effects, other).table, found.table)
    assert "67% of them" in found._repr_html_()
    nothing = replace(found, n=0, share=math.nan, p_value=math.nan)._repr_html_()
    assert "No expert affects a task" in nothing
    assert "nan" not in nothing


def test_agreement_needs_two_tasks_and_the_columns() -> None:
    effects = by_hand()
    load = loads(lambda expert, task: 0.25)
    with pytest.raises(UserError, match="lacks load"):
        routing_agreement(effects, load.drop(columns="load"))
    with pytest.raises(UserError, match="share at least two tasks"):
        routing_agreement(effects, pd.DataFrame(load[load["task"] == "a"]))
    with pytest.raises(UserError, match="no expert is in both"):
        routing_agreement(effects, load.assign(layer=7))
    flat = routing_agreement(effects, load)
    assert math.isnan(flat.spearman)
