"""Pages of other people's runs: whatever text stands in a file, it is shown as text or refused."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interp.commands.report import report_run
from interp.errors import UserError
from interp.patching import PatchEffects
from tests.fuzz.readers import READERS, fresh
from tests.report.pages import Page

HOSTILE = "</script><img src=x onerror=alert(1)><script>alert('x')</script>"
RUNS = {
    "patch": "run of patch, report",
    "probe": "run of probe, report",
    "compare": "run of compare, report",
}


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own script is the same in every page, and long."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")


def in_json(text: str) -> Iterator[str]:
    """The file with one text, or one key, in turn hostile."""
    whole = json.loads(text)

    def each(value: Any, put: Callable[[Any], Any]) -> Iterator[Any]:
        if isinstance(value, str):
            yield put(HOSTILE)
        elif isinstance(value, dict):
            for key in value:
                renamed = {HOSTILE if one == key else one: value[one] for one in value}
                yield put(renamed)
                yield from each(value[key], lambda new, k=key: put({**value, k: new}))
        elif isinstance(value, list):
            for place, one in enumerate(value):
                yield from each(
                    one, lambda new, at=place: put([*value[:at], new, *value[at + 1 :]])
                )

    return (json.dumps(one) for one in each(whole, lambda new: new))


def in_csv(text: str) -> Iterator[str]:
    """The table with one cell of its head and its first two rows in turn hostile."""
    rows = list(csv.reader(io.StringIO(text)))
    for row in range(min(3, len(rows))):
        for column in range(len(rows[row])):
            changed = [list(one) for one in rows]
            changed[row][column] = HOSTILE
            out = io.StringIO()
            csv.writer(out).writerows(changed)
            yield out.getvalue()


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a figure, its keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)


def check(source: str, usual: Page) -> bool:
    """That nothing of the text acts; returns whether it is to be seen."""
    page = Page(source)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in usual.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    own = [text for attributes, text in page.scripts if "type" not in attributes]
    assert own == [text for attributes, text in usual.scripts if "type" not in attributes]
    figures = page.figures()
    assert figures.keys() <= usual.figures().keys()
    for text in texts_in(figures):  # plotly reads its labels as a kind of HTML
        assert "<img" not in text
        assert "<script" not in text
    in_attributes = any(HOSTILE in str(one) for _, some in page.tags for one in some.values())
    in_figures = any("&lt;img" in text for text in texts_in(figures))
    return HOSTILE in page.shown or in_attributes or in_figures


@pytest.mark.parametrize("kind", RUNS)
def test_no_text_of_a_file_becomes_markup(kind: str, tmp_path: Path) -> None:
    reader, run = READERS[RUNS[kind]], tmp_path / "run"
    valid = fresh(reader, run)
    usual = Page(report_run(run).read_text(encoding="utf-8"))
    assert not check((run / "report.html").read_text(encoding="utf-8"), usual)
    made, seen, refused = 0, 0, list[str]()
    for name, content in valid.items():
        if reader.kinds[name] not in ("json", "csv"):
            continue
        changes = in_json if reader.kinds[name] == "json" else in_csv
        for changed in changes(content.decode("utf-8")):
            (run / name).write_text(changed, encoding="utf-8")
            try:
                page = report_run(run).read_text(encoding="utf-8")
            except UserError as error:
                refused.append(str(error))
                continue
            seen += check(page, usual)
            made += 1
        (run / name).write_bytes(content)
    # And it is a test: pages were made, the text is in some of them, and some were refused.
    assert made >= 10
    assert seen >= 3
    assert len(refused) >= 10
    assert not [message for message in refused if "\n" in message]


def test_no_name_in_patching_effects_becomes_markup(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fresh(READERS[RUNS["patch"]], run)
    path = run / "effects.safetensors"
    result = PatchEffects.load(path)
    usual = Page(report_run(run).read_text(encoding="utf-8"))
    hostile: dict[str, Any] = {
        "labels": {"span": (HOSTILE, "object", "end")},
        "component": HOSTILE,
        "metric": HOSTILE,
        "method": HOSTILE,
        "source": HOSTILE,
        "groups": (HOSTILE, *result.groups[1:]),
        "metadata": {"model": HOSTILE, "pairs": HOSTILE},
    }
    seen = []
    for name, value in hostile.items():
        replace(result, **{name: value}).save(path)
        if check(report_run(run).read_text(encoding="utf-8"), usual):
            seen.append(name)
    assert "labels" in seen
