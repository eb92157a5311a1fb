"""Questions whose two entities are known, and probes that read them."""

from typing import Any

import torch

import interp.models
from probes import Calibration, PremiseDetector
from probes.detector.evidence import Combination
from probes.detector.pair import Pair

TEXTS = (
    "Why is Paris the capital of Germany?",
    "In which year did Rome become the capital of Spain?",
    "Which buildings of Japan stand in its capital, Buenos Aires?",
)
PAIRS = (("Paris", "Germany"), ("Rome", "Spain"), ("Japan", "Buenos Aires"))


def pair_of(question: Any, words: tuple[str, str]) -> Pair:
    """The tokens of two words of a question, in their order."""
    places = [(question.text.index(word), word) for word in words]
    return Pair(*(question.tokens_at((at, at + len(word))) for at, word in places))


def probes_of(model: Any, n_probes: int = 3, **changes: Any) -> PremiseDetector:
    """The first ``n_probes`` of three random ones after the second block of a model of width 32."""
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {
        "weight": weight[:n_probes],
        "bias": (0.0, 0.0, 0.0)[:n_probes],
        "layer": 1,
        "calibration": Calibration("platt"),
        "threshold": 0.0,
        "fingerprint": interp.models.fingerprint(model),
        "combination": Combination(("falsity", "entropy"), (1.0, 0.0), 0.0),
    }
    return PremiseDetector(**{**options, **changes})
