"""Valid files made invalid: by byte, by piece of text, and by what stands in their structure.

Every draw comes from the generator that is handed in, so a seed gives the same inputs again. Files
that hold a checksum of themselves mostly get the right one, as a forger would see to: otherwise
nothing behind it would ever be reached.
"""

import csv
import io
import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from interp.files.tensor_file import CHECKSUM, checksum
from interp.runs.shards import digest_of

DEEP: Any = []
for _ in range(80):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**63, -(2**63), 10**40, 10**400),
    *(0.5, -0.0, 1e-300, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *("", " ", "x", "0", "nan", "1e999", "9" * 5000, "a" * 20_000, "\x00", "\x1b[2J", "\ud800"),
    *("../../../etc/passwd", "/etc/passwd", "C:\\x", ".", "..", "CON", "a\nb", "\u2028", "\ufeff"),
    *("=cmd|' /C calc'!A0", "<script>alert(1)</script>", "</script>", "{subject}", "{", "%{x}"),
    *("𝕏é" * 40, "\u202eright to left", "İ", "ﬁ", "__class__", "output", "attention", "zero"),
    *([], {}, [[]], [None], [1, 2, 3], [[0, 0]], [[0, 1, 2]], {"": {}}, {"a": 1}, DEEP),
)
PIECES: tuple[bytes, ...] = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\r\n", b"\x85", b"\x1b[31m"),
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 4400, b"null", b"[" * 200, b"{" * 200),
    *(b'"', b"'", b"\\", b"\\ud800", b",", b":", b"- ", b"&a ", b"*a", b"<<: *a", b"!!int ''"),
    *(b"!!python/object/apply:os.system ['x']", b"!!timestamp x", b"!!binary x", b"? [a]\n: b"),
    *(b"2024-99-99", b"190:20:30", b"%YAML 9\n---\n", b"\n---\n", b"\t", b"{subject}", b"}", b";"),
    *(b"=HYPERLINK()", b"<img src=x onerror=alert(1)>", b"a" * 3000, b"\n" * 50, b"../" * 20),
)
CELLS: tuple[str, ...] = (
    *(one for one in VALUES if isinstance(one, str) and one != "\ud800"),
    *("NA", "1e400", "-1", "0.5", "1_000", "١", "True", "9" * 400, '"', "a,b", "inf", "-inf"),
)

_PARSERS = (yaml.YAMLError, csv.Error, struct.error)
Mutation = Callable[[bytes, random.Random], bytes]


def mutate(raw: bytes, kind: str, draw: random.Random) -> bytes:
    """One to three changes of a file of that kind ("json", "jsonl", "csv", "tensors", …)."""
    by_structure = _BY_KIND.get(kind)
    for _ in range(draw.choice((1, 1, 1, 1, 2, 3))):
        roll = draw.random()
        if by_structure is not None and roll < 0.75:
            raw = _kept(by_structure, raw, draw)
        elif roll < 0.97:
            raw = draw.choice(_BY_BYTES)(raw, draw)
        else:
            raw = draw.randbytes(draw.randrange(200))
    return signed(raw, kind) if draw.random() < 0.9 else raw


def signed(raw: bytes, kind: str) -> bytes:
    """The file with its checksum made right; as it is if it has none, or cannot be parsed."""
    try:
        if kind == "tensors":
            header, data = _header_and_data(raw)
            texts = header["__metadata__"]
            del texts[CHECKSUM]
            texts[CHECKSUM] = checksum(header, data)
            return _tensor_bytes(header, data)
        if kind == "json":
            content = json.loads(raw)
            del content["sha256"]
            return json.dumps({**content, "sha256": digest_of(content)}).encode()
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError, struct.error):
        pass
    return raw


def _kept(mutation: Mutation, raw: bytes, draw: random.Random) -> bytes:
    """The mutated file; by bytes where an earlier mutation left nothing to parse."""
    try:
        return mutation(raw, draw)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, *_PARSERS):
        return draw.choice(_BY_BYTES)(raw, draw)


def _flip(raw: bytes, draw: random.Random) -> bytes:
    changed = bytearray(raw or b"\x00")
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _cut(raw: bytes, draw: random.Random) -> bytes:
    return raw[: draw.randrange(len(raw) + 1)]


def _drop(raw: bytes, draw: random.Random) -> bytes:
    begin = draw.randrange(len(raw) + 1)
    return raw[:begin] + raw[begin + draw.randrange(40) :]


def _repeat(raw: bytes, draw: random.Random) -> bytes:
    begin = draw.randrange(len(raw) + 1)
    piece = raw[begin : begin + draw.randrange(1, 80)]
    return raw[:begin] + piece * draw.choice((2, 2, 5)) + raw[begin:]


