"""Run a detector on raw questions, or on all questions of premises and their twins.

The default detector is the model's own, ``probes.detector_for(model)``. The questions are read as a
user asks them, without the opening of an answer.
"""

from collections.abc import Iterable
from dataclasses import replace

from interp.arguments import listed, shown
from interp.checked import checked
from interp.errors import UserError
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnyPremises
from probes.detector.detections import Detection, Detector, PremiseDetections
from probes.detector.support_detector import AnyDetector
from probes.detector.train import detector_for


def detect(
    model: HookedModel,
    questions: Iterable[str],
    *,
    detector: Detector | None = None,
    system: str | None = None,
    least: float | None = None,
    progress: bool = True,
) -> tuple[Detection, ...]:
    """One detection a question, by default from ``probes.detector_for(model)``.

    Args:
        least: the probability from which a trained detector fires, in place of its threshold.
            Detectors of other kinds decide for themselves.
    """
    detector = detector_for(model) if detector is None else detector
    if not isinstance(detector, Detector):
        raise UserError(f"detector is a premise detector (probes.Detector), not {shown(detector)}")
    if least is not None and isinstance(detector, AnyDetector):
        detector = replace(detector, threshold=least)
    texts = listed("questions", questions, "questions")
    found = tuple(detector.detect(model, texts, system=system, progress=progress))
    if len(found) != len(texts):
        raise UserError(f"the detector gave {len(found)} detections for {len(texts)} questions")
    return found


@checked
def detect_premises(
    model: HookedModel,
    premises: AnyPremises,
    *,
    detector: Detector | PremiseDetections | None = None,
    least: float | None = None,
    progress: bool = True,
) -> PremiseDetections:
    """Run the detector (by default the model's own) on every question and its twin.

    ``least`` is the probability from which it fires, as in ``detect``.
    Detections are returned as they are. Raises UserError if they belong to other premises.
    """
    if isinstance(detector, PremiseDetections):
        if detector.subjects != tuple(question.subject for question in premises.questions()):
            raise UserError("these detections are of other premises: detect again")
        return detector
    questions = premises.questions()
    filled = [premises.fill(question, kind) for kind in ("false", "twin") for question in questions]
    texts = [prompt.text for prompt in filled]
    found = detect(model, texts, detector=detector, least=least, progress=progress)
    n = len(questions)
    return PremiseDetections(
        false=found[:n],
        twin=found[n:],
        objects=tuple(prompt.object for prompt in filled[:n]),
        subjects=tuple(question.subject for question in questions),
    )
