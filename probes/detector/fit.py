"""Fit a premise detector: choose its layer, directions, calibration and threshold.

The data are questions about facts that the model knows, each with a false and with the true object;
every object is false as often as it is true (`probes.detector.balance`). The falsity probe is
fitted on the tokens of the questions: label 1 at the completion of a false premise, 0 at that of a
true one and, with less weight, at all other tokens. Tokens after a false completion are left out.
All tokens of the *background*, texts without a premise, are of label 0. The mention probe is fitted
on the tokens up to the completion, with label 1 for the object's.

Layer, calibration and threshold are chosen by cross-validation with folds that hold out subjects
and templates at the same time. The threshold is the lowest that keeps false alarms on true-premise
twins within the allowed share. The final probes are the means of the folds' probes: probes refitted
on all questions would have scores on another scale, for which calibration and threshold do not
hold.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.progress import progress_bar
from probes.detector.calibration import (
    CalibrationMethod,
    expected_calibration_error,
    fit_calibration,
)
from probes.detector.dataset import FOLDS, DetectorDataset, Folds
from probes.detector.detections import covers
from probes.detector.detector import PremiseDetector
from probes.detector.span import false_words
from probes.linear import fit_direction
from probes.scoring import area_under_curve, groups_of

logger = logging.getLogger(__name__)

TOKEN_C = 0.003
"""Inverse strength of the L2 penalty; there are ten times as many tokens as prompts."""
OTHER_TOKENS = 0.1
"""Weight of a token at which no premise is completed."""
KEPT_TOKENS = 0.4
"""Share of such tokens that are fitted on, to save time; their weight is divided by it."""
FALSE_ALARMS, MOST_FALSE_ALARMS = 0.01, 0.05
"""Allowed share of twins on which the detector fires, and the most allowed where twins are few."""
ALARMS = 3
"""Number of twins that may fire, as long as their share is at most ``MOST_FALSE_ALARMS``."""
LAYER_FOLDS = 3


def fit_falsity(
    material: DetectorDataset,
    fitted: Bool[np.ndarray, " question"],
    *,
    activations: Float[Tensor, "token d_model"],
    background: Float[Tensor, "background_token d_model"],
    seed: int,
) -> tuple[Float[Tensor, " d_model"], float]:
    """Weight and bias of the falsity probe, from some of the questions."""
    generator = torch.Generator().manual_seed(seed)
    false = torch.from_numpy(material.labels == 1)[material.question_of]
    drawn = torch.rand(len(false), generator=generator) < KEPT_TOKENS
    usable = material.tokens_of(fitted) & (material.before | ~false)
    rows = usable & (material.completes | drawn)
    others = material.background_of(fitted)
    others &= torch.rand(len(others), generator=generator) < KEPT_TOKENS
    labels = torch.cat([(material.completes & false)[rows], torch.zeros(int(others.sum())).bool()])
    counts = torch.full((len(labels),), OTHER_TOKENS / KEPT_TOKENS)
    counts[: int(rows.sum())][material.completes[rows]] = 1.0
    values = torch.cat([activations[rows], background[others]])
    return fit_direction(values, labels.long(), C=TOKEN_C, counts=counts)


def fit_mention(
    material: DetectorDataset,
    fitted: Bool[np.ndarray, " question"],
    *,
    activations: Float[Tensor, "token d_model"],
) -> tuple[Float[Tensor, " d_model"], float]:
    """Weight and bias of the mention probe, from some of the questions."""
    rows = material.tokens_of(fitted) & material.before
    return fit_direction(activations[rows], material.mentions[rows].long(), C=TOKEN_C)


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Cross-validated scores of a probe, and the mean of its folds.

    Attributes:
        scores: Float[token], log-odds from the fold that held out the token's question.
        weight, bias: the mean of the folds' probes.
    """

    scores: Float[Tensor, " token"]
    weight: Float[Tensor, " d_model"]
    bias: float


def cross_fit(
    material: DetectorDataset, layer: int, folds: Folds, *, mention: bool = False
) -> tuple[CrossFit, CrossFit | None]:
    """Cross-fit the falsity probe at a layer and, with ``mention``, the mention probe."""
    activations, background = material.read(layer), material.read_background(layer)
    pairs = folds.pairs(material.questions)

    def across(fit: Callable[..., tuple[Tensor, float]], **options: Any) -> CrossFit:
        scores = torch.full((len(activations),), torch.nan, dtype=torch.float64)
        probes = []
        for fitted, scored in pairs:
            weight, bias = fit(material, fitted, activations=activations, **options)
            tokens = material.tokens_of(scored)
            scores[tokens] = activations[tokens].double() @ weight + bias
            probes.append((weight, bias))
        mean = torch.stack([weight for weight, _ in probes]).mean(dim=0)
        return CrossFit(scores, mean, float(np.mean([bias for _, bias in probes])))

    falsity = across(fit_falsity, background=background, seed=folds.seed)
    return falsity, across(fit_mention) if mention else None


