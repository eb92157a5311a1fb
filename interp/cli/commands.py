"""What each command does: load, call the function behind it, print a table and where things are."""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from interp.cli.config import settings_of, to_config
from interp.cli.effects_table import effects_table
from interp.cli.loading import engine_of, load
from interp.cli.options import (
    DemoOptions,
    EvaluateOptions,
    LocateOptions,
    PremisesOptions,
    ReportOptions,
)
from interp.commands.demo import DemoSettings, demo_run
from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.known import premise_rows
from interp.commands.locate import LocateSettings, load_run, locate_run
from interp.commands.report import report_run
from interp.errors import UserError
from interp.evaluation.evaluate import Evaluation
from interp.figures.tables import comparison_table, rich_table
from interp.files.documents import read_json, write_jsonl, write_yaml
from interp.premises.knowledge import check_knowledge
from interp.premises.questions import load_premises
from interp.premises.registry import list_relations, load_relation
from interp.report.heads_page import write_report
from interp.report.summary import agreement_sentence, summary_sentences
from interp.runs.engines import check_engine
from interp.runs.lock import check_free
from interp.runs.manifest import check_same_model, recorded_model


def demo(options: DemoOptions, console: Console) -> None:
    """The whole way; see ``interp.commands.demo``."""
    settings = settings_of(DemoSettings, options)
    check_free(options.out)
    evaluations = demo_run(load(options, console), settings, options.out)
    write_yaml(options.out / "config.yaml", to_config(options))
    print_evaluation(evaluations, options.out, console)
    console.print(f"\nreport: {write_report(options.out)}", highlight=False, soft_wrap=True)


def locate(options: LocateOptions, console: Console) -> None:
    """Effects of all heads; see ``interp.commands.locate``."""
    settings = settings_of(LocateSettings, options)
    check_engine(options.engine)
    check_free(options.out)
    load_premises(options.premises)  # a misspelt relation should not wait for the model
    model = load(options, console)
    with engine_of(options, model) as engine:
        effects = locate_run(
            model, settings, options.out, engine=engine, check_dtype=options.dtype_check
        )
    write_yaml(options.out / "config.yaml", to_config(options))
    for site, one in effects.items():
        shown = ["layer", "head", "effect", "ci_low", "ci_high", "q_value"]
        top = one.to_dataframe().filter(items=shown)
        title = f"site {site}: largest effects on the search part"
        console.print(effects_table(top, title=title))
    console.print(f"\nrun: {options.out}   next: interp evaluate {options.out}", highlight=False)


def evaluate(options: EvaluateOptions, console: Console) -> None:
    """Held-out scores of a run's heads; see ``interp.commands.evaluate``."""
    settings = settings_of(EvaluateSettings, options)
    check_engine(options.engine)
    recorded = recorded_model(options.run)
    check_free(options.run)
    spec = options.model or recorded["spec"]
    model = load(replace(options, model=spec), console)
    check_same_model(options.run, model)
    _, split, effects = load_run(options.run)
    with engine_of(options, model) as engine:
        evaluations = evaluate_run(model, split, effects, settings, options.run, engine=engine)
    print_evaluation(evaluations, options.run, console)
    console.print(f"\nnext: interp report {options.run}", highlight=False, soft_wrap=True)


def report(options: ReportOptions, console: Console) -> None:
    """The HTML file of a run."""
    console.print(f"report: {report_run(options.run)}", highlight=False, soft_wrap=True)


def premises(options: PremisesOptions, console: Console) -> None:
    """Relations and their questions."""
    actions = {"ls": _list, "show": _show, "build": _build, "check": _check}
    actions[options.action](options, console)


def print_evaluation(evaluations: list[Evaluation], run: Path, console: Console) -> None:
    """The comparison table and the summary in words."""
    content = read_json(run / "evaluation.json")
    table = comparison_table(content).set_index("setting").T.reset_index(names="measure")
    table = table.map(lambda cell: cell.replace(" [", "\n["))  # intervals on a line of their own
    console.print(rich_table(table, title="held-out subjects and templates, [95 % interval]"))
    sentences = list(summary_sentences(content))
    if (run / "agreement.json").is_file():
        sentence = agreement_sentence(read_json(run / "agreement.json"))
        sentences += [sentence] if sentence else []
    for sentence in sentences:
        console.print(f"• {sentence}", markup=False, highlight=False)
    first = evaluations[0].constraint.heads
    console.print(f"• heads (layer, head): {', '.join(map(str, first))}", highlight=False)


def _list(options: PremisesOptions, console: Console) -> None:
    import pandas as pd

    relations = [load_relation(name) for name in list_relations()]
    rows = [(r.name, len(r.facts), len(r.templates), r.description) for r in relations]
    table = pd.DataFrame(rows, columns=["relation", "facts", "templates", "description"])
    console.print(rich_table(table))


def _show(options: PremisesOptions, console: Console) -> None:
    chosen = load_premises(options.premises, seed=options.seed, limit=options.limit)
    for question in chosen.questions()[: len(chosen.templates)]:
        console.print(f"template {question.template}", style="bold", markup=False)
        for kind in ("false", "twin", "masked"):
            filled = chosen.fill(question, kind)
            console.print(f"  {kind:7} {filled.text}", markup=False, highlight=False)
        console.print(f"  {'cloze':7} {chosen.cloze(question)} …", markup=False, highlight=False)


def _build(options: PremisesOptions, console: Console) -> None:
    chosen = load_premises(options.premises, seed=options.seed, limit=options.limit)
    rows: Iterable[dict[str, Any]] = premise_rows(chosen.split(seed=options.seed))
    if options.out is None:
        for row in rows:
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    if not options.out.parent.is_dir():
        raise UserError(f"{options.out.parent} is not a directory: make it first")
    console.print(f"wrote {write_jsonl(options.out, rows)}", highlight=False)


def _check(options: PremisesOptions, console: Console) -> None:
    chosen = load_premises(options.premises, seed=options.seed, limit=options.limit)
    knowledge = check_knowledge(load(options, console), chosen, check=options.check)
    console.print(rich_table(knowledge.to_dataframe().astype(str)))
    console.print(knowledge.summary, markup=False, highlight=False)
