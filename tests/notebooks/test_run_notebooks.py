"""What the runner keeps and throws away: scripts/run_notebooks.py."""

import importlib.util
from pathlib import Path
from types import ModuleType

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "run_notebooks.py"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebooks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bars_go_and_warnings_stay(runner: ModuleType) -> None:
    bar = "search:   0%|          | 0/3\rsearch: 100%|██████████| 3/3 [00:01<00:00, 2.5it/s]\n"
    warning = "cell.py:1: UserWarning: look here\n"
    both = runner.cleaned(new_output("stream", name="stderr", text=bar + warning))
    assert both.text == warning
    assert runner.cleaned(new_output("stream", name="stderr", text=bar)) is None


def test_what_a_cell_prints_and_shows_stays(runner: ModuleType) -> None:
    printed = new_output("stream", name="stdout", text="50%| of it\n")
    assert runner.cleaned(printed).text == "50%| of it\n"
    shown = new_output("display_data", data={"text/html": "<p>a table</p>"})
    assert runner.cleaned(shown).data == {"text/html": "<p>a table</p>"}


def test_widgets_go(runner: ModuleType) -> None:
    data = {runner.WIDGET: {"model_id": "1"}, "text/plain": "a bar"}
    assert runner.cleaned(new_output("display_data", data=data)) is None


def test_new_text_keeps_the_outputs_of_unchanged_cells(runner: ModuleType, tmp_path: Path) -> None:
    before = new_notebook(
        cells=[new_markdown_cell("# Old"), new_code_cell("1"), new_code_cell("2")]
    )
    for number, cell in enumerate(before.cells[1:], start=1):
        cell.execution_count = number
        cell.outputs = [new_output("execute_result", data={"text/plain": str(number)})]
    nbformat.write(before, tmp_path / "a.ipynb")
    after = new_notebook(cells=[new_markdown_cell("# New"), new_code_cell("1"), new_code_cell("3")])
    jupytext.write(after, tmp_path / "a.py", fmt="py:percent")
    merged = runner.in_step(tmp_path / "a.py")
    assert [cell.source for cell in merged.cells] == ["# New", "1", "3"]
    assert merged.cells[1].outputs[0].data["text/plain"] == "1"
    assert merged.cells[1].execution_count == 1
    assert merged.cells[2].outputs == []
    assert [cell.id for cell in merged.cells] == ["cell-01", "cell-02", "cell-03"]


def test_an_unknown_notebook_is_refused(runner: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no notebook '99_none'; known: 01_first_look"):
        runner.chosen(["99_none"])
