"""What a notebook shows of results: words, a small table, the figure; nothing read as markup."""

import json
from typing import Any

import IPython.display
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.evaluation import PremiseDetections
from interp.heads import HeadEffects, HeadSet
from interp.interventions import Constraint, ExpertConstraint, Intervention
from interp.patching.result import PatchEffects
from interp.patching.screen import Screening
from interp.patching.stability import stability
from interp.premises import Premises
from interp.premises.knowledge import FactKnowledge, Knowledge
from probes.control_report import ControlReport, Score
from probes.detector.detections import Detection
from probes.detector.score import score_detections

TAG = "<script>alert(1)</script>"
BREAKOUT = "</script><img src=x onerror=alert(1)>"
PLOTLY = "application/vnd.plotly.v1+json"


class Result(Displayed):
    def __init__(self, figure: Any = None) -> None:
        self.figure = figure

    def _shown(self) -> Shown:
        table = pd.DataFrame({TAG: [BREAKOUT] * 20, "number": [1 / 3] * 20})
        return Shown(f"words {TAG}", (table,), self.figure)


class TooSmall(Displayed):
    def _shown(self) -> Shown:
        raise UserError("too few subjects <b>")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What results show in IPython, output by output."""
    outputs: list[dict[str, Any]] = []

    def display(bundle: dict[str, Any], *, raw: bool) -> None:
        assert raw
        outputs.append(bundle)

    monkeypatch.setattr(IPython.display, "display", display)
    return outputs


def use_renderer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = pio.renderers.default
    pio.renderers.default = name
    monkeypatch.setattr(pio.renderers, "default", name)
    assert before is None or isinstance(before, str)


def figure() -> go.Figure:
    return go.Figure(go.Bar(x=[1], y=[2]))


def test_words_and_cells_are_text() -> None:
    html = Result()._repr_html_()
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;") == 2
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in html
    assert html.count("0.333") == 8
    assert "8 of 20 rows" in html


def test_a_notebook_gets_the_table_and_then_the_figure(
    shown: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_renderer(monkeypatch, "plotly_mimetype")
    Result(figure)._ipython_display_()
    table, plot = shown
    assert "<table" in table["text/html"]
    assert "0.333" in table["text/plain"]
    assert plot[PLOTLY]["data"][0]["type"] == "bar"
    assert len(json.dumps(plot)) < 20_000  # no plotly.js


def test_a_terminal_gets_plain_text_only(
    shown: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_renderer(monkeypatch, "browser")
    Result(figure)._ipython_display_()
    assert [list(one) for one in shown] == [["text/plain", "text/html"]]


def test_html_holds_the_picture_where_pictures_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = {PLOTLY: {}, "image/svg+xml": "<svg/>"}
    monkeypatch.setattr(go.Figure, "_repr_mimebundle_", lambda self: bundle)
    use_renderer(monkeypatch, "plotly_mimetype+svg")
    assert 'src="data:image/svg+xml;base64,PHN2Zy8+"' in Result(figure)._repr_html_()
    use_renderer(monkeypatch, "plotly_mimetype")
    assert "<img" not in Result(figure)._repr_html_()
    assert ".plot()" in Result(figure)._repr_html_()


def test_an_exporter_without_a_browser_breaks_nothing(
    shown: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> Any:
        raise RuntimeError("no browser")

    monkeypatch.setattr(go.Figure, "_repr_mimebundle_", fail)
    use_renderer(monkeypatch, "plotly_mimetype+png")
    Result(figure)._ipython_display_()
    assert shown[1][PLOTLY]["data"][0]["type"] == "bar"
    assert "<table" in Result(figure)._repr_html_()


def test_what_cannot_be_shown_is_said(
    shown: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Any:
        raise UserError("no figure for <b>")

    use_renderer(monkeypatch, "plotly_mimetype")
    Result(none)._ipython_display_()
    assert len(shown) == 1
    assert "No figure: no figure for &lt;b&gt;" in shown[0]["text/html"]
    assert "TooSmall: too few subjects &lt;b&gt;" in TooSmall()._repr_html_()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def head_effects(n: int = 8) -> HeadEffects:
    values = noise(n, 3, 4)
    subjects = tuple(f"s{i} {TAG}" for i in range(n))
    return HeadEffects(values, values, subjects, ("why",) * n, "output", "path", f"masked {TAG}")


def patching() -> PatchEffects:
    return PatchEffects(
        noise(8, 3, 4), ("prompt", "layer", "head"), torch.zeros(8), "z", "exact", f"m {BREAKOUT}"
    )


def detections() -> PremiseDetections:
    false = tuple(Detection(p > 0.4, p, (0, 3), (0, 1)) for p in (0.9, 0.6, 0.3))
    twin = tuple(Detection(False, p) for p in (0.1, 0.2, 0.4))
    return PremiseDetections(false, twin, ((0, 3),) * 3, ("a", "b", "c"))


def screening() -> Screening:
    estimate = patching()
    values = estimate.values.clone()
    values[:, 2] = torch.nan
    verified = PatchEffects(values, estimate.axes, estimate.corrupted, "z", "exact", "m")
    return Screening(estimate, verified, 0.9, 0.8, np.full((3, 4), 0.1), 0.95)


def known() -> Knowledge:
    facts = [FactKnowledge("a", "b", True, "b"), FactKnowledge("c", "d", False, TAG)]
    return Knowledge("strict", tuple(facts))


def controls() -> ControlReport:
    shuffled = Score(TAG, 0.5, 0.45, 0.55)
    probe = Score("probe", 0.9, 0.85, 0.95)
    return ControlReport(5, "resid_post", "object", probe, (shuffled,), 0.6, 0.2)


RESULTS = {
    "effects": head_effects,
    "heads": lambda: HeadSet(((1, 2), (0, 3)), "output", TAG),
    "patching": patching,
    "stability": lambda: stability(patching(), 3, n_resamples=20),
    "screening": screening,
    "detections": detections,
    "detection score": lambda: score_detections(detections()),
    "knowledge": known,
    "controls": controls,
    "intervention": lambda: Intervention.of(HeadSet(((1, 2),))),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_shows_a_table_and_a_figure_of_escaped_text(name: str) -> None:
    result: Any = RESULTS[name]()
    html = result._repr_html_()
    assert len(html) > 40
    assert "<script" not in html
    assert "<img" not in html
    drawn = result.plot().to_plotly_json()
    assert drawn["data"]
    assert drawn["layout"]["xaxis"]["title"]["text"]
    # No numpy array: it would be written as base64, which nothing can search or shorten.
    text = json.dumps({"data": drawn["data"], "axes": drawn["layout"]["xaxis"]})
    assert "<script" not in text
    assert "<img" not in text


def test_effects_without_enough_subjects_say_so() -> None:
    assert "6 subjects are needed for intervals and tests" in head_effects(2)._repr_html_()


def test_a_constraint_shows_what_it_does() -> None:
    html = Constraint(HeadSet(((1, 2),)), "scale", 0.5)._repr_html_()
    assert "scale 0.5" in html
    experts = ExpertConstraint([("blocks.3.attn.q", 2)])
    assert "blocks.3.attn.q" in experts._repr_html_()
    assert "The figure" not in experts._repr_html_()


def test_premises_and_their_split_show_questions(planted_premises: Premises) -> None:
    html = planted_premises._repr_html_()
    assert "16 facts of" in html
    assert "Why is city0 the capital of" in html
    assert "held out" in planted_premises.split()._repr_html_()


def test_the_table_of_a_head_set_is_its_heads() -> None:
    html = HeadSet(((1, 2), (0, 3)), "output")._repr_html_()
    assert "<td>1</td>" in html
    cells: Any = HeadSet(((1, 2), (0, 3))).plot().data[0]
    assert list(cells.y) == [1, 0]


def test_print_shows_what_a_terminal_does() -> None:
    text = str(Result(None))
    assert text.strip()
    assert f"words {TAG}" in text
    assert "object at" not in text
