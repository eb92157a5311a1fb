"""``interp ask`` and ``interp detect``: standard output holds the outcome, and nothing else."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from interp.asking.compared import ComparedAnswer
from interp.cli.answers import print_answer
from interp.cli.commands import load, print_next, print_sentences, run_options
from interp.cli.config import settings_of
from interp.cli.options import AskOptions, DetectOptions, ModelOptions
from interp.commands.ask import (
    AskSettings,
    ask_each,
    last_sentence,
    open_asked,
    outcome_row,
    questions_to_ask,
    source_of,
)
from interp.commands.detect import (
    DetectSettings,
    detect_each,
    detection_rows,
    detection_sentences,
    detection_table,
    detector_of,
    shown_rows,
)
from interp.commands.in_order import Asking, Unasked
from interp.errors import UserError
from interp.figures.tables import rich_table
from interp.files.documents import write_table
from interp.models.plain import load_plain
from interp.progress import progress_bar
from interp.runs.manifest import recorded_quantization

COMMANDS = ("ask", "detect")


def ask(options: AskOptions, console: Console) -> None:
    """Answer questions without and with a run's constraint; see ``interp.commands.ask``."""
    settings = settings_of(AskSettings, options)
    questions = questions_to_ask(options.question, settings, stdin=getattr(sys.stdin, "buffer", ()))
    source = source_of(options.run, options.model)
    quantization = options.quantization
    if source.run is not None and options.model is None and quantization is None:
        quantization = recorded_quantization(source.run)
    errors = Console(stderr=True)
    with errors.status(f"loading {source.spec}"):
        hf_model, tokenizer = load_plain(
            source.spec,
            device=options.device,
            dtype=options.dtype,
            allow_pickle=options.allow_pickle,
            device_map=options.device_map,
            max_memory=options.max_memory,
            quantization=quantization,
        )
        asked = open_asked(hf_model, tokenizer, source, settings=settings)
    outcomes = []
    for outcome in _watched(ask_each(asked, questions, settings), questions, console):
        outcomes.append(outcome)
        if options.json:
            print_json(outcome_row(outcome), console)
        elif isinstance(outcome, Unasked):
            print_error(outcome.sentence, errors)
        else:
            _print(outcome[1], console)
        sys.stdout.flush()
    sentence = f"{asked.under.name}, gate {asked.under.gate}: {last_sentence(outcomes)}"
    errors.print(sentence, markup=False, highlight=False, soft_wrap=True)
    fail_if_unasked(outcomes)


def detect(options: DetectOptions, console: Console) -> None:
    """Detect false premises in questions; see ``interp.commands.detect``."""
    settings = settings_of(DetectSettings, options)
    questions = settings.load(options.file)
    if options.out is not None and not options.out.parent.is_dir():
        raise UserError(f"{options.out.parent} is not a directory: make it first")
    errors, spec = Console(stderr=True), options.model or ModelOptions.model
    chosen = replace(options, model=spec) if options.run is None else run_options(options)
    model = load(chosen, errors)
    outcomes = detect_each(
        model,
        questions,
        detector=detector_of(model, run=options.run, detector=settings.detector),
        least=settings.threshold,
    )
    table = detection_table(outcomes)
    if options.json:
        for row in detection_rows(outcomes):
            print_json(row, console)
    elif len(table):
        console.print(rich_table(shown_rows(table)))
    for outcome in outcomes:
        if isinstance(outcome, Unasked) and not options.json:
            print_error(outcome.sentence, errors)
    print_sentences(detection_sentences(table), errors)
    if options.out is not None:
        print_next(f"wrote {write_table(options.out, table)}", errors)
    fail_if_unasked(outcomes)


def print_json(row: dict[str, Any], console: Console) -> None:
    """One JSON object as a line, however wide the terminal is."""
    console.out(json.dumps(row, ensure_ascii=False), highlight=False)


def print_error(message: str, errors: Console) -> None:
    """One line on standard error; the command goes on."""
    errors.print("error:", style="bold red", end=" ")
    errors.print(message, markup=False, highlight=False, soft_wrap=True)


def fail_if_unasked(outcomes: Sequence[Any]) -> None:
    """Exit with code 2 if something could not be asked; the others are printed by now."""
    if any(isinstance(outcome, Unasked) for outcome in outcomes):
        sys.exit(2)


def _watched(outcomes: Iterator[Any], questions: Iterable[Asking], console: Console) -> Any:
    """The outcomes, with a progress bar if many are asked and their answers go to a file."""
    if console.is_terminal or not isinstance(questions, Sequence) or len(questions) == 1:
        return outcomes
    return progress_bar(outcomes, description="questions", total=len(questions))


def _print(answer: ComparedAnswer, console: Console) -> None:
    before, after = answer.answer_pieces()
    print_answer(
        console,
        question=answer.question_pieces(),
        note=answer.note,
        answers={"without": before, "with": after} if answer.fired else {"without": before},
    )
