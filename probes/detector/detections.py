"""Detections of false premises: of one question, and of premises and their twins.

A ``Detector`` gives one ``Detection`` a question. ``PremiseDetections`` holds those on the
false-premise questions of an evaluation and on their twins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_scores import detections_figure
from interp.forward.batch import Span
from interp.lazy import go
from interp.models.hooked_model import HookedModel
from interp.premises.questions import QuestionKind
from interp.statistics.significance import mean_interval


@dataclass(frozen=True)
class Detection(Displayed):
    """A detector's output for one question.

    Attributes:
        fired: whether it found a false premise.
        probability: of a false premise, 0 to 1.
        char_span: characters [start, end) of the false object in the question.
        token_span: its tokens [start, end) in the unpadded chat prompt of the question.

    Raises UserError for a detection that fired without saying where, an empty span, or a
    probability outside 0 to 1.
    """

    fired: bool
    probability: float
    char_span: Span | None = None
    token_span: Span | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"a probability lies between 0 and 1, not {self.probability}")
        if self.fired and (self.char_span is None or self.token_span is None):
            raise UserError("a detection that fired needs a char_span and a token_span")
        for name in ("char_span", "token_span"):
            span = getattr(self, name)
            if span is not None and not 0 <= span[0] < span[1]:
                raise UserError(f"{name} [{span[0]}, {span[1]}) is no span")

    def _shown(self) -> Shown:
        verdict = "A false premise" if self.fired else "No false premise found"
        words = f"{verdict}; probability {self.probability:.2f}."
        if self.char_span is not None and self.token_span is not None:
            (start, end), (first, last) = self.char_span, self.token_span
            words += f" Characters {start} to {end} of the question, tokens {first} to {last}."
        return Shown(words)


@runtime_checkable
class Detector(Protocol):
    """Anything that finds false premises in raw questions, such as ``probes.PremiseDetector``."""

    def detect(
        self,
        model: HookedModel,
        questions: Sequence[str],
        *,
        system: str | None = None,
        progress: bool = True,
    ) -> Sequence[Detection]:
        """One detection a question, in order."""
        ...


def covers(found: Span, wanted: Span) -> bool:
    """Whether span ``found`` holds the whole of ``wanted``."""
    return found[0] <= wanted[0] and wanted[1] <= found[1]


def spans_of(detections: Sequence[Detection]) -> list[Span | None]:
    """Where to act in each prompt: the token span where the detector fired, else None."""
    return [detection.token_span if detection.fired else None for detection in detections]


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

        asked = zip(self.false, self.objects, self.subjects, strict=True)
        covered = [
            (covers(found.char_span, wanted), subject)
            for found, wanted, subject in asked
            if found.fired and found.char_span is not None
        ]
        return {
            "n": len(self.false),
            "fired_on_false": rate([detection.fired for detection in self.false], self.subjects),
            "fired_on_twins": rate([detection.fired for detection in self.twin], self.subjects),
            "span_covers_object": rate(*zip(*covered, strict=True)) if covered else None,
        }

    def plot(self) -> "go.Figure":
        """Probabilities of a false premise: of false premises beside those of their twins."""
        return detections_figure(
            [detection.probability for detection in self.false],
            [detection.probability for detection in self.twin],
        )

    def _shown(self) -> Shown:
        found = self.to_dict()
        fired, on_twins = found["fired_on_false"][0], found["fired_on_twins"][0]
        words = f"Fired on {fired:.0%} of {found['n']} false premises, on {on_twins:.0%} of twins."
        if found["span_covers_object"] is not None:
            words += f" Its words hold the false object in {found['span_covers_object'][0]:.0%}."
        return Shown(words, (), self.plot)
