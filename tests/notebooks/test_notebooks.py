"""The saved notebooks: in step with their scripts, executed, clean, and small enough to be read."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
PLOTLY, PNG = "application/vnd.plotly.v1+json", "image/png"
PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.-]+/){2,}[\w.-]+|[A-Z]:\\\\\w|site-packages")
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
LINK = re.compile(r"\]\(([^)#]+)\)")
each_notebook = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def read(script: Path) -> Any:
    import nbformat  # seconds, which no other process need take

    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(value: Any, key: str = "") -> Iterator[str]:
    """Every text in nested JSON but pictures and plotly's packed numbers."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, key)
    elif isinstance(value, str) and key not in (PNG, "bdata"):
        yield value


def test_the_six_notebooks_are_there() -> None:
    assert [script.stem[:2] for script in SCRIPTS] == ["01", "02", "03", "04", "05", "06"]
    saved = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert saved == {script.stem for script in SCRIPTS}


@each_notebook
def test_both_of_a_pair_hold_the_same_cells(script: Path) -> None:
    import jupytext

    source = [(cell.cell_type, cell.source) for cell in jupytext.read(script).cells]
    assert [(cell.cell_type, cell.source) for cell in read(script).cells] == source


@each_notebook
def test_every_cell_was_executed_in_order_and_none_failed(script: Path) -> None:
    notebook = read(script)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in {output.output_type for output in outputs(notebook)}


@each_notebook
def test_no_warnings_bars_or_widgets_were_saved(script: Path) -> None:
    notebook = read(script)
    assert [o.text for o in outputs(notebook) if o.get("name") == "stderr"] == []
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", {})}
    assert not [kind for kind in kinds if "widget" in kind]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(not cell.metadata for cell in notebook.cells)


@each_notebook
def test_a_code_host_can_show_it(script: Path) -> None:
    assert script.with_suffix(".ipynb").stat().st_size < 1_000_000
    figures = [o.data for o in outputs(read(script)) if PLOTLY in o.get("data", {})]
    assert figures
    for figure in figures:
        assert base64.b64decode(figure[PNG]).startswith(b"\x89PNG")


@each_notebook
def test_nothing_of_the_machine_is_in_it(script: Path) -> None:
    found = list(texts(json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))))
    assert [one for one in found if PATH.search(one) or ADDRESS.search(one)] == []


@each_notebook
def test_links_lead_somewhere(script: Path) -> None:
    text = "\n".join(cell.source for cell in read(script).cells if cell.cell_type == "markdown")
    links = LINK.findall(text)
    assert links
    assert [link for link in links if not (FOLDER / link).is_file()] == []


def test_five_lines_reach_the_first_heat_map() -> None:
    first = code_cells(read(FOLDER / "01_first_look.py"))[0]
    assert len([line for line in first.source.splitlines() if line.strip()]) <= 5
    (figure,) = [o.data[PLOTLY] for o in first.outputs if PLOTLY in o.get("data", {})]
    assert figure["data"][0]["type"] == "heatmap"


@pytest.mark.parametrize(
    "text", ["see /opt/some/place/file.py:3", "lib/site-packages/x", "C:\\\\x"]
)
def test_paths_of_a_machine_are_recognised(text: str) -> None:
    assert PATH.search(text)


@pytest.mark.parametrize("text", ["https://a.org/b/c/d.html", "</td></tr>", "docs/a/b.md", "1/2/3"])
def test_other_slashes_are_no_paths_of_a_machine(text: str) -> None:
    assert not PATH.search(text)
