"""The function of each command: load the model, call the function behind it, print the outcome."""

import json
import sys
import webbrowser
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from interp.cli.answers import print_answers
from interp.cli.config import settings_of, to_config
from interp.cli.options import (
    AtlasOptions,
    DemoOptions,
    EngineOptions,
    EvaluateOptions,
    ExploreOptions,
    LocateOptions,
    ModelOptions,
    PatchOptions,
    PremisesOptions,
    ProbeOptions,
    ReportOptions,
)
from interp.cli.plan import print_plan
from interp.commands.atlas import atlas_run, page_of
from interp.commands.demo import DemoSettings, demo_run
from interp.commands.evaluate import SCORED, EvaluateSettings, evaluate_run
from interp.commands.evaluate_questions import (
    QuestionSettings,
    evaluate_questions_run,
    must_evaluate_first,
)
from interp.commands.known import premise_rows
from interp.commands.locate import LocateSettings
from interp.commands.locate_joint import load_search, relation_names, search_run
from interp.commands.pairs import load_pairs
from interp.commands.patch import PatchSettings, patch_run
from interp.commands.plan import plan_evaluate, plan_locate, plan_patch
from interp.commands.probe import ProbeSettings, probe_run
from interp.commands.report import report_run
from interp.commands.transfer import TRANSFER, transfer_run
from interp.errors import UserError
from interp.evaluation.evaluate import Evaluation
from interp.evaluation.transfer import OTHERS, Transfer
from interp.explore import check_installed, open_run
from interp.explore.opening import check_explorable
from interp.figures.probe_scores import detection_table
from interp.figures.questions import narrow_table, question_sentences
from interp.figures.tables import comparison_table, rich_table, setting_name
from interp.files.documents import read_json, write_jsonl, write_yaml
from interp.lazy import pd
from interp.models import load_model
from interp.models.hooked_model import HookedModel
from interp.premises.knowledge import check_knowledge
from interp.premises.questions import Premises, Question, load_premises
from interp.premises.registry import list_relations, load_relation
from interp.report.atlas import FIRST_COLUMNS
from interp.report.heads_page import write_report
from interp.report.patch_page import patch_sentences
from interp.report.summary import summary_sentences
from interp.runs.engines import check_engine, opened_engine
from interp.runs.lock import check_free
from interp.runs.manifest import check_same_model, recorded_quantization, recorded_spec
from interp.runs.shards import Engine
from interp.runs.usage import process_seconds

SHOWN = 10
"""Rows of a table of effects."""


def load(options: ModelOptions, console: Console) -> Any:
    """The hooked model that the options name, with a message on the screen while it loads."""
    with console.status(f"loading {options.model}"):
        return load_model(
            options.model,
            device=options.device,
            dtype=options.dtype,
            allow_pickle=options.allow_pickle,
            device_map=options.device_map,
            max_memory=options.max_memory,
            quantization=options.quantization,
        )


def run_options(options: Any) -> Any:
    """The options with what the run recorded of its model in place of what was not given."""
    quantization = options.quantization
    if options.model is None and quantization is None:
        quantization = recorded_quantization(options.run)
    spec = options.model or recorded_spec(options.run)
    return replace(options, model=spec, quantization=quantization)


def engine_of(options: EngineOptions, model: HookedModel) -> AbstractContextManager[Engine]:
    """The engine that the options name, for a model that ``load`` made."""
    return opened_engine(
        options.engine,
        model,
        address=options.address,
        workers=options.workers,
        gpus_per_worker=options.gpus_per_worker,
    )


def effects_table(effects: "pd.DataFrame", *, title: str, rows: int = SHOWN) -> Table:
    """The first rows with three digits; a dash for a value that was not computed."""
    text = effects.head(rows).map(
        lambda cell: f"{cell:.3g}" if isinstance(cell, float) else str(cell)
    )
    return rich_table(text.replace("nan", "–"), title=title)


def print_sentences(sentences: Iterable[str], console: Console) -> None:
    """Each sentence as an item of a list."""
    for sentence in sentences:
        console.print(f"• {sentence}", markup=False, highlight=False)


def print_next(text: str, console: Console) -> None:
    """The last line: where the results are, or the command to run next."""
    console.print(f"\n{text}", highlight=False, soft_wrap=True)


def demo(options: DemoOptions, console: Console) -> None:
    """All steps on the embedded model; see ``interp.commands.demo``."""
    settings = settings_of(DemoSettings, options)
    check_free(options.out)
    evaluations = demo_run(load(options, console), settings, options.out)
    write_yaml(options.out / "config.yaml", to_config(options))
    print_answers(evaluations[0].answers, console, count=settings.answers)
    print_evaluation(evaluations, options.out, console)
    print_next(f"report: {write_report(options.out)}", console)


