"""Fit the support test of a detector: weights of its evidence, calibration and threshold.

A part of the questions, as many of each relation, is tested, with the entities that cross-validated
probes found in them; so the scores that are weighed are those of relations that the probes were not
fitted on. Three weights are fitted. The threshold is the lowest that keeps false alarms on twins,
and on the background, within the allowed shares, as in `probes.detector.fit`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import UserError
from probes.detector.calibration import Calibration, CalibrationMethod, fit_calibration
from probes.detector.dataset import DetectorDataset
from probes.detector.detector import PremiseDetector
from probes.detector.evidence import weigh
from probes.detector.fit import (
    BACKGROUND_ALARMS,
    LEAST_PROBABILITY,
    CombinedScores,
    choose_threshold,
    default_false_alarms,
)
from probes.detector.questions import AskedQuestion
from probes.detector.scored import TokenScores
from probes.detector.support import ReadContrast
from probes.detector.support_detector import EVIDENCE, SupportDetector, measured
from probes.scoring import area_under_curve

QUESTIONS = 1000
"""Questions, false and true, that are tested."""
PROVENANCE = ("relations", "relations_beside", "folds", "n_subjects", "seed")
"""What of the probes' training also holds for the test."""
FALSE_ALARMS_NEW, FALSE_ALARMS_SEEN = 0.005, 0.0125
"""Allowed share of twins of relations that a fold leaves out, where new relations will be asked
about, and where those that were trained on will: these have fewer than a relation left out."""
BACKGROUND_SEEN = 0.01
"""Allowed share of the background in the second case. There are some two hundred such texts, so
that half of it is one text, which may be any."""
MISSED = 0.05
"""Share of false premises with a pair whose falsity may lie below the floor."""
SURENESS = 0.25
"""Of the median distance between the mention scores of a false premise's entities."""


class NothingToTest(UserError):
    """The probes suspect questions of one class only: a test has nothing to tell apart."""


def fit_support(
    material: DetectorDataset,
    detector: PremiseDetector,
    *,
    scores: CombinedScores,
    read: ReadContrast,
    n_questions: int = QUESTIONS,
    max_false_alarms: float | None = None,
    seen: bool = False,
    calibration: CalibrationMethod = "platt",
) -> SupportDetector:
    """Fit the test of what ``detector`` suspects.

    Args:
        material, scores: what the detector was fitted on, and its cross-validated scores there.
        read: runs the questions without their earlier entities.
        n_questions: questions, false and true, that are tested.
        max_false_alarms: share of twins on which it may fire, as for `fit_detector`.
        seen: the relations that will be asked about are among those trained on. The default share
            is then ``FALSE_ALARMS_SEEN``, else ``FALSE_ALARMS_NEW``.

    Raises:
        NothingToTest: the probes suspect false premises only, or none.
    """
    chosen = evenly_chosen(material, n_questions)
    labels, tokens = material.labels[chosen], _token_scores(material, scores)
    of_tokens = [tokens[index] for index in chosen]
    begun = SupportDetector(
        detector,
        weights=(1.0, 0.0, 0.0),
        bias=0.0,
        floor=-np.finfo(float).max,
        calibration=Calibration("platt"),
        threshold=1.0,
    )
    asked = [material.questions[index].asked for index in chosen]
    suspected = zip(begun.suspects(asked, of_tokens), labels, strict=True)
    of_pairs = [part for part, label in suspected if label and part.pair is not None]
    if not of_pairs:
        raise NothingToTest("no two entities were found in any false premise: give more facts")
    begun = replace(
        begun,
        floor=float(np.quantile([part.falsity for part in of_pairs], MISSED)),
        sureness=SURENESS * float(np.median([part.sureness for part in of_pairs])),
    )
    evidence = _evidence(begun, asked, of_tokens, read=read)
    tested = np.isfinite(evidence[:, 0])
    if len(set(labels[tested].tolist())) < 2:
        raise NothingToTest("the probes suspect questions of one class only: give more facts")
    weights, bias = weigh(evidence[tested], labels[tested] == 1)
    weighed = replace(begun, weights=weights, bias=bias)
    log_odds = evidence @ np.array(weights) + bias
    curve = fit_calibration(log_odds[tested], labels[tested], method=calibration)
    texts = [text.asked for text in material.background][1::2]
    of_texts = _evidence(begun, texts, _background_scores(material, detector), read=read)
    of_texts = of_texts @ np.array(weights) + bias
    probabilities, background = (_probabilities(curve, part) for part in (log_odds, of_texts))
    least = LEAST_PROBABILITY if max_false_alarms is None else 0.0
    if max_false_alarms is None:
        share = FALSE_ALARMS_SEEN if seen else FALSE_ALARMS_NEW
        max_false_alarms = default_false_alarms(int((labels == 0).sum()), share)
    allowed = (max_false_alarms, BACKGROUND_SEEN if seen else BACKGROUND_ALARMS)
    threshold = max(least, choose_threshold(probabilities, labels, background, *allowed))
    ranked = np.where(tested, log_odds, log_odds[tested].min() - 1)
    training: dict[str, Any] = {
        **{name: detector.training[name] for name in PROVENANCE if name in detector.training},
        "questions": len(chosen),
        "tested_false": float(tested[labels == 1].mean()),
        "tested_twins": float(tested[labels == 0].mean()),
        "tested_background": float(np.isfinite(of_texts).mean()) if len(texts) else None,
        "auc": area_under_curve(torch.from_numpy(ranked).float(), torch.from_numpy(labels)),
        "false_alarms_allowed": max_false_alarms,
        "fired_on_false": float((probabilities >= threshold)[labels == 1].mean()),
        "fired_on_twins": float((probabilities >= threshold)[labels == 0].mean()),
    }
    return replace(weighed, calibration=curve, threshold=threshold, training=training)


