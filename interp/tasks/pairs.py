"""Clean and corrupted texts, and the two answers that a metric tells apart.

A file of pairs holds one JSON object a line::

    {"clean": "Paris is the capital of", "corrupted": "Rome is the capital of",
     "answer": " France", "wrong_answer": " Italy",
     "spans": {"city": {"clean": [0, 5], "corrupted": [0, 4]}}, "group": "Paris", "template": "is",
     "gap": ""}

``answer`` continues the clean text, ``wrong_answer`` the corrupted one. The last four keys are
optional. ``gap`` joins text and answer: ``""`` for nothing, as in "12+30=" and "42"; by default
`interp.models.joining.gap_between` decides, mostly for a space. An empty cell of a CSV says nothing
and leaves that default; a CSV cannot ask for no gap. ``spans`` names pieces of the texts
by character offsets [start, end); a plain ``[start, end]`` stands for the same offsets in both.
Prompts of one ``group`` are not independent and are resampled together; ``template`` names the
form of the sentence.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from interp.arguments import check_choice, indices, shown
from interp.checked import checked
from interp.errors import UserError, errors_in
from interp.files.row_files import READERS, SUFFIXES
from interp.files.rows import Row
from interp.files.text import read_json_lines
from interp.tasks.mib import is_mib, pair_fields

logger = logging.getLogger(__name__)

Span = tuple[int, int]
"""Characters [start, end) of a text."""

_TEXTS = ("clean", "corrupted", "answer", "wrong_answer")
_OPTIONAL = ("spans", "group", "template", "gap", "")


@dataclass(frozen=True)
class Pair:
    """One clean text and its corrupted twin.

    Attributes:
        spans: by name, the characters of the clean and of the corrupted text.
        gap: the text between a text and its answer; None for the usual one. In a chat it comes
            before the answer in the assistant's turn.
    """

    clean: str
    corrupted: str
    answer: str
    wrong_answer: str
    spans: Mapping[str, tuple[Span, Span]] = field(default_factory=dict)
    group: str = ""
    template: str = ""
    gap: str | None = None

    def __post_init__(self) -> None:
        _check_texts(vars(self))
        if self.answer == self.wrong_answer:
            raise UserError(f"answer and wrong_answer are both {self.answer!r}")
        for name, spans in self.spans.items():
            for what, text, (start, end) in zip(
                ("clean", "corrupted"), (self.clean, self.corrupted), spans, strict=True
            ):
                if not 0 <= start < end <= len(text) or not text[start:end].strip():
                    raise UserError(
                        f"span {name!r} [{start}, {end}] holds no word of the {what} text, which "
                        f"has {len(text)} characters"
                    )

    def row(self) -> dict[str, Any]:
        """The pair as a line of a pairs file, without a gap if there is none."""
        content = dict(vars(self))
        content["spans"] = {
            name: {"clean": list(clean), "corrupted": list(corrupted)}
            for name, (clean, corrupted) in self.spans.items()
        }
        return {name: value for name, value in content.items() if value is not None}


@dataclass(frozen=True)
class Pairs:
    """Pairs with the same spans; a sequence of ``Pair``."""

    items: tuple[Pair, ...]
    name: str = "pairs"

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError(f"{self.name}: there are no pairs")
        for number, pair in enumerate(self.items):
            if set(pair.spans) != set(self.items[0].spans):
                raise UserError(
                    f"{self.name}: pair {number} has the spans {_list(pair.spans)}, the first pair "
                    f"{_list(self.items[0].spans)}: every pair needs the same ones"
                )

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.items)

    def __getitem__(self, index: int) -> Pair:
        return self.items[index]

    @property
    def span_names(self) -> tuple[str, ...]:
        """The spans that every pair has."""
        return tuple(self.items[0].spans)

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each pair; a pair without one is a group by itself."""
        return tuple(pair.group or f"pair {number}" for number, pair in enumerate(self.items))

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of each pair; empty where it has none."""
        return tuple(pair.template for pair in self.items)

    def take(self, numbers: Sequence[int]) -> "Pairs":
        """Some of the pairs, by index, or by a mask."""
        places = indices("numbers", numbers, len(self.items))
        return Pairs(tuple(self.items[place] for place in places), self.name)


@checked
def read_pairs(
    path: str | Path, *, limit: int | None = None, counterfactual: str | None = None
) -> Pairs:
    """Read a file of pairs, or of one of MIB's tasks (`interp.tasks.mib`); empty lines are skipped.

    Args:
        path: JSON lines; a JSON list, CSV or Parquet by its ending.
        limit: only the first so many pairs.
        counterfactual: of MIB's tasks, the column with the corrupted prompt; by default the task's.

    Raises:
        UserError: no such file, or a line that is not a pair; the message names the line.
    """
    path = Path(path)
    pairs: list[Pair] = []
    left_out = 0
    for number, content in _rows(path):
        if limit is not None and len(pairs) >= limit:
            break
        with errors_in(f"{path}, line {number}"):
            if not is_mib(content):
                pairs.append(_pair_of(content))
            elif (fields_of := pair_fields(content, counterfactual)) is not None:
                pairs.append(_pair_of(fields_of))
            else:
                left_out += 1
    if left_out:
        logger.warning(
            "%s: %d rows have no counterfactual with another answer; they are left out",
            path,
            left_out,
        )
    return Pairs(tuple(pairs), str(path))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The number and content of each row, by the file's ending."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl" or suffix not in SUFFIXES:
        yield from read_json_lines(path)
        return
    with errors_in(str(path)):
        for number, row in READERS[suffix](path):
            yield number, _without_empty_cells(row) if suffix == ".csv" else row


def _without_empty_cells(row: Row) -> dict[str, Any]:
    """The row of a CSV without the optional keys that it leaves empty: no gap, not the gap ""."""
    return {name: cell for name, cell in row.items() if cell or name not in _OPTIONAL}


def _pair_of(content: Any) -> Pair:
    if not isinstance(content, dict):
        raise UserError('must be a JSON object such as {"clean": …, "corrupted": …}')
    known = [entry.name for entry in fields(Pair)]
    for key in content:
        check_choice("key", key, known)
    for key in _TEXTS:
        if key not in content:
            raise UserError(f"{key!r} is missing")
    _check_texts(content)
    spans = content.get("spans")
    spans = {} if spans is None else spans
    if not isinstance(spans, dict):
        raise UserError('spans must be an object such as {"name": [start, end]}')
    found = {name: _spans_of(name, value) for name, value in spans.items()}
    return Pair(**{**content, "spans": found})


def _check_texts(content: Mapping[str, Any]) -> None:
    """Raise UserError unless a pair's texts are texts, and not empty where they are required."""
    for name in (*_TEXTS, "group", "template", "gap"):
        text = content.get(name, "")
        if name == "gap" and text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"{name} is {shown(text)}, but must be text")
        if name in _TEXTS and not text.strip():
            raise UserError(f"{name} is empty: give it at least one word")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{name} holds half of a surrogate pair: no Unicode text") from error


def _spans_of(name: str, value: Any) -> tuple[Span, Span]:
    """The clean and the corrupted text's span, from either way to write them."""
    if isinstance(value, dict) and set(value) == {"clean", "corrupted"}:
        return _span_of(name, value["clean"]), _span_of(name, value["corrupted"])
    return _span_of(name, value), _span_of(name, value)


def _span_of(name: str, value: Any) -> Span:
    if isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value):
        return value[0], value[1]
    raise UserError(
        f"span {name!r} is {shown(value)}, but must be [start, end] in characters, or "
        '{"clean": [start, end], "corrupted": [start, end]}'
    )


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "(none)"