def choose_layer(
    material: DetectorDataset, *, seed: int = 0, progress: bool = True
) -> tuple[int, dict[int, float]]:
    """The layer with the highest cross-validated AUC of questions, and every layer's AUC."""
    aucs = {}
    for layer in progress_bar(material.store.layers, description="layers", shown=progress):
        falsity, _ = cross_fit(material, layer, Folds(LAYER_FOLDS, seed))
        scores = material.question_scores(falsity.scores)[material.counted]
        labels = material.labels[material.counted]
        aucs[layer] = area_under_curve(torch.from_numpy(scores).float(), torch.from_numpy(labels))
    return min(aucs, key=lambda layer: (-aucs[layer], layer)), aucs


def default_false_alarms(n_twins: int) -> float:
    """The default share of ``n_twins`` twins on which a detector may fire."""
    return min(MOST_FALSE_ALARMS, max(FALSE_ALARMS, ALARMS / n_twins))


def lowest_threshold(
    probabilities: Float[np.ndarray, " question"],
    labels: Int[np.ndarray, " question"],
    max_false_alarms: float = FALSE_ALARMS,
) -> float:
    """The lowest threshold at which no more than this share of twins reaches it.

    Raises UserError for a share outside 0 to 1.
    """
    if not 0 <= max_false_alarms <= 1:
        raise UserError(f"max_false_alarms lies between 0 and 1, not at {max_false_alarms}")
    twins = np.sort(probabilities[labels == 0])[::-1]
    allowed = int(max_false_alarms * len(twins))
    if allowed >= len(twins):
        return 0.0
    # Just above the first twin that must not fire.
    return float(np.nextafter(twins[allowed], 2.0)) if twins[allowed] < 1 else 1.0


def fit_detector(
    material: DetectorDataset,
    *,
    fingerprint: str,
    prompting: str | None = None,
    max_false_alarms: float | None = None,
    calibration: CalibrationMethod = "platt",
    seed: int = 0,
    progress: bool = True,
) -> PremiseDetector:
    """Choose layer, calibration and threshold by cross-validation, and average the folds' probes.

    ``max_false_alarms`` is by default `default_false_alarms`.

    Raises:
        UserError: fewer subjects than folds, one class only, or scores that fall with the label.
    """
    layer, aucs = choose_layer(material, seed=seed, progress=progress)
    falsity, mention = cross_fit(material, layer, Folds(FOLDS, seed), mention=True)
    assert mention is not None
    counted = material.counted
    scores, labels = material.question_scores(falsity.scores)[counted], material.labels[counted]
    curve = fit_calibration(scores, labels, method=calibration)
    probabilities = curve(scores)
    if max_false_alarms is None:
        max_false_alarms = default_false_alarms(int((labels == 0).sum()))
    threshold = lowest_threshold(probabilities, labels, max_false_alarms)
    fired = probabilities >= threshold
    found = np.zeros(len(counted), dtype=bool)
    found[counted] = fired & (labels == 1)
    covered = _covered(material, found, falsity=falsity.scores, mention=mention.scores)
    relations = [question.question.relation for question in material.questions if question.counts]
    training = {
        "relations": {name: relations.count(name) // 2 for name in dict.fromkeys(relations)},
        "n_subjects": len(set(groups_of([question.question for question in material.questions]))),
        "layer_auc": {str(layer): auc for layer, auc in aucs.items()},
        "auc": area_under_curve(torch.from_numpy(scores).float(), torch.from_numpy(labels)),
        "false_alarms_allowed": max_false_alarms,
        "calibration_error": expected_calibration_error(probabilities, labels),
        "fired_on_false": float(fired[labels == 1].mean()),
        "fired_on_twins": float(fired[labels == 0].mean()),
        "span_covers_object": covered,
        "seed": seed,
    }
    logger.info("detector: layer %d, cross-validated AUC %.3f", layer, training["auc"])
    return PremiseDetector(
        weight=torch.stack([falsity.weight, mention.weight]).float(),
        bias=(falsity.bias, mention.bias),
        layer=layer,
        calibration=curve,
        threshold=threshold,
        fingerprint=fingerprint,
        training=training,
        prompting=prompting,
    )


def _covered(
    material: DetectorDataset,
    which: Bool[np.ndarray, " question"],
    *,
    falsity: Float[Tensor, " token"],
    mention: Float[Tensor, " token"],
) -> float | None:
    """The share of these questions in which the words found hold the false object."""
    parts = zip(falsity.split(material.sizes), mention.split(material.sizes), strict=True)
    found = []
    for question, scores, chosen in zip(material.questions, parts, which, strict=True):
        if chosen:
            chars = false_words(question.asked, *(score.numpy() for score in scores))
            found.append(chars is not None and covers(chars, question.object))
    return float(np.mean(found)) if found else None
