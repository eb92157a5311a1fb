from typing import Any

from interp.report.summary import key_figures, summary_sentences


def test_the_summary_carries_the_numbers(evaluation: dict[str, Any]) -> None:
    text = " ".join(summary_sentences(evaluation))
    for part in (
        "0.75 [0.65, 0.85] of 58 held-out false-premise prompts; without it, on 0.25 [0.15, 0.35]",
        "(20 of them) prefer it on 0.26 on average and 0.38 at their 95th percentile",
        "percentile 100",
        "name the true object in 0.60 [0.50, 0.70] of cases",
        "P(true object) falls by 0.25, from 0.88 [0.78, 0.97] to 0.62 [0.53, 0.72]",
        "0.0031 nats",
        "perplexity ratio 1.004",
    ):
        assert part in text


def test_a_sentence_without_its_numbers_is_left_out(evaluation: dict[str, Any]) -> None:
    full = summary_sentences(evaluation)
    del evaluation["random_null"], evaluation["side_effects"]
    left = summary_sentences(evaluation)
    assert len(full) - len(left) == 2
    assert not any("Random" in sentence or "neutral" in sentence for sentence in left)


def test_a_rise_and_no_change_of_the_cost_are_told_apart(evaluation: dict[str, Any]) -> None:
    constrained = evaluation["splits"]["held_out"]["true_premise"]["constrained"]
    constrained["p_true_object"] = [0.9, 0.8, 1.0]
    assert any("rises by 0.03" in sentence for sentence in summary_sentences(evaluation))
    constrained["p_true_object"] = [0.876, 0.8, 1.0]
    assert any("within 0.01" in sentence for sentence in summary_sentences(evaluation))


def test_key_figures(evaluation: dict[str, Any]) -> None:
    first, *_, last = key_figures(evaluation)
    assert (first.before, first.after) == ("0.25", "0.75")
    assert first.note == "95 % [0.65, 0.85], n = 58"
    assert (last.before, last.after) == ("0.88", "0.62")
