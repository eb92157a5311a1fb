"""``interp detect`` as a function: which questions presuppose something false, and which words.

The detector is the model's own, which ships or is trained once and kept in the user's cache, or
that of a run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.asking.compared import marked_text
from interp.commands.evaluate import run_detector
from interp.commands.in_order import Outcome, Unasked, in_order
from interp.commands.locate_joint import check_prompts, load_search
from interp.errors import UserError
from interp.figures.questions import group_name
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from interp.premises.question_files import load_questions
from interp.premises.question_list import QuestionList, RawQuestion
from interp.report.answers import mark_object
from interp.statistics.significance import mean_interval
from probes.detector.detect import detect
from probes.detector.detections import Detection, Detector
from probes.detector.support_detector import load_detector


@dataclass(frozen=True)
class DetectSettings:
    """Which questions are read, and how."""

    question: tuple[str, ...] = ()
    """Questions, in place of a file or besides it."""
    columns: str | None = None
    """Which column of the file is which part: question=prompt,label=is_fp."""
    threshold: float | None = None
    """The probability from which a question is said to have a false premise, 0 to 1; by default the
    detector's own."""
    detector: Path | None = None
    """The directory of a detector, in place of the model's own."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"threshold is a probability, 0 to 1, not {self.threshold:g}")

    def load(self, file: Path | None) -> QuestionList:
        """The questions of a file and of the settings. Raises UserError if there are none."""
        if file is None and not self.question:
            raise UserError("name a file of questions, or ask with --question 'TEXT'")
        if file is None:
            if self.columns is not None:
                raise UserError("columns are for a file of questions: name the file")
            return QuestionList.of(self.question)
        found = load_questions(file, columns=self.columns)
        asked = tuple(RawQuestion(text) for text in self.question)
        return QuestionList((*found.questions, *asked), found.source)


def detector_of(
    model: HookedModel, *, run: Path | None, detector: Path | None, progress: bool = True
) -> Detector | None:
    """The detector in a directory, or of a run; None for neither, the model's own.

    That of a run is trained on its search part the first time. Raises UserError for a detector of
    another model.
    """
    if detector is not None:
        return load_detector(detector, model=model)
    if run is None:
        return None
    settings, split, _ = load_search(run)
    check_prompts(run, model)
    return run_detector(model, split, run, seed=settings.seed, progress=progress)


def detect_each(
    model: HookedModel,
    questions: QuestionList,
    *,
    detector: Detector | None = None,
    least: float | None = None,
    progress: bool = True,
) -> list[Outcome[Detection]]:
    """Each question with its detection, in order; one that cannot be read stops no other."""

    def run(some: Sequence[RawQuestion]) -> Sequence[Detection]:
        texts = [question.text for question in some]
        return detect(model, texts, detector=detector, least=least, progress=progress)

    return list(in_order(run, questions, at_once=len(questions)))


def detection_rows(outcomes: Iterable[Outcome[Detection]]) -> list[dict[str, Any]]:
    """The values of each question by name; of one that could not be read, why.

    ``words`` are the words that the detector found, if any, and ``start`` and ``end`` their
    characters [start, end).
    """
    return [
        outcome.to_row() if isinstance(outcome, Unasked) else _row(*outcome) for outcome in outcomes
    ]


def detection_table(outcomes: Iterable[Outcome[Detection]]) -> "pd.DataFrame":
    """A row for each question that could be read.

    The columns are ``line``, ``question``, ``label``, ``fired``, ``probability``, ``words``,
    ``start`` and ``end``.
    """
    columns = list(_row(RawQuestion("a"), Detection(False, 0.0)))
    read = [_row(*outcome) for outcome in outcomes if not isinstance(outcome, Unasked)]
    rows = pd.DataFrame(read, columns=columns)
    return rows.astype({"start": "Int64", "end": "Int64"})  # whole numbers beside missing ones


def _row(question: RawQuestion, found: Detection) -> dict[str, Any]:
    start, end = found.char_span or (None, None)
    return {
        "line": question.line,
        "question": question.text,
        "label": question.group,
        "fired": found.fired,
        "probability": found.probability,
        "words": "" if found.char_span is None else question.text[start:end],
        "start": start,
        "end": end,
    }


def shown_rows(rows: "pd.DataFrame") -> "pd.DataFrame":
    """The rows for a terminal, with the words found marked where the detector fired."""
    columns = (rows[name] for name in ("question", "fired", "start", "end"))
    return pd.DataFrame(
        {
            "question": [
                marked_text(mark_object(text, (int(start), int(end)))) if fired else text
                for text, fired, start, end in zip(*columns, strict=True)
            ],
            "fired": ["yes" if fired else "no" for fired in rows["fired"]],
            "probability": [f"{value:.2f}" for value in rows["probability"]],
        }
    )


def detection_sentences(rows: "pd.DataFrame") -> Sequence[str]:
    """How often the detector fired, by label, with intervals over questions."""
    sentences = []
    for label, of_label in rows.groupby("label", sort=False):
        fired = of_label["fired"].astype(float).tolist()
        value, low, high = mean_interval(fired, of_label["question"].tolist())
        sentences.append(
            f"{group_name(label)}: fired on {value:.2f} [{low:.2f}, {high:.2f}] of {len(fired)}."
        )
    return sentences
