"""What the runner keeps and throws away: scripts/run_notebooks.py."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "run_notebooks.py"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebooks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def v4() -> ModuleType:
    """Makes cells and outputs; its libraries take seconds, which no other process need take."""
    import nbformat.v4

    return nbformat.v4


def test_bars_go_and_warnings_stay(runner: ModuleType, v4: ModuleType) -> None:
    bar = "search:   0%|          | 0/3\rsearch: 100%|██████████| 3/3 [00:01<00:00, 2.5it/s]\n"
    warning = "cell.py:1: UserWarning: look here\n"
    both = runner.cleaned(v4.new_output("stream", name="stderr", text=bar + warning))
    assert both.text == warning
    assert runner.cleaned(v4.new_output("stream", name="stderr", text=bar)) is None


def test_what_a_cell_prints_and_shows_stays(runner: ModuleType, v4: ModuleType) -> None:
    printed = v4.new_output("stream", name="stdout", text="50%| of it\n")
    assert runner.cleaned(printed).text == "50%| of it\n"
    shown = v4.new_output("display_data", data={"text/html": "<p>a table</p>"})
    assert runner.cleaned(shown).data == {"text/html": "<p>a table</p>"}


def test_widgets_go(runner: ModuleType, v4: ModuleType) -> None:
    data = {runner.WIDGET: {"model_id": "1"}, "text/plain": "a bar"}
    assert runner.cleaned(v4.new_output("display_data", data=data)) is None


def test_new_text_keeps_the_outputs_of_unchanged_cells(
    runner: ModuleType, v4: ModuleType, tmp_path: Path
) -> None:
    import jupytext
    import nbformat

    before = v4.new_notebook(
        cells=[v4.new_markdown_cell("# Old"), v4.new_code_cell("1"), v4.new_code_cell("2")]
    )
    for number, cell in enumerate(before.cells[1:], start=1):
        cell.execution_count = number
        cell.outputs = [v4.new_output("execute_result", data={"text/plain": str(number)})]
    nbformat.write(before, tmp_path / "a.ipynb")
    after = v4.new_notebook(
        cells=[v4.new_markdown_cell("# New"), v4.new_code_cell("1"), v4.new_code_cell("3")]
    )
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