def _insert(raw: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(raw) + 1)
    return raw[:at] + draw.choice(PIECES) + raw[at:]


def _replace(raw: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(raw) + 1)
    return raw[:at] + draw.choice(PIECES) + raw[at + draw.randrange(12) :]


_BY_BYTES: tuple[Mutation, ...] = (_flip, _cut, _drop, _repeat, _insert, _replace)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside, the outermost included."""
    yield path
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _places(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _places(one, (*path, index))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def change_value(value: Any, draw: random.Random) -> Any:
    """A JSON-like value with one place changed: replaced, swapped, removed, repeated, wrapped."""
    places = list(_places(value))
    path = draw.choice(places)
    old = _at(value, path)
    new = draw.choice(
        (
            draw.choice(VALUES),
            draw.choice(VALUES),
            _at(value, draw.choice(places)),
            [old],
            {"x": old},
            str(old)[:50],
        )
    )
    if not path:
        return new
    parent, last = _at(value, path[:-1]), path[-1]
    action = draw.choice(("set", "set", "set", "remove", "add", "rename"))
    if action == "remove":
        del parent[last]
    elif action == "add" and isinstance(parent, list):
        parent.insert(last, new)
    elif action == "rename" and isinstance(parent, dict):
        parent[draw.choice(("", "x", "__class__", "\x00", "a" * 3000))] = parent.pop(last)
    else:
        parent[last] = new
    return value


def _json(raw: bytes, draw: random.Random) -> bytes:
    return _dumped(change_value(json.loads(raw), draw), draw)


def _dumped(value: Any, draw: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=draw.random() < 0.8)
    return text.encode("utf-8", "surrogatepass")


def _jsonl(raw: bytes, draw: random.Random) -> bytes:
    lines = raw.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at] = _json(lines[at], draw)
    return b"\n".join(lines)


def _yaml(raw: bytes, draw: random.Random) -> bytes:
    value = change_value(yaml.safe_load(raw), draw)
    return yaml.safe_dump(value, allow_unicode=draw.random() < 0.5).encode("utf-8", "replace")


def _csv(raw: bytes, draw: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(raw.decode("utf-8"), newline="")))
    row = draw.choice(rows)
    at = draw.randrange(len(row))
    action = draw.choice(("set", "set", "set", "drop", "add", "column", "copy"))
    if action == "set":
        row[at] = draw.choice(CELLS)
    elif action == "drop":
        del row[at]
    elif action == "add":
        row.insert(at, draw.choice(CELLS))
    elif action == "column":
        for one in rows:
            del one[at]
    else:
        rows.append(list(row))
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue().encode("utf-8", "replace")


def _tensors(raw: bytes, draw: random.Random) -> bytes:
    """A safetensors file: its header, the JSON inside its metadata, its numbers, or its length."""
    header, rest = _header_and_data(raw)
    size, data = len(raw) - 8 - len(rest), bytearray(rest)
    kept = header.get("__metadata__")
    action = draw.random()
    if action < 0.5 and kept:
        name = draw.choice(list(kept))
        kept[name] = _kept(_json, kept[name].encode(), draw).decode("utf-8", "replace")
    elif action < 0.75:
        header = change_value(header, draw)
    elif action < 0.95 and data:
        at = draw.randrange(len(data))
        data[at : at + 8] = draw.choice((b"\xff" * 8, b"\x00\x00\xc0\x7f" * 2, b"\x7f\xf0" * 4))
        data = data[: len(raw) - 8 - size]
    else:
        size = draw.choice((0, 1, 2**20, 2**60, 2**64 - 1, size + 1))
        return struct.pack("<Q", size) + raw[8:]
    return _tensor_bytes(header, bytes(data))


def _header_and_data(raw: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def _tensor_bytes(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _gguf(raw: bytes, draw: random.Random) -> bytes:
    """A number of the header replaced by one that claims too much."""
    changed = bytearray(raw)
    at = draw.choice((8, 16, draw.randrange(max(1, min(len(raw), 2000)))))
    form = draw.choice(("<Q", "<I"))
    value = draw.choice(
        (0, 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1, draw.randrange(99))
    )
    changed[at : at + struct.calcsize(form)] = struct.pack(
        form, value % 2 ** (8 * struct.calcsize(form))
    )
    return bytes(changed)


_BY_KIND: dict[str, Mutation] = {
    "json": _json,
    "jsonl": _jsonl,
    "yaml": _yaml,
    "csv": _csv,
    "tensors": _tensors,
    "gguf": _gguf,
}
