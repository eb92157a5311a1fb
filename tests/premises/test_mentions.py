"""An answer names something as whole words, in whatever case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.premises.relation import names, names_any


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Paris is the capital of France.", "France"),
        ("FRANCE", "france"),
        ("It is (France)!", "France"),
        ("the film of 1994, not 1995", "1994"),
        ("in South Sudan", "South Sudan"),
        ("South  Sudan", "South Sudan"),
        ("Côte d'Ivoire's capital", "Côte d'Ivoire"),
        ("STRASSE", "Straße"),
        ("made by Yahoo! in 1995", "Yahoo!"),
        ("C++ is a language", "C++"),
        ("Sao Paulo", "São Paulo"),
        ("Brasília", "Brasilia"),
        ("LODZ", "Łódź"),
        ("Aeroskobing", "Ærøskøbing"),
        ("WEISSRUSSLAND", "Weißrussland"),
        ("istanbul", "İstanbul"),
    ],
)
def test_named(text: str, name: str) -> None:
    assert names(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Nigeria", "Niger"),
        ("a Romanian town", "Oman"),
        ("in 19945", "1994"),
        ("snake_France", "France"),
        ("", "France"),
        ("a.b", "a-b"),
        ("axb", "a.b"),
        ("à Paris", "A"),
        ("Malmoe", "Malmö"),
        ("Брестский", "Брест"),
    ],
)
def test_not_named(text: str, name: str) -> None:
    assert not names(text, name)


def test_any_of_several_names() -> None:
    assert names_any("The UK, of course", ["United Kingdom", "UK"])
    assert not names_any("The Ukraine", ["United Kingdom", "UK"])
    assert not names_any("anything", [])


words = st.text(alphabet="abcÅéßж1", min_size=1, max_size=5)


def without_accents(text: str) -> str:
    return text.casefold().replace("å", "a").replace("é", "e")


@given(words, st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_a_word_between_others_is_named(name: str, before: list[str], after: list[str]) -> None:
    assert names(" ".join([*before, name, *after]), name)
    others = [word for word in before + after if without_accents(word) != without_accents(name)]
    assert not names(" ".join(others), name)
