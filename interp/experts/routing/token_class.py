"""The word class of a token, by its text alone.

Five classes, the first that fits: *numeric* (``12``, ``3.5``, ``1,000``), *operator* (``+``, ``=``,
``≤``), *function word* (a closed list of English articles, prepositions, pronouns, auxiliaries,
conjunctions and question words), *name* (a capitalised word that is no function word), *other*.
A tokenizer's pieces are not words: the later pieces of a name are *other*, and so is a name in
lower case; a content word that begins a sentence counts as a name.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

CLASSES: tuple[str, ...] = ("numeric", "operator", "function word", "name", "other")

_NUMBER = re.compile(r"[\d.,]*\d[\d.,]*%?")
_OPERATORS = frozenset("+-−*/=<>%^~|&")
_WORDS = """
    a an the this that these those some any no every each either neither both all few many much
    more most other another such what which whose
    i you he she it we they me him her us them my your his its our their mine yours hers ours
    theirs myself yourself itself themselves who whom one there here
    of in on at by for with about against between into through during before after above below to
    from up down out off over under again further since until without within along across behind
    beyond near per as like than via
    and or but nor so yet if because while although though unless whether then when where why how
    am is are was were be been being have has had having do does did doing will would shall should
    can could may might must not
"""
_FUNCTION_WORDS = frozenset(_WORDS.split())


def token_class(text: str) -> int:
    """The number of the token's class in `CLASSES`."""
    word = text.strip()
    is_of_class = {
        "numeric": _NUMBER.fullmatch(word),
        "operator": word and all(c in _OPERATORS or unicodedata.category(c) == "Sm" for c in word),
        "function word": word.lower() in _FUNCTION_WORDS,
        "name": word[:1].isupper() and word.isalpha() and len(word) > 1,
        "other": True,
    }
    return next(number for number, name in enumerate(CLASSES) if is_of_class[name])


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token by itself."""
    return tuple(tokenizer.batch_decode([[int(token)] for token in ids]))
