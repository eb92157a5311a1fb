"""Figures of patching results: the right kind for the axes, with the numbers that are in them."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.patching.result import PatchEffects


def result_of(
    values: torch.Tensor, *axes: str, labels: dict[str, tuple[str, ...]] | None = None
) -> PatchEffects:
    return PatchEffects(
        values,
        ("prompt", *axes),
        torch.zeros(len(values)),
        "z",
        "exact",
        "logits <b>",
        labels=labels or {},
    )


def plotted(result: PatchEffects) -> Any:
    return result.plot()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_heads_with_statistics_get_the_head_heat_map() -> None:
    values = noise(8, 3, 4)
    figure = plotted(result_of(values, "layer", "head"))
    z = figure.data[0].z
    assert z[1][2] == pytest.approx(values.mean(0)[1, 2].item(), abs=1e-6)
    assert figure.layout.xaxis.title.text == "head"
    groups = plotted(result_of(values, "layer", "kv_head"))
    assert groups.layout.xaxis.title.text == "key/value head"


def test_few_prompts_or_positions_get_a_plain_heat_map() -> None:
    for axes in (("layer", "head"), ("layer", "position")):
        values = noise(2, 3, 4)
        figure = plotted(result_of(values, *axes))
        assert figure.data[0].z[1][2] == pytest.approx(values.mean(0)[1, 2].item(), abs=1e-6)
        assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax


def test_what_was_not_measured_stays_empty() -> None:
    values = noise(2, 3, 4)
    values[:, 0, 1] = torch.nan
    assert plotted(result_of(values, "layer", "position")).data[0].z[0][1] is None


def test_each_span_has_a_panel_on_one_scale() -> None:
    values = noise(2, 3, 4, 2)
    labels = {"span": ("<io>", "s2")}
    figure = plotted(result_of(values, "layer", "head", "span", labels=labels))
    assert len(figure.data) == 2
    assert figure.data[1].z[2][3] == pytest.approx(values.mean(0)[2, 3, 1].item(), abs=1e-6)
    assert {one.coloraxis for one in figure.data} == {"coloraxis"}
    assert figure.layout.annotations[0].text == "&lt;io&gt;"
    assert "&lt;b&gt;" in figure.layout.coloraxis.colorbar.title.text


def test_spans_that_are_left_out_are_told() -> None:
    for spans in (8, 10):
        figure = plotted(result_of(noise(2, 3, 4, spans), "layer", "head", "span"))
        assert len(figure.data) == 8
        left_out = figure.layout.title.text.endswith(": the first 8 of 10 spans")
        assert left_out == (spans == 10)


@pytest.mark.parametrize("axis", ["layer", "head"])
def test_layers_and_heads_with_names(axis: str) -> None:
    """Eleven names, which as text are in another order than the units."""
    values = noise(8, 11, 11)
    names = tuple(str(number) for number in range(5, 16))
    figure = plotted(result_of(values, "layer", "head", labels={axis: names}))
    heat = figure.data[0]
    assert list(heat.y if axis == "layer" else heat.x) == list(names)
    assert list(heat.x if axis == "layer" else heat.y) == list(range(11))
    assert heat.z[10][2] == pytest.approx(values.mean(0)[10, 2].item(), abs=1e-6)
    given = figure.layout.yaxis if axis == "layer" else figure.layout.xaxis
    assert given.type == "category"
    assert list(given.categoryarray) == list(names)


def test_heads_of_spans_have_a_plain_heat_map() -> None:
    values = noise(8, 2, 4)
    labels = {"span": ("subject", "object")}
    figure = plotted(result_of(values, "span", "head", labels=labels))
    assert list(figure.data[0].y) == ["subject", "object"]
    assert figure.data[0].z[1][2] == pytest.approx(values.mean(0)[1, 2].item(), abs=1e-6)


def test_positions_show_the_strongest_head() -> None:
    values = torch.zeros(2, 1, 3, 2)
    values[:, 0, 1, 0] = -5
    values[:, 0, 2, 0] = 3
    values[:, :, :, 1] = torch.nan
    figure = plotted(result_of(values, "layer", "head", "position"))
    assert [list(row) for row in figure.data[0].z] == [[-5, None]]


def test_one_axis_is_a_line_with_intervals() -> None:
    result = result_of(noise(8, 5), "layer")
    line = plotted(result).data[0]
    table = result.to_dataframe().sort_values("layer")
    assert list(line.y) == pytest.approx(table["effect"].tolist())
    assert list(line.error_y.array) == pytest.approx((table["ci_high"] - table["effect"]).tolist())
    assert plotted(result_of(noise(2, 5), "layer")).data[0].error_y.array is None


def test_axes_without_a_figure_are_told() -> None:
    with pytest.raises(UserError, match="no figure for the axes layer, span, position"):
        result_of(noise(2, 2, 2, 2), "layer", "span", "position").plot()
