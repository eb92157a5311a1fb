"""``interp circuit``: the command that scores edges and runs circuits of them."""

from typing import Any

from rich.console import Console

from interp.cli.commands import engine_of, load, print_next, print_sentences
from interp.cli.config import settings_of, to_config
from interp.cli.options import CircuitOptions
from interp.cli.plan import print_plan
from interp.commands.circuit import CircuitSettings, circuit_run
from interp.commands.pairs import load_pairs
from interp.commands.plan import plan_circuit
from interp.figures.tables import rich_table
from interp.files.documents import read_json, write_yaml
from interp.report.circuit_page import circuit_sentences, shown_edges
from interp.runs.engines import check_engine
from interp.runs.lock import check_free
from interp.runs.usage import process_seconds


def circuit(options: CircuitOptions, console: Console) -> None:
    """Score edges and run circuits of them; see ``interp.commands.circuit``."""
    settings = settings_of(CircuitSettings, options)
    check_engine(options.engine, options.gpus_per_worker)
    check_free(options.out)
    load_pairs(settings)  # a broken file should not wait for the model
    model = load(options, console)
    checked: dict[str, Any] = {"check_dtype": options.dtype_check}
    if options.plan:
        before = process_seconds()
        print_plan(plan_circuit(model, settings, options.out, before=before, **checked), console)
        return
    with engine_of(options, model) as engine:
        found = circuit_run(model, settings, options.out, engine=engine, **checked)
    write_yaml(options.out / "config.yaml", to_config(options))
    summary = read_json(options.out / "summary.json")
    title = f"{found.method}: largest of {summary['n_edges']} edges"
    console.print(rich_table(shown_edges(found.to_dataframe(10, by=settings.by)), title=title))
    print_sentences(circuit_sentences(summary), console)
    print_next(f"report: {options.out / 'report.html'}", console)