def locate(options: LocateOptions, console: Console) -> None:
    """Measure the effects of all heads; see ``interp.commands.locate``."""
    settings = settings_of(LocateSettings, options)
    check_engine(options.engine, options.gpus_per_worker)
    check_free(options.out)
    relation_names(settings.relations)  # a misspelt relation should not wait for the model
    model = load(options, console)
    if options.plan:
        checked = {"check_dtype": options.dtype_check, "before": process_seconds()}
        print_plan(plan_locate(model, settings, options.out, **checked), console)
        return
    with engine_of(options, model) as engine:
        effects = search_run(
            model, settings, options.out, engine=engine, check_dtype=options.dtype_check
        )
    write_yaml(options.out / "config.yaml", to_config(options))
    columns = ["layer", "head", "effect", "ci_low", "ci_high", "q_value"]
    for site, site_effects in effects.items():
        title = f"site {site}: largest effects on the search part"
        console.print(effects_table(site_effects.to_dataframe().filter(items=columns), title=title))
    print_next(f"run: {options.out}   next: interp evaluate {options.out}", console)


def evaluate(options: EvaluateOptions, console: Console) -> None:
    """Score a run's heads on its held-out part; see ``interp.commands.evaluate``."""
    settings = settings_of(EvaluateSettings, options)
    asked = settings_of(QuestionSettings, options)
    questions = asked.load()  # a broken file should not wait for the model
    if questions is not None and options.plan:
        raise UserError("a plan is of the held-out questions: leave --questions out")
    check_engine(options.engine, options.gpus_per_worker)
    check_free(options.run)
    model = load(run_options(options), console)
    check_same_model(options.run, model)
    _, split, effects = load_search(options.run)
    where: Any = {"settings": settings, "run": options.run}
    if options.plan:
        print_plan(plan_evaluate(model, split, effects, before=process_seconds(), **where), console)
        return
    if settings.leave_one_out:
        with engine_of(options, model) as engine:
            transfer = transfer_run(model, split, effects, engine=engine, **where)
        print_transfer(transfer, options.run, console)
        return
    with engine_of(options, model) as engine:
        if questions is None or must_evaluate_first(options.run, settings):
            evaluations = evaluate_run(model, split, effects, engine=engine, **where)
            if settings.premises is not None:
                folder = options.run / SCORED / load_relation(settings.premises).name
                print_evaluation(evaluations, folder, console)
                print_next(f"results: {folder}", console)
                return
            print_evaluation(evaluations, options.run, console)
        if questions is not None:
            where |= {"questions": questions, "random_sets": asked.answer_null, "engine": engine}
            answers = evaluate_questions_run(model, split, effects, **where)
            print_questions(answers.to_dict(), console)
    print_next(f"next: interp report {options.run}", console)


def report(options: ReportOptions, console: Console) -> None:
    """Write the HTML report of a run."""
    console.print(f"report: {report_run(options.run)}", highlight=False, soft_wrap=True)


def atlas(options: AtlasOptions, console: Console) -> None:
    """Set run directories side by side; see ``interp.commands.atlas``."""
    found = atlas_run(options.runs, options.out)
    rows = found.to_dataframe()[FIRST_COLUMNS].astype(object).fillna(float("nan"))
    console.print(effects_table(rows, title="runs, as far as they went", rows=len(rows)))
    print_next(f"page: {page_of(options.out)}", console)


def explore(options: ExploreOptions, console: Console) -> None:
    """Serve the page of a run until it is interrupted; see ``interp.explore``."""
    check_installed()
    check_explorable(options.run)  # a misspelt run should not wait for the model
    explorer = open_run(options.run, model=load(run_options(options), console))
    # Panel is an optional package, imported only by this command.
    from interp.explore.serve import address_of, make_server

    server = make_server(explorer, port=options.port)
    address = address_of(server)
    console.print(f"exploring {options.run} at {address}   (Ctrl-C ends it)", highlight=False)
    if options.open:
        server.io_loop.add_callback(webbrowser.open, address)
    try:
        server.run_until_shutdown()
    except KeyboardInterrupt:
        console.print("ended")
    finally:
        server.stop()


def probe(options: ProbeOptions, console: Console) -> None:
    """Train probes and a detector; see ``interp.commands.probe``."""
    settings = settings_of(ProbeSettings, options)
    check_free(options.out)
    load_premises(options.premises)  # a misspelt relation should not wait for the model
    report, score = probe_run(load(options, console), settings, options.out)
    write_yaml(options.out / "config.yaml", to_config(options))
    text = report.to_dataframe().map(
        lambda cell: f"{cell:.3f}" if isinstance(cell, float) else cell
    )
    console.print(rich_table(text, title="AUC on held-out subjects and templates"))
    print_sentences([report.sentence], console)
    if score is not None:
        table = detection_table(score.to_dict())
        console.print(rich_table(table, title="the detector on held-out questions"))
    print_next(f"report: {options.out / 'report.html'}", console)


