"""The texts without a premise: each kind of text about facts, evenly spread, in both halves."""

from collections import Counter

import pytest

from interp.premises import load_premises
from probes.detector.background import FACT_TEXTS, WORD_PROBLEMS, _spread, background_texts


@pytest.mark.parametrize(
    ("items", "n", "expected"),
    [
        (range(10), 5, [0, 2, 4, 6, 8]),
        (range(7), 3, [0, 2, 4]),
        (range(2), 5, [0, 1]),
        ([], 5, []),
        (range(3), 0, []),
    ],
)
def test_spread_by_hand(items, n, expected):
    assert _spread(items, n) == expected


def test_each_kind_of_text_once(tiny_llama):
    premises = load_premises("capitals", limit=4)
    texts = [text.asked.text for text in background_texts(tiny_llama, [premises])]
    expected = [premises.direct(fact) for fact in premises.facts]
    expected += [f"{premises.cloze(fact)} {fact.object}." for fact in premises.facts]
    expected += [f"Which city is the capital of {fact.object}?" for fact in premises.facts]
    assert texts[:-WORD_PROBLEMS] == expected


def test_many_facts_leave_no_kind_out_of_a_half(tiny_llama):
    premises = [load_premises(name, limit=100) for name in ("capitals", "us_cities", "authors")]
    found = background_texts(tiny_llama, premises)
    kinds = {
        **{part.direct(fact): "direct" for part in premises for fact in part.facts},
        **{part.reverse(fact): "reverse" for part in premises for fact in part.facts},
    }
    for half in (found[0::2], found[1::2]):
        counts = Counter(
            kinds.get(text.asked.text, "statement") for text in half if text.relation is not None
        )
        assert counts == dict.fromkeys(("direct", "reverse", "statement"), FACT_TEXTS // 2)
        assert {text.relation for text in half} == {"capitals", "us_cities", "authors", None}
