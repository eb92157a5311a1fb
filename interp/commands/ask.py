"""``interp ask`` as functions: questions answered without and with a run's constraint.

The model is a plain one of transformers, to which the constraint is attached. Questions come from
the command line, from a file, or one by one from standard input. One that cannot be asked does not
stop the others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.asking.ask import AskedModel, asked_model, gate_of
from interp.asking.compared import ComparedAnswer, counts_sentence
from interp.attached.what import intervention_of, run_of
from interp.commands.in_order import Asking, Outcome, Unasked, in_order, unasked_sentence
from interp.errors import UserError
from interp.exported.folder import MANIFEST, read_export
from interp.forward.generate import MAX_NEW_TOKENS, check_max_new_tokens
from interp.heads.shipped import shipped_by
from interp.interventions.intervention import Intervention
from interp.models.fingerprint import fingerprint_of_folder
from interp.models.spec import EMBEDDED, cache_root, resolve
from interp.premises.question_files import load_questions
from interp.premises.question_list import RawQuestion
from interp.runs.manifest import recorded_spec
from probes.detector.support_detector import load_detector

STDIN = "-"
AT_ONCE = 8
"""Questions that are answered together; those of standard input are answered one by one."""


@dataclass(frozen=True)
class AskSettings:
    """What is asked, and how."""

    file: Path | None = None
    """Ask the questions of this file: .csv, .json, .jsonl, or .txt with a question a line."""
    columns: str | None = None
    """Which column of the file is which part: question=prompt,false_object=wrong."""
    gate: Literal["probe", "oracle"] | None = None
    """probe: a detector finds the false words; oracle: they are named by --false-object or by the
    file. By default oracle if --false-object is given, else probe."""
    false_object: str | None = None
    """The words that may be false, which every question holds."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """The longest answer, in tokens."""
    detector: Path | None = None
    """The directory of a detector, in place of the run's own or the model's."""

    def __post_init__(self) -> None:
        check_max_new_tokens(self.max_new_tokens)
        if self.columns is not None and self.file is None:
            raise UserError("columns are for a file of questions: name it with --file")
        if self.gate == "probe" and self.false_object is not None:
            raise UserError("gate 'probe' finds the false words itself: leave --false-object out")
        told = self.gate == "oracle" or self.false_object is not None
        if told and self.detector is not None:
            raise UserError("a detector is for gate 'probe': leave --detector out")
        if self.gate == "oracle" and self.false_object is None and self.file is None:
            raise UserError("gate 'oracle' is told: name the words with --false-object")

    def words_of(self, question: RawQuestion) -> Any:
        """The words of a question that may be false, or their characters, if they are told."""
        return question.object_span if self.false_object is None else self.false_object


def questions_to_ask(
    questions: Sequence[str], settings: AskSettings, *, stdin: Iterable[bytes]
) -> Iterable[Asking]:
    """The questions of the command line, then of the file; ``-`` stands for standard input.

    One that cannot be asked, such as an empty one, is `Unasked`. Raises UserError where there are
    none, and for a file that cannot be read.
    """
    if not questions and settings.file is None:
        raise UserError(
            'ask something: interp ask RUN "question" …, or --file FILE, or - for standard input'
        )
    if STDIN in questions:
        if len(questions) > 1 or settings.file is not None:
            raise UserError("standard input (-) is asked alone: leave the other questions out")
        return lines_to_ask(stdin)
    asked = tuple(_question(number, text) for number, text in enumerate(questions, start=1))
    if settings.file is None:
        if len(asked) == 1 and isinstance(asked[0], Unasked):
            raise UserError(asked[0].error)
        return asked
    return (*asked, *load_questions(settings.file, columns=settings.columns))


def _question(number: int, text: str) -> Asking:
    try:
        return RawQuestion(text)
    except UserError as error:
        return Unasked(number, text, str(error))


def lines_to_ask(stream: Iterable[bytes]) -> Iterator[Asking]:
    """A question a line, as soon as it is there; empty lines are left out."""
    for number, raw in enumerate(stream, start=1):
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").strip()
        try:
            raw.decode("utf-8")
            if text:
                yield RawQuestion(text, line=number)
        except UnicodeDecodeError as error:
            yield Unasked(number, text, f"not UTF-8 text ({error.reason})")
        except UserError as error:
            yield Unasked(number, text, str(error))


@dataclass(frozen=True)
class Source:
    """What is asked.

    Attributes:
        intervention: the constraint.
        spec: of the model.
        run: the run directory that it comes from, if it is one.
        detector: the directory of its own detector, if it comes from an exported directory.
    """

    intervention: Intervention
    spec: str
    run: Path | None = None
    detector: Path | None = None


def source_of(run: str, model: str | None) -> Source:
    """What ``run`` names.

    Args:
        run: the directory of a run that was evaluated, or one of ``interp export``, a file of
            ``Intervention.save``, or the name of the embedded model, for which heads ship.
        model: the spec in place of the run's own, or of the embedded model.

    Raises UserError for anything else.
    """
    if run == EMBEDDED and not Path(run).exists():
        spec = model or EMBEDDED
        folder = resolve(spec)
        digest = fingerprint_of_folder(folder, cache=cache_root() / "fingerprints")
        if (shipped := shipped_by(digest)) is None:
            raise UserError(f"no heads ship for {spec}: find some with `interp locate`")
        return Source(Intervention.of(shipped.heads), spec)
    if not Path(run).exists():
        raise UserError(
            f"there is no run {run}: make one with `interp demo` or `interp locate` and `interp "
            f"evaluate`, or ask {EMBEDDED} with the heads that ship for it"
        )
    if (Path(run) / MANIFEST).is_file():
        return _exported(Path(run), model)
    found, folder = intervention_of(run), run_of(run)
    if folder is None:
        return Source(found, model or EMBEDDED)
    return Source(found, model or recorded_spec(folder), folder)


def _exported(folder: Path, model: str | None) -> Source:
    """An exported directory. Raises UserError if its weights hold the intervention."""
    exported = read_export(folder)
    if exported.is_baked:
        raise UserError(
            f"the weights in {folder} hold the intervention, so that there is no answer without "
            "it: ask the run that it was exported from"
        )
    spec = str(model or exported.base or exported.model["spec"])
    return Source(exported.intervention, spec, detector=exported.detector)


def open_asked(
    hf_model: Any,
    tokenizer: Any,
    source: Source,
    *,
    settings: AskSettings,
) -> AskedModel:
    """The model with the intervention. Raises UserError for what ``interp.attach`` refuses."""
    gate = gate_of(settings.gate, settings.false_object, source.intervention)
    if gate == "soft":
        gate = "probe"  # heads act in full here, or not at all
    under = Intervention.of(source.intervention, gate=gate)
    folder = settings.detector or (None if gate == "oracle" else source.detector)
    detector = None if folder is None else load_detector(folder)
    return asked_model(hf_model, tokenizer, under, run=source.run, detector=detector)


def ask_each(
    asked: AskedModel, questions: Iterable[Asking], settings: AskSettings
) -> Iterator[Outcome[ComparedAnswer]]:
    """Each question with its answers, in order, as soon as they are there."""

    def ask(some: Sequence[RawQuestion]) -> Sequence[ComparedAnswer]:
        told = asked.detecting is None
        return asked.compare(
            [question.text for question in some],
            false_object=[settings.words_of(question) for question in some] if told else None,
            max_new_tokens=settings.max_new_tokens,
        )

    return in_order(ask, questions, at_once=AT_ONCE if isinstance(questions, Sequence) else 1)


def outcome_row(outcome: Outcome[ComparedAnswer]) -> dict[str, Any]:
    """The JSON object of one question."""
    if isinstance(outcome, Unasked):
        return outcome.to_row()
    question, answer = outcome
    return {"line": question.line, **answer.to_row()}


def last_sentence(outcomes: Sequence[Outcome[ComparedAnswer]]) -> str:
    """How many questions were constrained, answered otherwise, and could not be asked."""
    answers = [outcome[1] for outcome in outcomes if not isinstance(outcome, Unasked)]
    return counts_sentence(answers) + unasked_sentence(outcomes)