def _probabilities(
    curve: Calibration, log_odds: Float[np.ndarray, " question"]
) -> Float[np.ndarray, " question"]:
    """Calibrated; 0 for questions that were not tested."""
    found, tested = np.zeros(len(log_odds)), np.isfinite(log_odds)
    found[tested] = curve(log_odds[tested])
    return found


def evenly_chosen(material: DetectorDataset, n_questions: int) -> Int[np.ndarray, " chosen"]:
    """Questions that count, false and twin in turn, about as many of each relation."""
    false = material.counted & (material.labels == 1)
    numbers = np.unique(material.relations[false])
    each = max(1, n_questions // (2 * len(numbers)))
    chosen: list[int] = []
    for number in numbers:
        # A question's twin follows it.
        places = np.flatnonzero(false & (material.relations == number))
        kept = places[
            np.unique(np.linspace(0, len(places) - 1, min(each, len(places))).astype(int))
        ]
        chosen += [index for place in kept.tolist() for index in (place, place + 1)]
    return np.array(chosen)


def _token_scores(material: DetectorDataset, scores: CombinedScores) -> list[TokenScores]:
    """Of each question, from the folds that held it out."""
    columns = torch.stack([scores.tokens, scores.mention, scores.entity], dim=1)
    return TokenScores.of_questions(columns, _tensor(material.read_predictions()), material.sizes)


def _background_scores(material: DetectorDataset, detector: PremiseDetector) -> list[TokenScores]:
    """Of the background texts that the probes were not fitted on."""
    if not material.background:
        return []
    sizes = [len(text.asked.offsets) for text in material.background]
    values = torch.stack([material.read_background(at) for at in detector.read_layers], dim=1)
    predictions = _tensor(material.read_background_predictions())
    combined = detector.combined(values, predictions, sizes)
    return TokenScores.of_questions(combined, predictions, sizes)[1::2]


def _tensor(values: Float[np.ndarray, "token 3"] | None) -> Float[Tensor, "token 3"] | None:
    return None if values is None else torch.from_numpy(values)


def _evidence(
    detector: SupportDetector,
    asked: Sequence[AskedQuestion],
    scores: Sequence[TokenScores],
    *,
    read: ReadContrast,
) -> Float[np.ndarray, "question 3"]:
    """`EVIDENCE` of each question; NaN where nothing is tested."""
    found = np.full((len(asked), len(EVIDENCE)), np.nan)
    suspicions = detector.suspects(asked, scores)
    for row, supported in measured(suspicions, asked, scores, read=read).items():
        found[row] = suspicions[row].falsity, *supported
    return found
