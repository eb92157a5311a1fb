"""Figures of attention patterns and of token saliency, with hostile tokens."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.evaluation import AttentionPattern, TokenSaliency
from interp.figures.theme import token_label

TOKENS = ("<s>", "\n", " why", "</script><img src=x onerror=alert(1)>", "?")


def pattern() -> AttentionPattern:
    one = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0, 0.0],
            [0.5, 0.5, 0.0, 0.0, 0.0],
            [0.6, 0.3, 0.1, 0.0, 0.0],
            [0.2, 0.2, 0.2, 0.4, 0.0],
            [0.1, 0.2, 0.3, 0.3, 0.1],
        ]
    )
    return AttentionPattern(((1, 2), (0, 0)), TOKENS, one.repeat(2, 1, 1), {"object": (3, 4)}, 2)


def saliency(values: tuple[float, ...] = (1.0, -0.5, 0.25, -2.0, 0.0)) -> TokenSaliency:
    return TokenSaliency(
        TOKENS,
        torch.tensor(values),
        "logit('<b>')",
        "logits",
        1.5,
        spans={"object": (3, 4)},
        start=2,
    )


def test_earlier_tokens_are_added_up_and_the_future_is_empty() -> None:
    cells: Any = pattern().plot().data[0]
    rows = [list(row) for row in cells.z]
    assert rows[0] == [pytest.approx(0.9), pytest.approx(0.1), None, None]
    assert rows[2] == pytest.approx([0.3, 0.3, 0.3, 0.1])
    assert cells.customdata[2][0][1] == "the 2 tokens before"
    whole: Any = pattern().plot(start=0).data[0]
    assert [len(row) for row in whole.z] == [5] * 5


def test_each_head_has_its_panel_and_the_span_is_marked() -> None:
    figure: Any = pattern().plot()
    assert len(figure.data) == 2
    texts = [one.text for one in figure.layout.annotations]
    assert texts.count("object") == 2
    assert "<b>layer 1, head 2</b>" in texts
    edges = {shape.x0 for shape in figure.layout.shapes}
    assert edges == {0.5, 1.5}
    assert figure.layout.xaxis.ticktext[2].startswith("<b>&lt;/script&gt;")


def test_the_last_tokens_attention_is_the_table() -> None:
    row = pattern().to_dataframe().iloc[0]
    assert row["object"] == pytest.approx(0.3)
    assert row["question"] == pytest.approx(0.7)
    assert row["before"] == pytest.approx(0.3)


def test_patterns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="patterns of shape"):
        AttentionPattern(((0, 0),), ("a",), torch.zeros(1, 2, 2))
    with pytest.raises(UserError, match="from 5 on"):
        pattern().plot(start=5)
    many = AttentionPattern(tuple((0, h) for h in range(7)), ("a",), torch.ones(7, 1, 1))
    with pytest.raises(UserError, match="at most 6"):
        many.plot()


def test_bars_are_the_values_and_one_sum_of_what_came_before() -> None:
    bars: Any = saliency().plot().data[0]
    assert list(bars.y) == pytest.approx([0.5, 0.25, -2.0, 0.0])
    assert list(bars.marker.pattern.shape) == ["", "", "/", ""]
    assert saliency().plot().layout.title.text.startswith("logit('&lt;b&gt;')")


def test_tokens_never_become_markup() -> None:
    for html in (saliency()._repr_html_(), pattern()._repr_html_()):
        assert "<img" not in html
        assert "<script" not in html
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in saliency()._repr_html_()
    for figure in (saliency().plot(), pattern().plot()):
        assert "<img" not in str(figure.to_json()).encode().decode("unicode_escape")


def test_the_text_marks_strong_tokens_with_their_sign() -> None:
    html = saliency()._repr_html_()
    assert html.count("<sup>−</sup>") == 1
    assert "<sup>+</sup>" not in html  # the one large positive token stands before the question
    silent = saliency((0.0,) * 5)._repr_html_()
    assert "<sup>" not in silent


def test_labels_of_tokens_show_what_cannot_be_seen() -> None:
    assert token_label("\n") == "↵"
    assert token_label(" ") == "␣"
    assert token_label("") == "·"
    assert token_label(" a<b") == "a&lt;b"
    assert token_label("x" * 30) == "x" * 13 + "…"
