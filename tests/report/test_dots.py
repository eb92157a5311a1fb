from typing import Any

import pandas as pd
import pytest
import torch

from interp.errors import UserError
from interp.figures.dots import dot_figure
from interp.figures.experts import agreement_figure
from interp.figures.heatmap import chosen_heads
from interp.figures.probe_scores import detections_figure
from interp.heads import HeadEffects
from interp.heads.effects import effects_by_layer


def test_dots_stand_at_their_values_with_their_intervals() -> None:
    figure = dot_figure(
        ["<b>", "b"], [1.0, -2.0], low=[0.5, -3.0], high=[2.0, float("nan")], title="x (nats)"
    )
    dots: Any = figure.data[0]
    assert list(dots.x) == [1.0, -2.0]
    assert list(dots.error_x.array) == [1.0, 0.0]
    assert list(dots.error_x.arrayminus) == [0.5, 1.0]
    assert figure.layout.yaxis.ticktext[0] == "&lt;b&gt;"
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # the first on top


def effects_of(values: torch.Tensor) -> HeadEffects:
    n = len(values)
    return HeadEffects(
        values, values, tuple(f"s{i}" for i in range(n)), ("t",) * n, "output", "path", "masked"
    )


def test_effects_by_layer_are_sums_over_heads_with_intervals() -> None:
    values = torch.zeros(8, 2, 3)
    values[:, 0] = torch.tensor([1.0, 2.0, -0.5])
    values[:, 1, 0] = torch.arange(8.0)
    table = effects_by_layer(effects_of(values))
    assert table["effect"].tolist() == pytest.approx([2.5, 3.5])
    assert (table["ci_low"][0], table["ci_high"][0]) == pytest.approx((2.5, 2.5))
    assert table["ci_low"][1] < 3.5 < table["ci_high"][1]
    assert table["significant"].tolist() == [3, 1]


def test_the_figure_by_layer_has_these_sums() -> None:
    values = torch.zeros(8, 2, 3)
    values[:, 1, 2] = -1.0
    effects = effects_of(values)
    bars: Any = effects.plot(by="layer").data[0]
    assert list(bars.y) == pytest.approx([0.0, -1.0])
    assert len(bars.error_y.array) == 2
    with pytest.raises(UserError, match="known: head, layer"):
        effects.plot(by="prompt")


def test_chosen_heads_need_heads() -> None:
    cells: Any = chosen_heads([(3, 1)]).data[0]
    assert list(cells.x) == [1]
    with pytest.raises(UserError, match="no heads"):
        chosen_heads([])


def test_detections_are_counted_apart() -> None:
    figure: Any = detections_figure([0.9, 0.8], [0.1])
    twin, false = figure.data
    assert (list(twin.x), list(false.x)) == ([0.1], [0.9, 0.8])


def test_a_probability_of_one_is_in_the_last_bin() -> None:
    """Bins of 0.05 up to 1, without their upper end: one beyond would lie outside the axis."""
    figure: Any = detections_figure([1.0, 0.97], [0.0])
    assert figure.data[1].xbins.end == 1
    assert all(0.95 <= value < 1 for value in figure.data[1].x)
    assert list(figure.data[0].x) == [0.0]


def test_agreement_separates_experts_that_affect_their_task() -> None:
    columns = ["layer", "target", "expert", "routed_task", "load", "load_elsewhere"]
    columns += ["affected_task", "effect", "effect_elsewhere", "q_value", "significant", "agree"]
    table = pd.DataFrame(
        [
            (0, "q_proj", 1, "<a>", 0.5, 0.2, "<a>", 0.4, 0.1, 0.01, True, True),
            (1, "q_proj", 0, "b", 0.3, 0.2, "<a>", 0.1, 0.1, 0.5, False, False),
        ],
        columns=columns,
    )
    figure: Any = agreement_figure(table)
    same, other = figure.data
    assert list(same.x) == pytest.approx([0.3])
    assert list(same.y) == pytest.approx([0.3])
    assert same.customdata[0][3] == "&lt;a&gt;"
    assert list(other.y) == [0.0]
