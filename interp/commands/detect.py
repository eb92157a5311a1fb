"""``interp detect`` as a function: which questions presuppose something false, and which words.

The detector is the model's own, which is trained once and kept in the user's cache, or that of a
run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from interp.commands.evaluate import run_detector
from interp.commands.locate import check_same_prompts, load_run
from interp.errors import UserError
from interp.figures.questions import group_name
from interp.forward.batch import Span
from interp.models.hooked_model import HookedModel
from interp.premises.question_files import load_questions
from interp.premises.question_list import QuestionList, RawQuestion
from interp.statistics.significance import mean_interval
from probes.detector.detect import detect
from probes.detector.detections import Detection, Detector


@dataclass(frozen=True)
class DetectSettings:
    """Which questions are read."""

    question: tuple[str, ...] = ()
    """Questions, in place of a file or besides it."""
    columns: str | None = None
    """Which column of the file is which part: question=prompt,label=is_fp."""

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


def detector_of_run(model: HookedModel, run: Path, *, progress: bool = True) -> Detector:
    """The detector of a run, which is trained on its search part the first time."""
    settings, split, _ = load_run(run)
    check_same_prompts(run, model)
    return run_detector(model, split, run, seed=settings.seed, progress=progress)


def detection_rows(
    model: HookedModel,
    questions: QuestionList,
    *,
    detector: Detector | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row a question: ``line``, ``question``, ``label``, ``fired``, ``probability``, ``words``.

    ``words`` are the words that the detector found, if any, and ``start`` and ``end`` their
    characters [start, end).
    """
    found = detect(model, questions.texts, detector=detector, progress=progress)
    rows = pd.DataFrame([_row(*pair) for pair in zip(questions, found, strict=True)])
    return rows.astype({"start": "Int64", "end": "Int64"})  # whole numbers beside missing ones


def _row(question: RawQuestion, found: Detection) -> dict[str, object]:
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


def shown_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows for a terminal, with the words found in ``»…«`` where the detector fired."""
    columns = (rows[name] for name in ("question", "fired", "start", "end"))
    return pd.DataFrame(
        {
            "question": [
                marked(text, (int(start), int(end))) if fired else text
                for text, fired, start, end in zip(*columns, strict=True)
            ],
            "fired": ["yes" if fired else "no" for fired in rows["fired"]],
            "probability": [f"{value:.2f}" for value in rows["probability"]],
        }
    )


def marked(text: str, words: Span) -> str:
    """A text with some of its characters in ``»…«``."""
    start, end = words
    return f"{text[:start]}»{text[start:end]}«{text[end:]}"


def detection_sentences(rows: pd.DataFrame) -> Sequence[str]:
    """How often the detector fired, by label, with intervals over questions."""
    sentences = []
    for label, of_label in rows.groupby("label", sort=False):
        fired = of_label["fired"].astype(float).tolist()
        value, low, high = mean_interval(fired, of_label["question"].tolist())
        sentences.append(
            f"{group_name(label)}: fired on {value:.2f} [{low:.2f}, {high:.2f}] of {len(fired)}."
        )
    return sentences
