"""Lists in cells, as JSON, Python, numpy and pandas write them; texts that only look alike."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UserError
from interp.files.list_cells import LONGEST_LIST, list_in, python_value


@pytest.mark.parametrize(
    ("cell", "entries"),
    [
        ('["Paris", "Lyon"]', ["Paris", "Lyon"]),
        ("['Paris', \"Côte d'Ivoire\"]", ["Paris", "Côte d'Ivoire"]),
        (" ['Paris' 'City of Paris'] ", ["Paris", "City of Paris"]),
        ("['Paris'\n \"Côte d'Ivoire\"\n 'it\\'s']", ["Paris", "Côte d'Ivoire", "it's"]),
        ("('a', 'b')", ["a", "b"]),
        ("('a',)", ["a"]),
        ("{'b', 'a'}", ["b", "a"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("array(['a, dtype=b)'],\n      dtype='<U5')", ["a, dtype=b)"]),
        ("[u'a', u'b']", ["a", "b"]),
        ("[1912 -3]", [1912, -3]),
        ("['a' None nan]", ["a", None, None]),
        ("(1912, 1913)", [1912, 1913]),
        ("{1912}", [1912]),
        ("[]", []),
        ("()", []),
        ("set()", []),
        ("array([], dtype=object)", []),
    ],
)
def test_lists_are_read(cell: str, entries: list[Any]) -> None:
    assert list_in("answer", cell) == entries


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "Paris; Lyon",
        "[sic] he never did",
        "['Paris'",
        "(born 1912)",
        "(1,000)",
        '("Heroes")',
        "(I Can't Get No) Satisfaction (live)",
        "{x}",
        "an array(['a'])",
    ],
)
def test_a_plain_text_is_no_list(cell: str) -> None:
    assert list_in("answer", cell) is None


@pytest.mark.parametrize(
    "cell",
    [
        "[a b]",
        "['O''Brien']",  # Python's OBrien, and SQL's O'Brien
        "['a' ... 'z']",  # numpy leaves out the middle
        "['a';'b']",
        "[b'a' b'b']",
        "[['a'] ['b']]",
        "('a', 'b]')c')",
        "{'a': 'b'}",
        "['a', __import__('os')]",
        f"['{'a' * LONGEST_LIST}']",
    ],
)
def test_what_only_looks_like_a_list_is_refused(cell: str) -> None:
    with pytest.raises(UserError, match="answer begins and ends like a list") as stop:
        list_in("answer", cell)
    assert str(stop.value).isprintable()


NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9))


@given(NAMES)
def test_what_the_libraries_print_is_read_back(names: list[str]) -> None:
    with np.printoptions(linewidth=20, threshold=10**6):
        printed = str(np.array(names, dtype=object))
    assert list_in("answer", printed) == names
    for written in (list(names), np.array(names, dtype=object)):
        frame = io.StringIO()
        pd.DataFrame({"answer": [written]}).to_csv(frame, index=False)
        (cell,) = pd.read_csv(io.StringIO(frame.getvalue()), dtype=str)["answer"]
        assert list_in("answer", cell) == names


def test_a_dictionary_with_lists_of_pandas() -> None:
    text = "{'label': array(['A', 'B'], dtype=object), 'text': ['x' 'y'], 'n': -1, 'key': 'a: b'}"
    assert python_value(text) == {"label": ["A", "B"], "text": ["x", "y"], "n": -1, "key": "a: b"}
    with pytest.raises(ValueError, match="as Python writes it"):
        python_value("{'a': open}")
