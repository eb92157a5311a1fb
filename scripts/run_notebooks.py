"""Execute the notebooks and write their outputs back: ``python scripts/run_notebooks.py [NAME …]``.

The percent script ``notebooks/NAME.py`` is the source of ``notebooks/NAME.ipynb``. Each one runs in
a kernel of its own and is written with its outputs, less what only matters while it runs (progress
bars, widgets, times) and with a picture beside every plotly figure, since code hosts draw no
scripts. The pictures are made here and not in the kernel, so that a notebook needs no browser.
``--sync`` takes over the script's text, keeps the outputs of unchanged cells, and runs nothing.
``--check`` runs everything with nbmake and writes nothing, ``--jobs`` notebooks side by side.
"""

import argparse
import base64
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import kaleido
import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
TIMEOUT = 600
PLOTLY, PNG = "application/vnd.plotly.v1+json", "image/png"
SIZE = {"width": 760, "height": 450}
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
}


def main() -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(description="Execute the notebooks and keep their outputs.")
    parser.add_argument("names", nargs="*", help="such as 01_first_look; all of them by default")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="execute with nbmake, write nothing")
    action.add_argument("--sync", action="store_true", help="take over text, keep the outputs")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks checked side by side")
    arguments = parser.parse_args()
    scripts = chosen(arguments.names)
    if arguments.check:
        return check(scripts, arguments.jobs)
    for script in scripts:
        notebook = in_step(script)
        if not arguments.sync:
            seconds = execute(notebook)
            print(f"{script.stem}: {seconds:.0f} s", flush=True)
        nbformat.write(notebook, script.with_suffix(".ipynb"))
    return 0


def chosen(names: list[str]) -> list[Path]:
    """The scripts of these notebooks, or of all."""
    known = sorted(FOLDER.glob("[0-9]*.py"))
    unknown = sorted(set(names) - {script.stem for script in known})
    if unknown:
        listed = ", ".join(script.stem for script in known)
        sys.exit(f"error: there is no notebook {unknown[0]!r}; known: {listed}")
    return [script for script in known if not names or script.stem in names]


def check(scripts: list[Path], jobs: int) -> int:
    """Execute the saved notebooks with nbmake; the exit code is pytest's."""
    files = [str(script.with_suffix(".ipynb")) for script in scripts]
    command = [sys.executable, "-m", "pytest", "--nbmake", f"--nbmake-timeout={TIMEOUT}"]
    environment = kernel_environment()
    if jobs > 1:
        command += ["--numprocesses", str(min(jobs, len(files))), "--dist", "worksteal"]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return subprocess.run([*command, "--durations=0", *files], env=environment).returncode


def kernel_environment() -> dict[str, str]:
    """Figures as plotly's JSON, whatever the machine's own settings are."""
    return {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"}


def in_step(script: Path) -> NotebookNode:
    """The script's cells as a notebook, with the outputs of cells whose text is unchanged."""
    notebook = jupytext.read(script)
    notebook.metadata = nbformat.from_dict(METADATA)
    saved = script.with_suffix(".ipynb")
    before = nbformat.read(saved, as_version=4).cells if saved.is_file() else []
    outputs = {cell.source: cell for cell in before if cell.cell_type == "code"}
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{number:02}", NotebookNode()
        if cell.cell_type == "code" and cell.source in outputs:
            cell.outputs = outputs[cell.source].outputs
            cell.execution_count = outputs[cell.source].execution_count
    return notebook


def execute(notebook: NotebookNode) -> float:
    """Run all cells, clean their outputs and add pictures; returns the seconds that it ran."""
    begin = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute(env=kernel_environment())
    seconds = time.perf_counter() - begin
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [one for one in map(cleaned, cell.outputs) if one is not None]
    add_pictures(notebook)
    return seconds


def cleaned(output: Any) -> Any | None:
    """An output without what only matters while it runs; None if nothing is left of it."""
    if output.output_type == "stream" and output.name == "stderr":
        output.text = "".join(line for line in output.text.splitlines(True) if not is_bar(line))
        return output if output.text.strip() else None
    if WIDGET in output.get("data", {}):
        return None
    return output


def is_bar(line: str) -> bool:
    """Whether a line is a progress bar, or tqdm's hint that widgets would make nicer ones."""
    # A bar writes itself over and over in one line; what is left of the last one is empty.
    bar = "%|" in line or "it/s]" in line or "?it" in line or not line.strip("\r\n\x1b[A ")
    return bar or "TqdmWarning" in line or "notebook_tqdm" in line


def add_pictures(notebook: NotebookNode) -> None:
    """A PNG beside every plotly figure, from one browser for all."""
    logging.getLogger("kaleido").setLevel(logging.ERROR)
    logging.getLogger("choreographer").setLevel(logging.ERROR)
    outputs = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if PLOTLY in output.get("data", {})
    ]
    if not outputs:
        return
    kaleido.start_sync_server(silence_warnings=True)
    try:
        for output in outputs:
            content = output.data[PLOTLY]
            figure = go.Figure(data=content["data"], layout=content["layout"])
            size = {name: content["layout"].get(name, usual) for name, usual in SIZE.items()}
            picture = kaleido.calc_fig_sync(figure, opts={"format": "png", **size})
            output.data[PNG] = base64.b64encode(picture).decode()
    finally:
        kaleido.stop_sync_server(silence_warnings=True)


if __name__ == "__main__":
    sys.exit(main())
