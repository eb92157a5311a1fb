"""Interventions on disk: a small YAML or JSON file, to read, write and share.

::

    version: 1
    gate: oracle
    heads:
    - {site: attention, mode: zero, heads: [[3, 1], [7, 4]], origin: {model: ..., ...}}
    experts:
    - {mode: off, place: all, experts: [[blocks.3.attn.q, 2], [4, attn.v, 0]]}

Files are read as data only: no Python objects are constructed, unknown keys are refused, every
value is checked, and messages repeat at most a word of the file.
"""

import json
import re
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml

from interp.errors import UserError, errors_in
from interp.files.documents import write_atomically
from interp.files.text import PlainLoader, parse_json, parse_yaml, read_text
from interp.heads.headset import HeadSet, Site, check_site
from interp.heads.origin import Origin
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
MOST_STEPS = 10**9
_TOP = ("version", "gate", "heads", "experts")
_HEADS = ("site", "mode", "factor", "decoding_steps", "heads", "chosen_by", "origin")
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
"""The content of a file: constraints of heads, constraints of experts, and the gate."""


def write_parts(parts: Parts, path: Path) -> Path:
    """Write a file that ``read_parts`` reads; JSON if its name ends in ``.json``, else YAML."""
    heads, experts, gate = parts
    content: dict[str, Any] = {"version": VERSION, "gate": gate}
    content["heads"] = [
        {
            **{key: getattr(part, key) for key in ("site", "mode", "factor")},
            # Left out where it says nothing, as in files of versions that did not know it.
            **({} if part.decoding_steps is None else {"decoding_steps": part.decoding_steps}),
            "heads": [list(head) for head in part.heads],
            "chosen_by": shortened(part.heads.chosen_by),
            **({} if part.heads.origin is None else {"origin": part.heads.origin.to_dict()}),
        }
        for part in heads
    ]
    content["experts"] = [
        {
            **{key: getattr(part, key) for key in ("mode", "factor", "place")},
            "experts": [list(pair) for pair in part.pairs],
            "chosen_by": shortened(part.chosen_by),
        }
        for part in experts
    ]
    if path.suffix == ".json":
        return write_atomically(path, json.dumps(content, indent=1) + "\n")
    return write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def shortened(text: str) -> str:
    """A text, of such a length that it can be read again."""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def read_parts(path: Path) -> Parts:
    """Read a file that ``write_parts`` wrote, or a person. Raises UserError for anything else."""
    text = read_text(path, largest=LARGEST_FILE)
    try:
        json_file = path.suffix == ".json"
        content = parse_json(text) if json_file else parse_yaml(text, loader=_CoreLoader)
    except UserError as error:
        raise UserError(
            f"{path} is not an intervention ({error}): write one with .save()"
        ) from error
    with errors_in(path):
        given = _mapping(content, _TOP)
        if (version := given.get("version")) != VERSION:
            raise UserError(f"version is {_short(version)}, this program reads {VERSION}")
        heads = tuple(_heads(part, i) for i, part in enumerate(_list(given, "heads")))
        experts = tuple(_experts(part, i) for i, part in enumerate(_list(given, "experts")))
        gate = _text(given, "gate", "oracle")
        check_gate(gate)
    return heads, experts, cast(Gate, gate)


def _heads(value: Any, index: int) -> Constraint:
    with errors_in(f"heads[{index}]"):
        given = _mapping(value, _HEADS)
        pairs = []
        for head in _list(given, "heads"):
            if not isinstance(head, list) or [type(number) for number in head] != [int, int]:
                raise UserError(f"a head is [layer, head], not {_short(head)}")
            pairs.append((head[0], head[1]))
        site = _text(given, "site", "output")
        check_site(site)
        mode = _text(given, "mode", "zero")
        check_mode(cast(Site, site), mode)
        chosen_by = _text(given, "chosen_by", "by hand")
        origin = Origin.from_dict(given.get("origin"))
        heads = HeadSet(tuple(pairs), cast(Site, site), chosen_by, origin)
        steps = given.get("decoding_steps")
        if steps is not None and (type(steps) is not int or not 0 <= steps < MOST_STEPS):
            raise UserError(f"decoding_steps must be a whole number, not {_short(steps)}")
        return Constraint(heads, cast(Mode, mode), _factor(given), steps)


def _experts(value: Any, index: int) -> ExpertConstraint:
    with errors_in(f"experts[{index}]"):
        given = _mapping(value, _EXPERTS)
        names: list[ExpertName] = []
        for name in _list(given, "experts"):
            kinds = [type(part) for part in name] if isinstance(name, list) else []
            if kinds not in ([str, int], [int, str, int]):
                raise UserError(
                    "an expert is [projection, expert] or [layer, target, expert], not "
                    f"{_short(name)}"
                )
            names.append(tuple(name))
        mode, place = _text(given, "mode", "off"), _text(given, "place", "all")
        check_expert_mode(mode)
        check_place(place)
        chosen_by = _text(given, "chosen_by", "by hand")
        return ExpertConstraint(
            names, cast(ExpertMode, mode), _factor(given), cast(TokenScope, place), chosen_by
        )


def _mapping(value: Any, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"must hold the keys {', '.join(known)}, not {_short(value)}")
    for key in value:
        if key not in known:
            raise UserError(f"unknown key {_short(key)}; known: {', '.join(known)}")
    return value


def _list(given: dict[str, Any], key: str) -> list[Any]:
    value = given.get(key)
    if value is not None and not isinstance(value, list):
        raise UserError(f"{key} must be a list, not {_short(value)}")
    return value or []


def _text(given: dict[str, Any], key: str, default: str) -> str:
    value = given.get(key, default)
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise UserError(f"{key} must be a short text, not {_short(value)}")
    return value


def _factor(given: dict[str, Any]) -> float:
    value = given.get("factor", 0.0)
    if type(value) not in (int, float) or not abs(value) < LARGEST_FACTOR:
        raise UserError(f"factor must be a number, not {_short(value)}")
    return float(value)


def _short(value: Any) -> str:
    """A value in a message: nested or long values are not repeated."""
    if isinstance(value, str | int | float | bool) or value is None:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**9 else "a large number"
        return text if len(text) <= 40 else f"{text[:40]}…"
    return f"a {type(value).__name__}"
