"""Interventions on disk: a small YAML or JSON file that people can read, write and send.

::

    version: 1
    gate: oracle
    heads:
    - {site: attention, mode: zero, heads: [[3, 1], [7, 4]]}
    experts:
    - {mode: off, place: all, experts: [[blocks.3.attn.q, 2], [4, attn.v, 0]]}

A file from a stranger is only data: it is read without any constructor of Python objects, every
key is known, every value is checked, and a message never repeats more than a word of it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml

from interp.errors import UserError
from interp.files import PlainLoader, parse_json, parse_yaml, read_text
from interp.files.documents import write_atomically
from interp.heads.headset import HeadSet, Site, check_site
from interp.interventions.expert_constraint import (
    ExpertConstraint,
    ExpertMode,
    ExpertName,
    TokenScope,
    check_expert_mode,
    check_place,
)
from interp.interventions.gate import Gate, check_gate
from interp.interventions.head_constraint import Constraint, Mode, check_mode

VERSION = 1
LARGEST_FILE = 200_000
LONGEST_TEXT = 400
LARGEST_FACTOR = 1e9
_TOP = ("version", "gate", "heads", "experts")
_HEADS = ("site", "mode", "factor", "heads", "chosen_by")
_EXPERTS = ("mode", "factor", "place", "experts", "chosen_by")


class _CoreLoader(PlainLoader):
    """YAML 1.2's plain types, so that the mode ``off`` is a word and 1:30 is not a number."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


for _tag, _pattern, _starts in (
    ("int", r"[-+]?(0|[1-9][0-9]{0,15})", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
):
    _CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), list(_starts)
    )


Parts = tuple[tuple[Constraint, ...], tuple[ExpertConstraint, ...], Gate]
"""What a file holds: constraints of heads, constraints of experts, and the gate."""


def write_parts(parts: Parts, path: Path) -> Path:
    """Write a file that ``read_parts`` reads; JSON if its name ends so, else YAML."""
    heads, experts, gate = parts
    content = {
        "version": VERSION,
        "gate": gate,
        "heads": [
            {
                "site": one.site,
                "mode": one.mode,
                "factor": one.factor,
                "heads": [list(head) for head in one.heads],
                "chosen_by": one.heads.chosen_by,
            }
            for one in heads
        ],
        "experts": [
            {
                "mode": one.mode,
                "factor": one.factor,
                "place": one.place,
                "experts": [list(pair) for pair in one.pairs],
                "chosen_by": one.chosen_by,
            }
            for one in experts
        ],
    }
    if path.suffix == ".json":
        return write_atomically(path, json.dumps(content, indent=1) + "\n")
    return write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_parts(path: Path) -> Parts:
    """Read a file. Raises UserError for anything else than that."""
    content = _mapping(_parsed(path), _TOP, str(path))
    if content.get("version") != VERSION:
        raise UserError(
            f"{path}: version is {_short(content.get('version'))}, this program reads {VERSION}"
        )
    heads = [
        _heads(one, f"{path}: heads[{i}]") for i, one in enumerate(_list(content, "heads", path))
    ]
    experts = [
        _experts(one, f"{path}: experts[{i}]")
        for i, one in enumerate(_list(content, "experts", path))
    ]
    gate = _text(content, "gate", "oracle", str(path), check_gate)
    return tuple(heads), tuple(experts), cast(Gate, gate)


def _parsed(path: Path) -> Any:
    text = read_text(path, largest=LARGEST_FILE)
    try:
        return parse_json(text) if path.suffix == ".json" else parse_yaml(text, loader=_CoreLoader)
    except UserError as error:
        raise UserError(
            f"{path} is not an intervention ({error}): write one with .save()"
        ) from error


def _heads(value: Any, where: str) -> Constraint:
    given = _mapping(value, _HEADS, where)
    pairs = []
    for one in _list(given, "heads", where):
        if not isinstance(one, list) or len(one) != 2 or not all(type(n) is int for n in one):
            raise UserError(f"{where}: a head is [layer, head], not {_short(one)}")
        pairs.append((one[0], one[1]))
    site = _text(given, "site", "output", where, check_site)
    mode = _text(given, "mode", "zero", where)
    chosen_by = _text(given, "chosen_by", "by hand", where)
    factor = _number(given, where)
    try:
        check_mode(cast(Site, site), mode)
        heads = HeadSet(tuple(pairs), cast(Site, site), chosen_by)
        return Constraint(heads, cast(Mode, mode), factor)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _experts(value: Any, where: str) -> ExpertConstraint:
    given = _mapping(value, _EXPERTS, where)
    names: list[ExpertName] = []
    for one in _list(given, "experts", where):
        kinds = [type(part) for part in one] if isinstance(one, list) else []
        if kinds not in ([str, int], [int, str, int]):
            raise UserError(
                f"{where}: an expert is [projection, expert] or [layer, target, expert], not "
                f"{_short(one)}"
            )
        names.append(tuple(one))
    mode = _text(given, "mode", "off", where, check_expert_mode)
    place = _text(given, "place", "all", where, check_place)
    chosen_by = _text(given, "chosen_by", "by hand", where)
    factor = _number(given, where)
    try:
        return ExpertConstraint(
            names, cast(ExpertMode, mode), factor, cast(TokenScope, place), chosen_by
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _mapping(value: Any, known: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold the keys {', '.join(known)}, not {_short(value)}")
    for key in value:
        if key not in known:
            raise UserError(f"{where}: unknown key {_short(key)}; known: {', '.join(known)}")
    return value


def _list(given: dict[str, Any], key: str, where: object) -> list[Any]:
    value = given.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"{where}: {key} must be a list, not {_short(value)}")
    return value


def _text(
    given: dict[str, Any],
    key: str,
    default: str,
    where: str,
    check: Callable[[str], None] = lambda text: None,
) -> str:
    value = given.get(key, default)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise UserError(f"{where}: {key} must be a short text, not {_short(value)}")
    try:
        check(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return value


def _number(given: dict[str, Any], where: str) -> float:
    value = given.get("factor", 0.0)
    if type(value) not in (int, float) or not abs(value) < LARGEST_FACTOR:
        raise UserError(f"{where}: factor must be a number, not {_short(value)}")
    return float(value)


def _short(value: Any) -> str:
    """A value in a message: what is nested or long is not repeated."""
    if isinstance(value, str | int | float | bool) or value is None:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**9 else "a large number"
        return text if len(text) <= 40 else f"{text[:40]}…"
    return f"a {type(value).__name__}"
