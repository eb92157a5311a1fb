"""Indirect-object identification, from our own sentences (the task of arXiv 2211.00593).

"When Mary and John met at the park, John handed the ball to" goes on with the name that was
mentioned once, the indirect object (IO); the one that was mentioned twice is the subject (S).
The corrupted text is, by ``corruption``:

* ``swap``: the second mention of the subject becomes the other name, which reverses the answer:
  "…, Mary handed the ball to" goes on with John;
* ``random``: the three mentions become three other names, so that no name occurs twice and the
  text does not determine an answer.

Both leave every other word unchanged. Which name comes first is balanced. Spans: ``io``, ``s1``
(the subject's first mention), ``s2`` (its second), ``end`` (the last word). A group is a pair of
names; no two prompts share one as long as there are enough names.
"""

import random
import re
from itertools import combinations
from typing import Any, Literal, get_args

from interp.arguments import check_choice
from interp.checked import checked
from interp.errors import UserError
from interp.models.unwrapped import check_tokenizer
from interp.tasks.pairs import Pair, Pairs, Span

Corruption = Literal["swap", "random"]

TEMPLATES: dict[str, str] = {
    "met": "When {first} and {second} met at the {place}, {subject} handed the {object} to",
    "left": "After {first} and {second} left the {place}, {subject} passed a {object} to",
    "waited": "While {first} and {second} waited near the {place}, {subject} offered a {object} to",
    "arrived": "Once {first} and {second} arrived at the {place}, {subject} gave the {object} to",
    "bored": "Because {first} and {second} were bored at the {place}, {subject} lent a {object} to",
    "evening": "In the evening {first} and {second} found the {place}, and {subject} sold a "
    "{object} to",
    "talked": "Yesterday {first} and {second} talked at the {place}. Then {subject} sent a "
    "{object} to",
    "reached": "Soon after {first} and {second} reached the {place}, {subject} brought a "
    "{object} to",
}
_NAMES = """
Adam Alice Amy Andrew Anna Anthony Ben Brian Charles Daniel David Edward Elizabeth Emily Emma
Eric Frank George Helen Henry Jack James Jane Jason Jeff John Joseph Julia Karen Kate Kevin Laura
Linda Lisa Lucy Maria Mark Martin Mary Matthew Michael Nick Oliver Patrick Paul Peter Rachel
Richard Robert Ruth Ryan Sam Sarah Scott Simon Sophie Stephen Susan Thomas Tom Victoria William
"""
NAMES: tuple[str, ...] = tuple(_NAMES.split())
_PLACES = """
bank beach bridge garden hospital hotel house library market museum office park restaurant river
school station store theater
"""
PLACES: tuple[str, ...] = tuple(_PLACES.split())
_OBJECTS = """
bag ball basket book box camera card coat cup drink flower gift hat key letter map newspaper
picture ring ticket watch
"""
OBJECTS: tuple[str, ...] = tuple(_OBJECTS.split())


@checked
def ioi_pairs(
    n: int = 64, *, tokenizer: Any = None, seed: int = 0, corruption: Corruption = "swap"
) -> Pairs:
    """Make ``n`` pairs, templates in turn; the same arguments make the same pairs.

    Args:
        tokenizer: only names that are one token after a space are used, so that the clean and the
            corrupted prompt have the same length; without it all names.

    Raises:
        UserError: an unknown corruption, no pairs asked for, or fewer than five names left.
    """
    check_corruption(corruption)
    if n < 1:
        raise UserError(f"{n} pairs: ask for at least one")
    names = single_token_names(tokenizer)
    draw = random.Random(seed)
    couples = list(combinations(names, 2))
    draw.shuffle(couples)
    kinds = list(TEMPLATES)
    pairs = []
    for number in range(n):
        io, subject = draw.sample(couples[number % len(couples)], 2)
        # Through the templates once with the indirect object first, once with the subject first.
        io_first = (number // len(kinds)) % 2 == 0
        others = draw.sample([name for name in names if name not in (io, subject)], 3)
        words = {"place": draw.choice(PLACES), "object": draw.choice(OBJECTS)}
        kind = kinds[number % len(kinds)]
        twins = {"swap": (io, subject, io), "random": tuple(others)}[corruption]
        clean, clean_spans = _fill(kind, (io, subject, subject), words, io_first=io_first)
        corrupted, corrupted_spans = _fill(kind, twins, words, io_first=io_first)
        spans = {name: (clean_spans[name], corrupted_spans[name]) for name in clean_spans}
        group = " & ".join(sorted((io, subject)))
        pairs.append(Pair(clean, corrupted, f" {io}", f" {subject}", spans, group, kind))
    return Pairs(tuple(pairs), "ioi")


def single_token_names(tokenizer: Any) -> list[str]:
    """The names that the tokenizer knows as one token after a space; all of them without one."""
    if tokenizer is None:
        return list(NAMES)
    check_tokenizer(tokenizer)
    # Behind a word: some tokenizers begin every text with a space.
    before, *behind = (
        len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("and", *(f"and {name}" for name in NAMES))
    )
    kept = [name for name, count in zip(NAMES, behind, strict=True) if count == before + 1]
    if len(kept) < 5:
        raise UserError(
            f"this model's tokenizer knows {len(kept)} of our {len(NAMES)} names as one token: at "
            "least 5 are needed; write pairs of your own (--pairs FILE.jsonl)"
        )
    return kept


def check_corruption(corruption: str) -> None:
    """Raise UserError for an unknown corruption, listing the known ones."""
    check_choice("corruption", corruption, get_args(Corruption))


def _fill(
    kind: str, names: tuple[str, ...], words: dict[str, str], *, io_first: bool
) -> tuple[str, dict[str, Span]]:
    """The sentence and the spans of its names, which follow from the positions of the slots."""
    io, subject, again = names
    first, second = (io, subject) if io_first else (subject, io)
    slots = {"first": first, "second": second, "subject": again, **words}
    roles = {"first": "io", "second": "s1"} if io_first else {"first": "s1", "second": "io"}
    roles |= {"subject": "s2"}
    text, spans = "", {}
    for index, piece in enumerate(re.split(r"[{}]", TEMPLATES[kind])):  # every second is a slot
        filled = slots[piece] if index % 2 else piece
        if index % 2 and piece in roles:
            spans[roles[piece]] = (len(text), len(text) + len(filled))
        text += filled
    last = text.rindex(" ") + 1
    return text, {**{name: spans[name] for name in ("io", "s1", "s2")}, "end": (last, len(text))}
