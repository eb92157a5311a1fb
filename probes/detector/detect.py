"""Asking a detector: about raw questions, or about all questions of premises and their twins.

Without a detector, the model's own is asked. Of premises, all false-premise questions and their
twins are read in one go, as bare questions, the way a user asks them.
"""

from collections.abc import Sequence

from interp.arguments import shown
from interp.checked import checked
from interp.errors import UserError
from interp.models.hooked_model import HookedModel
from interp.premises.questions import Premises
from probes.detector.detections import Detection, Detector, PremiseDetections
from probes.detector.train import detector_for


def detect(
    model: HookedModel,
    questions: Sequence[str],
    *,
    detector: Detector | None = None,
    system: str | None = None,
    progress: bool = True,
) -> tuple[Detection, ...]:
    """One detection a question; by default by the detector that belongs to the model.

    That one is ``probes.detector_for(model)``: read from the user's cache, or trained.
    """
    if detector is None:
        detector = detector_for(model)
    if not isinstance(detector, Detector):
        raise UserError(f"detector is a premise detector (probes.Detector), not {shown(detector)}")
    found = tuple(detector.detect(model, questions, system=system, progress=progress))
    if len(found) != len(questions):
        raise UserError(f"the detector gave {len(found)} detections for {len(questions)} questions")
    return found


@checked
def detect_premises(
    model: HookedModel,
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
