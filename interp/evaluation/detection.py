"""What a detector says about the questions of an evaluation: the gate ``probe``.

All false-premise questions and their twins are read in one go. Detections are made on the bare
question, as a user asks it; the prompts that are scored have the opening of an answer behind it,
and the same tokens up to there, which is checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.forward.batch import Span
from interp.heads.significance import mean_interval
from interp.interventions.gate import Detection, Detector, detect, spans_of
from interp.premises.encode import EncodedPremises, encode_question
from interp.premises.questions import Premises, QuestionKind

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class PremiseDetections(Displayed):
    """Detections on the false-premise questions and on their twins.

    Attributes:
        false, twin: one detection a question.
        objects: characters of the false object in each false-premise question.
        subjects: of each question; intervals resample them.
    """

    false: tuple[Detection, ...]
    twin: tuple[Detection, ...]
    objects: tuple[Span, ...]
    subjects: tuple[str, ...]

    def of(self, kind: QuestionKind) -> tuple[Detection, ...]:
        """Those on the questions of one kind."""
        return self.false if kind == "false" else self.twin

    def to_dict(self, *, seed: int = 0) -> dict[str, Any]:
        """The block ``detection`` of evaluation.json; rates are [value, low, high].

        ``span_covers_object`` is the share of the detections on false premises whose span holds the
        whole false object; None where nothing fired.
        """

        def rate(flags: Sequence[bool], subjects: Sequence[str]) -> list[float]:
            return list(mean_interval([float(flag) for flag in flags], subjects, seed=seed))

        covered = [
            (span[0] <= start and end <= span[1], subject)
            for one, (start, end), subject in zip(
                self.false, self.objects, self.subjects, strict=True
            )
            if one.fired and (span := one.char_span) is not None
        ]
        return {
            "n": len(self.false),
            "fired_on_false": rate([one.fired for one in self.false], self.subjects),
            "fired_on_twins": rate([one.fired for one in self.twin], self.subjects),
            "span_covers_object": rate(*zip(*covered, strict=True)) if covered else None,
        }

    def plot(self) -> "go.Figure":
        """Probabilities of a false premise: of false premises beside those of their twins."""
        from interp.report.gate import detections_figure

        return detections_figure(
            [one.probability for one in self.false], [one.probability for one in self.twin]
        )

    def _shown(self) -> Shown:
        found = self.to_dict()
        fired, on_twins = found["fired_on_false"][0], found["fired_on_twins"][0]
        words = f"Fired on {fired:.0%} of {found['n']} false premises, on {on_twins:.0%} of twins."
        if found["span_covers_object"] is not None:
            words += f" Its words hold the false object in {found['span_covers_object'][0]:.0%}."
        return Shown(words, (), self.plot)


@checked
def detect_premises(
    model: Any,
    premises: Premises,
    *,
    detector: Detector | PremiseDetections | None = None,
    progress: bool = True,
) -> PremiseDetections:
    """Ask the detector (by default the model's own) about every question and its twin.

    What was found before is handed back as it is. Raises UserError if it is not of these premises.
    """
    if isinstance(detector, PremiseDetections):
        if detector.subjects != tuple(question.subject for question in premises.questions()):
            raise UserError("these detections are of other premises: detect again")
        return detector
    questions = premises.questions()
    false = [premises.fill(question, "false") for question in questions]
    twin = [premises.fill(question, "twin") for question in questions]
    found = detect(
        model, [one.text for one in (*false, *twin)], detector=detector, progress=progress
    )
    return PremiseDetections(
        false=found[: len(questions)],
        twin=found[len(questions) :],
        objects=tuple(one.object for one in false),
        subjects=tuple(question.subject for question in questions),
    )


def cloze_spans(
    model: Any,
    premises: Premises,
    encoded: EncodedPremises,
    kind: QuestionKind,
    detections: Sequence[Detection],
) -> list[Span | None]:
    """The spans found in the bare questions, as spans of the prompts that are scored.

    Raises:
        UserError: up to the end of a span the two prompts differ.
    """
    spans = spans_of(detections)
    for item, span in zip(encoded.items, spans, strict=True):
        if span is None:
            continue
        bare = encode_question(model.tokenizer, premises.fill(item.question, kind)).tokens
        if span[1] > len(bare) or bare[: span[1]] != item.prompt(kind).tokens[: span[1]]:
            raise UserError(
                f"the span [{span[0]}, {span[1]}) found in the question about "
                f"{item.question.subject!r} is not in the prompt with the opening of an answer"
            )
    return spans