def patch(options: PatchOptions, console: Console) -> None:
    """Measure the effects of every unit of a component; see ``interp.commands.patch``."""
    settings = settings_of(PatchSettings, options)
    check_engine(options.engine, options.gpus_per_worker)
    check_free(options.out)
    load_pairs(settings)  # a broken file should not wait for the model
    model = load(options, console)
    if options.plan:
        checked = {"check_dtype": options.dtype_check, "before": process_seconds()}
        print_plan(plan_patch(model, settings, options.out, **checked), console)
        return
    with engine_of(options, model) as engine:
        result = patch_run(
            model, settings, options.out, engine=engine, check_dtype=options.dtype_check
        )
    write_yaml(options.out / "config.yaml", to_config(options))
    summary = read_json(options.out / "summary.json")
    top = result.to_dataframe().drop(columns=["p_value", "rank"])
    title = f"{result.component}, {result.method}: largest of {summary['n_units']} effects"
    console.print(effects_table(top, title=title))
    print_sentences(patch_sentences(summary), console)
    print_next(f"report: {options.out / 'report.html'}", console)


def premises(options: PremisesOptions, console: Console) -> None:
    """List, show, build or check premises."""
    actions = {"ls": _list, "show": _show, "build": _build, "check": _check}
    actions[options.action](options, console)


def print_evaluation(evaluations: list[Evaluation], run: Path, console: Console) -> None:
    """Print the comparison table and the summary."""
    content = read_json(run / "evaluation.json")
    table = comparison_table(content).set_index("setting").T.reset_index(names="measure")
    table = table.map(lambda cell: cell.replace(" [", "\n["))  # intervals on a separate line
    console.print(rich_table(table, title="held-out subjects and templates, [95 % interval]"))
    print_sentences(summary_sentences(content), console)
    first = evaluations[0].constraint.heads
    console.print(f"• heads (layer, head): {', '.join(map(str, first))}", highlight=False)


def print_transfer(transfer: Transfer, run: Path, console: Console) -> None:
    """Print the means over the relations, and each relation under the heads of all others."""
    columns = ["setting", "site", "mode", "n_heads", "baseline", "preference_accuracy"]
    columns += ["worst", "worst_in", "random_mean", "cost", "p_true_cost"]
    means = transfer.over_relations().filter(items=columns)
    console.print(effects_table(means, title="means over the relations", rows=len(means)))
    others = transfer.table[transfer.table["searched"] == OTHERS]
    columns = ["scored", "site", "n_heads", "n", "baseline", "preference_accuracy"]
    columns += ["random_mean", "cost", "p_true_cost"]
    rows = others.filter(items=columns)
    title = "each relation under the heads of all others"
    console.print(effects_table(rows, title=title, rows=len(rows)))
    print_next(f"table: {run / TRANSFER}   next: interp report {run}", console)


def print_questions(content: Mapping[str, Any], console: Console) -> None:
    """Print the rates of a ``questions.json`` and what they say."""
    title = f"{content['source']}: {setting_name(content)}, [95 % interval]"
    console.print(rich_table(narrow_table(content), title=title))
    print_sentences(question_sentences(content), console)


def _list(options: PremisesOptions, console: Console) -> None:
    relations = [load_relation(name) for name in list_relations()]
    rows = [
        (r.name, len(r.facts), len(r.templates), len(r.frames), r.near, r.description)
        for r in relations
    ]
    columns = ["relation", "facts", "templates", "frames", "near", "description"]
    table = pd.DataFrame(rows, columns=columns)
    console.print(rich_table(table))


def _show(options: PremisesOptions, console: Console) -> None:
    chosen = _chosen(options)
    asked = (chosen, chosen.in_frames()) if chosen.relation.frames else (chosen,)
    for premises in asked:
        for question in premises.questions()[: len(premises.templates)]:
            _show_question(premises, question, console)


def _show_question(premises: Premises, question: Question, console: Console) -> None:
    distance = premises.distance_of(question)
    name = f"template {question.template}" + (f" ({distance} false object)" if distance else "")
    console.print(name, style="bold", markup=False)
    for kind in ("false", "twin", "masked"):
        filled = premises.fill(question, kind)
        console.print(f"  {kind:7} {filled.text}", markup=False, highlight=False)
    console.print(f"  {'cloze':7} {premises.cloze(question)} …", markup=False, highlight=False)


def _chosen(options: PremisesOptions) -> Premises:
    return load_premises(
        options.premises, seed=options.seed, limit=options.limit, distance=options.distance
    )


def _build(options: PremisesOptions, console: Console) -> None:
    chosen = _chosen(options)
    rows: Iterable[dict[str, Any]] = premise_rows(chosen.split(seed=options.seed))
    if options.out is None:
        for row in rows:
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    if not options.out.parent.is_dir():
        raise UserError(f"{options.out.parent} is not a directory: make it first")
    console.print(f"wrote {write_jsonl(options.out, rows)}", highlight=False)


def _check(options: PremisesOptions, console: Console) -> None:
    chosen = _chosen(options)
    knowledge = check_knowledge(load(options, console), chosen, check=options.check)
    console.print(rich_table(knowledge.to_dataframe().astype(str)))
    console.print(knowledge.summary, markup=False, highlight=False)
    frames = ", ".join(chosen.relation.frame_names) or "none"
    console.print(f"frames: {frames}", markup=False, highlight=False)
