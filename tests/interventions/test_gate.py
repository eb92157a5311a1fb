"""Detections as values, and the detector that is asked when none is given."""

from collections.abc import Sequence
from typing import Any

import pytest

from interp.errors import UserError
from interp.interventions import Detection, Detector, detect
from interp.interventions.gate import check_gate
from probes.detector.detections import spans_of

FIRED = Detection(True, 0.9, (3, 8), (7, 9))
QUIET = Detection(False, 0.2)


class Stub:
    """Says the same to every question, and remembers what it was asked."""

    def __init__(self, found: Sequence[Detection]) -> None:
        self.found = tuple(found)
        self.asked: list[Any] = []

    def detect(
        self,
        model: Any,
        questions: Sequence[str],
        *,
        system: str | None = None,
        progress: bool = True,
    ) -> Sequence[Detection]:
        self.asked.append((model, tuple(questions), system, progress))
        return self.found


def test_a_detection_says_where() -> None:
    assert spans_of([FIRED, QUIET, Detection(False, 0.4, (3, 8), (7, 9))]) == [(7, 9), None, None]
    with pytest.raises(UserError, match="needs a char_span and a token_span"):
        Detection(True, 0.9, (3, 8))
    with pytest.raises(UserError, match="lies between 0 and 1, not"):
        Detection(False, 1.5)
    with pytest.raises(UserError, match=r"token_span \[7, 7\) is no span"):
        Detection(True, 0.9, (3, 8), (7, 7))
    with pytest.raises(UserError, match="unknown gate 'guess'; known: oracle, probe, soft"):
        check_gate("guess")


def test_a_detector_is_asked_once_for_all_questions() -> None:
    stub = Stub([FIRED, QUIET])
    assert isinstance(stub, Detector)
    model: Any = object()
    found = detect(model, ["a", "b"], detector=stub, system="s", progress=False)
    assert found == (FIRED, QUIET)
    assert stub.asked == [(model, ("a", "b"), "s", False)]
    with pytest.raises(UserError, match="gave 2 detections for 1 questions"):
        detect(model, ["a"], detector=stub)


def test_without_one_the_models_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    stub, seen = Stub([QUIET]), []
    model: Any = object()
    monkeypatch.setattr(
        "probes.detector.detect.detector_for", lambda model: seen.append(model) or stub
    )
    assert detect(model, ["a"]) == (QUIET,)
    assert seen == [model]
