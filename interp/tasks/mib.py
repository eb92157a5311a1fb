"""Rows of MIB's tasks as pairs: IOI, arithmetic, and multiple choice (MCQA, ARC).

The data sets of the Mechanistic Interpretability Benchmark (Mueller et al. 2025, arXiv 2504.13151)
hold a ``prompt`` and counterfactuals of it, each with a prompt and an answer of its own, in columns
whose names end in ``_counterfactual``:

=============  =================================  ===================  ========================
task           answer                             wrong answer         counterfactual
=============  =================================  ===================  ========================
IOI            ``metadata.indirect_object``       ``metadata.subject`` ``s2_io_flip_…``
multiple       ``choices.label[answerKey]``       the counterfactual's ``symbol_…``
choice
arithmetic     ``label``                          the counterfactual's ``random_…``
=============  =================================  ===================  ========================

These are the defaults of MIB's circuit track. An IOI row without names in ``metadata`` has its
answers in ``choices``, a list. In a CSV, nested columns are JSON or as Python or numpy write them
(`interp.files.list_cells`), and a whole number may have pandas' ``.0``.

MIB scores the first token of an answer written without a space; here an answer continues the
prompt as a text would, mostly after a space. Rows whose counterfactual is missing, or has the same
answer, make no pair.
"""

from collections.abc import Mapping
from typing import Any

from interp.arguments import shown
from interp.errors import UserError
from interp.files.cells import whole_number
from interp.files.list_cells import python_value
from interp.files.rows import Row
from interp.files.text import parse_json

SUFFIX = "_counterfactual"
DEFAULTS = ("s2_io_flip_counterfactual", "symbol_counterfactual", "random_counterfactual")
"""The counterfactuals that are taken, the first of them that a row has."""
_NESTED = ("metadata", "choices")
LONGEST_CELL = 100_000
"""Characters of a cell that is read as JSON or Python."""


def is_mib(row: Any) -> bool:
    """Whether a row is one of MIB's: it has a prompt and a counterfactual."""
    return (
        isinstance(row, Mapping)
        and "prompt" in row
        and any(isinstance(name, str) and name.endswith(SUFFIX) for name in row)
    )


def pair_fields(row: Row, counterfactual: str | None = None) -> dict[str, Any] | None:
    """The fields of a pair that a row makes; None where it makes none.

    Args:
        counterfactual: the column of the corrupted prompt, by default the task's (`DEFAULTS`).

    Raises:
        UserError: a column is missing or holds something else, with its name.
    """
    column = _column(row, counterfactual)
    row = {name: _unpacked(row, name) for name in row if name in (*_NESTED, column)} | {
        name: value for name, value in row.items() if name not in (*_NESTED, column)
    }
    other = row[column]
    if other is None or (isinstance(other, Mapping) and other.get("prompt") is None):
        return None
    if not isinstance(other, Mapping):
        raise UserError(f"{column} is {shown(other)}, but must hold a prompt and its answer")
    answer, wrong = _answer(row, "the row"), _answer(other, column)
    names = row.get("metadata")
    if isinstance(names, Mapping) and {"indirect_object", "subject"} <= set(names):
        answer, wrong = names["indirect_object"], names["subject"]
    texts = {"answer": answer, "wrong_answer": wrong}
    texts |= {"clean": row["prompt"], "corrupted": other["prompt"]}
    if bad := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise UserError(f"the {bad[0]} text is {shown(texts[bad[0]])}, but must be text")
    if answer == wrong:
        return None
    template = row.get("template")
    found = {**texts, "template": template if isinstance(template, str) else ""}
    # No space stands between an equals sign and the number behind it.
    return found | ({"gap": ""} if row["prompt"].endswith("=") else {})


def _column(row: Row, counterfactual: str | None) -> str:
    """The column of the counterfactual."""
    known = [name for name in row if isinstance(name, str) and name.endswith(SUFFIX)]
    if counterfactual is not None:
        if counterfactual not in known:
            raise UserError(f"no column {counterfactual!r}; found {', '.join(known) or 'none'}")
        return counterfactual
    chosen = [name for name in DEFAULTS if row.get(name) is not None]
    chosen += [name for name in DEFAULTS if name in row]
    return (chosen or known)[0]


def _unpacked(row: Row, name: str) -> Any:
    """A nested column, which a CSV holds as text; an empty cell is None."""
    value = row[name]
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    if len(value) > LONGEST_CELL:
        raise UserError(f"{name} has more than {LONGEST_CELL} characters")
    try:
        return parse_json(value)
    except UserError:
        pass
    try:
        return python_value(value)
    except ValueError as error:
        raise UserError(
            f"{name} is {shown(value)}, but must be JSON, or a dictionary as Python writes it"
        ) from error


def _answer(row: Row, where: str) -> str:
    """The answer of a row or of its counterfactual, as text."""
    choices, key = row.get("choices"), row.get("answerKey")
    if choices is None:
        return _number(row.get("label"), where)
    if isinstance(key, str) and whole_number(key.strip()).isdecimal():
        key = int(whole_number(key.strip()))
    elif isinstance(key, float) and key.is_integer():
        key = int(key)
    labels = choices.get("label") if isinstance(choices, Mapping) else choices
    if not isinstance(labels, list | tuple):
        raise UserError(f"choices of {where} are {shown(choices)}, but must be a list of labels")
    if type(key) is not int or not 0 <= key < len(labels):
        raise UserError(
            f"answerKey of {where} is {shown(key)}, but must be the place of one of "
            f"{len(labels)} choices, from 0"
        )
    return _number(labels[key], where)


def _number(value: Any, where: str) -> str:
    """An answer that is text, or a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise UserError(f"the answer of {where} is {shown(value)}, but must be text or a number")
    return whole_number(str(value))
