"""Figures of experts: what they draw, from records whose values are known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.errors import UserError
from interp.experts.routing.measure_list import MEASURES
from interp.experts.routing.similarity import COLUMNS, OutputSimilarity
from interp.experts.routing.specialization import Specialization
from interp.figures.routing import load_figure, measure_figure, similarity_figure
from interp.report.experts_page import expert_rows, sentences, summary_table
from tests.experts.test_nulls import records, tokens

__all__ = ["records", "tokens"]


def drawn_in(figure: Any) -> Any:
    return figure.data


def spec() -> Specialization:
    rows = [
        {
            "measure": measure,
            "layer": layer,
            "target": target,
            "value": 0.1 * layer,
            "ci_low": 0.0,
            "ci_high": 0.5,
            "null": null,
            "null_mean": 0.01,
            "null_p95": 0.02,
            "draws": 9,
            "p_value": 0.1,
            "q_value": 0.04 if layer else 0.2,
        }
        for measure in MEASURES
        for layer in (0, 1)
        for target in ("q<b>", "v")
        for null in ("texts", "untrained")
    ]
    experts = pd.DataFrame(
        {
            "layer": [0, 0, 1],
            "target": "q",
            "expert": [0, 1, 0],
            "task": ["<i>", "b", "b"],
            "specialization": [0.5, 0.1, 0.2],
            "ci_low": 0.0,
            "ci_high": 1.0,
            "difference": [0.1, -0.3, 0.2],
            "q_value": [0.01, 0.02, 0.5],
        }
    )
    return Specialization(pd.DataFrame(rows), experts)


def test_load_figure_is_white_at_an_even_share(records: Any) -> None:
    figure = load_figure(records.to_dataframe(), records.tasks)
    maps: Any = [one for one in drawn_in(figure) if one.type == "heatmap"]
    assert len(maps) == 3
    table = records.to_dataframe()
    for drawn, task in zip(maps, ("all", "a", "b"), strict=True):
        expected = 3 * table.loc[table["task"] == task, "load"].to_numpy()
        np.testing.assert_allclose(np.array(drawn.z, dtype=float)[0], expected)
    axis = figure.to_plotly_json()["layout"]["coloraxis"]
    middle = next(at for at, colour in axis["colorscale"] if colour == "#fbfaf8")
    assert middle * axis["cmax"] == pytest.approx(1)
    with pytest.raises(UserError, match="name one kind of projection with target=: q"):
        load_figure(records.to_dataframe(), records.tasks, target="k")
    with pytest.raises(UserError, match="unknown figure 'x'; known: load, entropy"):
        records.plot("x")
    drawn = drawn_in(records.plot("entropy"))
    assert [one.name for one in drawn] == ["q, per token", "q, of the load"]
    assert all(0 < one.y[0] <= 1 for one in drawn)


def test_measure_figure_draws_values_intervals_and_nulls() -> None:
    drawn = drawn_in(measure_figure(spec().table, "task_information"))
    assert len(drawn) == 2 * 3
    first = drawn[0]
    assert list(first.y) == pytest.approx([0.0, 0.1])
    assert list(first.error_y.array) == pytest.approx([0.5, 0.4])
    assert first.name == "q&lt;b&gt;"
    assert list(drawn[1].y) == [0.01, 0.01]
    with pytest.raises(UserError, match="unknown measure 'size'; known: task_information"):
        measure_figure(spec().table, "size")


def test_similarity_figure_leaves_gaps_where_nothing_varies() -> None:
    rows = [(0, "q", 0, 1, 0.2, np.nan, np.nan), (1, "q", 0, 1, 0.4, 0.6, 0.1)]
    similarity = OutputSimilarity(9, pd.DataFrame(rows, columns=list(COLUMNS)))
    figure = similarity_figure(similarity.by_projection())
    by_name = {one.name: list(one.y) for one in drawn_in(figure)}
    assert by_name["q, cosine"] == pytest.approx([0.2, 0.4])
    assert by_name["q, CKA"] == [None, 0.6]


def test_tables_and_sentences() -> None:
    found = spec()
    rows = expert_rows(found.experts, fdr=0.05)
    assert rows["expert"].tolist() == ["layer 0 q, expert 1", "layer 0 q, expert 0"]
    assert rows["against all"].tolist() == ["-0.300", "+0.100"]
    measures: dict[str, Any] = {}
    for row in found.summary().to_dict("records"):
        measures.setdefault(row.pop("measure"), {})[row.pop("null")] = row
    content = {
        "measures": measures,
        "projections": 4,
        "task_entropy": 0.69,
        "dead_experts": 2,
        "experts": {"experts": 12, "tested": 3, "significant": 2},
        "effects": None,
    }
    table = summary_table(content)
    assert len(table) == len(MEASURES)
    assert table["untrained routers"].tolist()[0] == "0.01; 2 of 4"
    assert table["tasks shuffled within token ids"].tolist()[0] == "–"
    said = " ".join(sentences(content))
    assert "0.0500 nats about the task" in said
    assert "significant in 2 of 4 projections" in said
    assert "2 of 12 experts are dead" in said
