"""Names as whole words, with and without spaces between words."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.evaluation.judges import judge_by_words
from interp.models.spans import last_mention
from interp.moelora.data.examples import Example
from interp.moelora.training.scoring import is_right
from interp.premises.question_list import RawQuestion
from interp.premises.relation import names
from interp.report.answers import mark_names
from interp.whole_words import is_spaceless, mentions, whole_word


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("Is Niger, not Nigeria, dry?", "Niger", ["Niger"]),
        ("NIGER", "Niger", ["NIGER"]),
        ("Nigeria", "Niger", []),
        ("Is L’Aquila near?", "L'Aquila", ["L’Aquila"]),
        ("巴黎是法国的首都。", "法国", ["法国"]),
        ("巴黎是法国的首都，法国在欧洲。", "法国", ["法国", "法国"]),
        ("巴黎是德国的首都。", "法国", []),
        ("首都是Paris吗？", "Paris", ["Paris"]),  # between letters of another script
        ("首都はパリです", "パリ", ["パリ"]),
        ("首都はナイロビです", "ロビ", []),  # inside one run of katakana
        ("ハンガリーの首都", "ハンガリ", []),
        ("กรุงปารีสเป็นเมืองหลวงของฝรั่งเศส", "ปารีส", ["ปารีส"]),
        ("เมืองกาก", "กา", ["กา"]),
        ("เมืองกี่", "ก", []),  # a vowel stands on it
        ("파리는 프랑스의 수도입니다.", "프랑스", ["프랑스"]),
        ("프랑스에서는 그렇다.", "프랑스", ["프랑스"]),
        ("수도는 파리입니다", "파리", ["파리"]),
        ("인도네시아의 수도", "인도", []),
        ("북마케도니아의 수도", "마케도니아", []),
        ("A 5kg bag", "5", []),
        ("5,000 islands, 3.5 km", "5", []),
        ("It has 2,000 moons.", "2", []),
        ("in 1911, 1912.", "1912", ["1912"]),
        ("भारतीय लोग", "भारत", []),  # a vowel sign makes it another word
        ("भारत में", "भारत", ["भारत"]),
        ("in New\u00a0Zealand, New  Zealand", "New Zealand", ["New\u00a0Zealand", "New  Zealand"]),
        ("in New Zealand", "New\u00a0Zealand", ["New Zealand"]),
        ("in Fran\u200bce", "France", ["Fran\u200bce"]),
        ("", "Niger", []),
        ("Niger", " ", []),
    ],
)
def test_by_hand(text: str, name: str, found: list[str]) -> None:
    assert [text[slice(*span)] for span in mentions(text, name)] == found
    assert names(text, name) is bool(found)


def test_decomposed_letters_are_the_same() -> None:
    for name in ("Perú", "프랑스"):
        for form in ("NFC", "NFD"):
            for other in ("NFC", "NFD"):
                text = unicodedata.normalize(form, f"({name})")
                ((start, end),) = mentions(text, unicodedata.normalize(other, name))
                assert (start, end) == (1, len(text) - 1)


def test_a_decomposed_word_is_as_long_as_a_composed_one() -> None:
    for word, part in (("România", "Roma"), ("São Paulo", "Sa"), ("Roma", "România")):
        assert not names(unicodedata.normalize("NFD", word), part)
        assert not names(word, part)


def test_a_part_of_a_longer_name_does_not_count() -> None:
    text = "Mexico City is the capital of Mexico."
    assert [start for start, _ in mentions(text, "Mexico")] == [0, 30]
    assert [start for start, _ in mentions(text, "mexico", apart_from=("MEXICO CITY",))] == [30]
    assert mentions("Mexico City", "Mexico City", apart_from=("Mexico City",)) == [(0, 11)]
    assert mentions("Mexico City", "Mexico City", apart_from=("Mexico",)) == [(0, 11)]
    assert not names("Mexico City is there.", "Mexico", apart_from=("Mexico City",))


def test_many_names_are_looked_for_in_no_time() -> None:
    """A pattern is made for a name that is in the text only."""
    before = whole_word.cache_info().misses
    assert not any(names("Why is Paris the capital of Germany?", f"Film {n}") for n in range(999))
    assert whole_word.cache_info().misses == before


def test_accents_make_a_difference_where_the_name_is_looked_for_exactly() -> None:
    text = "Sao Paulo, São Paulo, SÃO PAULO"
    assert [start for start, _ in mentions(text, "São Paulo")] == [0, 11, 22]
    assert [start for start, _ in mentions(text, "São Paulo", exact=True)] == [11]
    pieces = mark_names("It is Brasilia.", true_object="Brasília", false_object="Lima")
    assert [(piece.text, piece.role) for piece in pieces][1] == ("Brasilia", "true")


@given(st.text(), st.text(min_size=1))
def test_a_mention_is_the_name(text: str, name: str) -> None:
    for start, end in mentions(text, name, exact=True):
        there = unicodedata.normalize("NFC", text[start:end]).replace("’", "'")
        assert there == unicodedata.normalize("NFC", name).replace("’", "'")


@given(
    st.text(st.characters(max_codepoint=0x24F)),
    st.text(st.characters(max_codepoint=0x24F, exclude_categories=["N"]), min_size=1),
)
def test_latin_text_is_read_as_ever(text: str, name: str) -> None:
    plain = rf"(?<!\w){re.escape(name)}(?!\w)".replace("’", "[’']").replace("'", "[’']")
    plain = re.sub(r"\[’?\[’'\]\]|\[’\[’'\]\]", "[’']", plain)
    assert bool(re.search(whole_word(name), text)) == bool(re.search(plain, text))


@pytest.mark.parametrize("letter", "法ぁカー々ก豈𠀀ㄅ")
def test_scripts_without_spaces(letter: str) -> None:
    assert is_spaceless(letter)


@pytest.mark.parametrize("letter", ["a", "1", "é", "П", "한", " ", ".", "", "。"])
def test_scripts_with_spaces_and_marks(letter: str) -> None:
    assert not is_spaceless(letter)


def test_a_chinese_answer_is_read_everywhere() -> None:
    """The judge, the scorer, the page and the words in the question, on one sentence."""
    question, answer = "为什么巴黎是德国的首都？", "巴黎是法国的首都，不是德国的。"
    asked = RawQuestion(question, true_object="法国", false_object="德国", label="false_premise")
    verdict = judge_by_words(asked, answer)
    assert asked.object_span == last_mention(question, "德国") == (6, 8)
    assert verdict.names_answer
    assert verdict.names_false_object
    assert [
        piece.role for piece in mark_names(answer, true_object="法国", false_object="德国")
    ] == [*("", "true", "", "false", "")]
    example = Example("t", "首都？", "法国", kind="name")
    assert is_right(example, "巴黎是法国的首都。")
    assert not is_right(example, "巴黎是德国的首都。")


def test_a_right_name_that_holds_the_false_one_in_either_form() -> None:
    answer = unicodedata.normalize("NFD", "It is São Paulo Sé.")
    example = Example("t", "Where?", "São Paulo Sé", kind="name", false_object="Sé")
    assert is_right(example, answer)
