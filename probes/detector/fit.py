"""Fit a premise detector: its directions, the weights of its evidence, calibration and threshold.

The data are questions about facts that the model knows, each with a false and with the true object;
every object is false as often as it is true (`probes.detector.balance`). The falsity probe is
fitted on the tokens of the questions: label 1 at the completion of a false premise, 0 at that of a
true one and, with less weight, at all other tokens. Tokens after a false completion are left out.
The *background*, texts without a premise, is of label 0: the probes are fitted on one half of it
and all further choices use the other half. The mention probe is fitted on the tokens up to the
completion, with label 1 for the object's; the entity probe on all, with label 1 for the subject's
and the object's. Every relation has the same weight.

Layers, the weights of the evidence, calibration and threshold are chosen by cross-validation. With
several relations a fold leaves out relations, so that what is chosen holds for a relation that was
not fitted on; with few, it leaves out subjects and templates at the same time. The threshold is the
lowest that keeps false alarms on true-premise twins, and on the background, within the allowed
shares. The final probes are the means of the folds' probes: probes refitted on all questions would
have scores on another scale, for which calibration and threshold do not hold.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

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
from probes.detector.dataset import DetectorDataset, Folds
from probes.detector.detections import covers
from probes.detector.detector import PremiseDetector
from probes.detector.evidence import (
    EXPECTATION,
    PROBES,
    Combination,
    fit_combination,
    token_evidence,
)
from probes.detector.fold_moments import FoldMoments, falsity_tokens, half_of_background
from probes.detector.span import false_words
from probes.scoring import area_under_curve, groups_of

logger = logging.getLogger(__name__)

FALSE_ALARMS, MOST_FALSE_ALARMS = 0.01, 0.05
"""Allowed share of twins on which the detector fires, and the most allowed where twins are few."""
ALARMS = 3
"""Number of twins that may fire, as long as their share is at most ``MOST_FALSE_ALARMS``."""
BACKGROUND_ALARMS = 0.005
"""Allowed share of background texts on which the detector fires; one text may, however few."""
LEAST_PROBABILITY = 0.5
"""The default threshold is not below this, even where every twin scores far lower."""
WORSE_LAYER = 0.04
"""Layers whose AUC is this much below that of the best layer are not used."""


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Cross-validated log-odds of the probes of one layer, and the mean of its folds' probes.

    Attributes:
        scores: Float[token 3], falsity, mention and entity, from the fold that held out the token's
            question; NaN for questions that no fold holds out.
        background: Float[background_token 3], from the mean of the folds' probes.
        weight, bias: the mean of the folds' probes, in the same order.
    """

    scores: Float[Tensor, "token 3"]
    background: Float[Tensor, "background_token 3"]
    weight: Float[Tensor, "3 d_model"]
    bias: Float[Tensor, "3"]


def cross_fit(material: DetectorDataset, layer: int, folds: Folds) -> CrossFit:
    """Fit the probes at a layer in every fold, and score the questions that it holds out."""
    pairs = folds.pairs(material.questions)
    moments = FoldMoments(material, layer, np.stack([fitted for fitted, _ in pairs]))
    activations, background = material.read(layer), material.read_background(layer)
    scores = torch.full((len(activations), 3), torch.nan, dtype=torch.float64)
    weights, biases = [], []
    for fold, (_, scored) in enumerate(pairs):
        weight, bias = moments.fit(fold)
        tokens = material.tokens_of(scored)
        scores[tokens] = activations[tokens].double() @ weight.T + bias
        weights.append(weight)
        biases.append(bias)
    weight, bias = torch.stack(weights).mean(dim=0), torch.stack(biases).mean(dim=0)
    return CrossFit(scores, background.double() @ weight.T + bias, weight, bias)


def cross_fit_layers(
    material: DetectorDataset, folds: Folds, *, progress: bool = True
) -> tuple[dict[int, CrossFit], dict[int, float]]:
    """The layers that are used, ascending, and the cross-validated AUC of every candidate.

    Layers far below the best one are left out, see ``WORSE_LAYER``.
    """
    fits, aucs = {}, {}
    labels = torch.from_numpy(material.labels[material.counted])
    for layer in progress_bar(sorted(material.store.layers), description="layers", shown=progress):
        fits[layer] = cross_fit(material, layer, folds)
        scores = material.question_scores(fits[layer].scores[:, 0])[material.counted]
        aucs[layer] = area_under_curve(torch.from_numpy(scores).float(), labels)
    best = max(aucs.values())
    return {layer: fits[layer] for layer in fits if aucs[layer] >= best - WORSE_LAYER}, aucs


@dataclass(frozen=True, eq=False)
class CombinedScores:
    """Cross-validated log-odds of falsity, with all evidence.

    Attributes:
        tokens: Float[token], NaN for questions that no fold holds out.
        mention, entity: Float[token], of these probes.
        background: Float[text], the highest of each text that the probes were not fitted on.
        combination: the weights of the evidence.
    """

    tokens: Float[Tensor, " token"]
    mention: Float[Tensor, " token"]
    entity: Float[Tensor, " token"]
    background: Float[np.ndarray, " text"]
    combination: Combination


def combine(
    material: DetectorDataset, fits: dict[int, CrossFit], names: Sequence[str]
) -> CombinedScores:
    """Weigh the named evidence on the tokens that count, and on half of the background.

    Evidence that was not read is left out.
    """
    probes = torch.stack([fit.scores for fit in fits.values()]).mean(dim=0)
    evidence = token_evidence(probes[:, :2].numpy(), material.read_predictions(), material.sizes)
    used = [name for name in names if name in evidence]
    rows, positive, weights = falsity_tokens(material, material.counted)
    sizes = [len(text.asked.offsets) for text in material.background]
    of_texts = torch.stack([fit.background for fit in fits.values()]).mean(dim=0).numpy()
    beside = token_evidence(of_texts[:, :2], material.read_background_predictions(), sizes or [0])
    others = half_of_background(material, 1).numpy()
    n = int(others.sum())
    scale = len(rows) / float(weights[rows].sum())
    combination = fit_combination(
        {name: np.concatenate([evidence[name][rows], beside[name][others]]) for name in used},
        np.concatenate([positive[rows].numpy(), np.zeros(n, dtype=bool)]),
        scale * np.concatenate([weights[rows].numpy(), np.full(n, 1 / max(n, 1))]),
    )
    parts = np.split(combination(beside), np.cumsum(sizes)[:-1]) if sizes else []
    highest = np.array([part.max() for part in parts], dtype=float)
    return CombinedScores(
        torch.from_numpy(combination(evidence)),
        probes[:, 1],
        probes[:, 2],
        highest[1::2],
        combination,
    )


def default_false_alarms(n_twins: int, share: float = FALSE_ALARMS) -> float:
    """The default share of ``n_twins`` twins on which a detector may fire; ``share`` of many."""
    return min(MOST_FALSE_ALARMS, max(share, ALARMS / n_twins))


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


def choose_threshold(
    probabilities: Float[np.ndarray, " question"],
    labels: Int[np.ndarray, " question"],
    background: Float[np.ndarray, " text"],
    max_false_alarms: float,
    background_alarms: float = BACKGROUND_ALARMS,
) -> float:
    """The lowest threshold within the allowed false alarms on twins and on the background."""
    threshold = lowest_threshold(probabilities, labels, max_false_alarms)
    if not len(background):
        return threshold
    share = max(background_alarms, 1 / len(background))
    return max(threshold, lowest_threshold(background, np.zeros(len(background), int), share))


def fit_detector(
    material: DetectorDataset,
    *,
    fingerprint: str,
    prompting: str | None = None,
    max_false_alarms: float | None = None,
    calibration: CalibrationMethod = "platt",
    evidence: Sequence[str] = (*PROBES, *EXPECTATION),
    fits: tuple[dict[int, CrossFit], dict[int, float]] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> PremiseDetector:
    """Choose layers, weights, calibration and threshold; average the folds' probes.

    ``max_false_alarms`` is by default `default_false_alarms`; ``evidence`` is what is weighed, as
    far as it was read; ``fits`` are those of `cross_fit_layers`, where they are at hand; ``seed``
    is only noted.

    Raises:
        UserError: fewer subjects than folds, one class only, or scores that fall with the label.
    """
    if fits is None:
        fits = cross_fit_layers(material, Folds.suited_to(material.questions), progress=progress)
    by_layer, aucs = fits
    combined = combine(material, by_layer, evidence)
    counted = material.counted
    scores, labels = material.question_scores(combined.tokens)[counted], material.labels[counted]
    curve = fit_calibration(scores, labels, method=calibration)
    probabilities = curve(scores)
    least = LEAST_PROBABILITY if max_false_alarms is None else 0.0
    if max_false_alarms is None:
        max_false_alarms = default_false_alarms(int((labels == 0).sum()))
    background = curve(combined.background)
    threshold = max(least, choose_threshold(probabilities, labels, background, max_false_alarms))
    fired = probabilities >= threshold
    found = np.zeros(len(counted), dtype=bool)
    found[counted] = fired & (labels == 1)
    covered = _covered(material, found, falsity=combined.tokens, mention=combined.mention)
    relations = [question.question.relation for question in material.questions if question.counts]
    beside = {question.question.relation for question in material.questions} - set(relations)
    training = {
        "relations": {name: relations.count(name) // 2 for name in dict.fromkeys(relations)},
        "relations_beside": sorted(beside),
        "folds": "relation"
        if Folds.suited_to(material.questions).by_relation
        else "subject and template",
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
    layers = tuple(by_layer)
    logger.info("detector: layers %s, cross-validated AUC %.3f", layers, training["auc"])
    bias = torch.stack([fit.bias for fit in by_layer.values()]).mean(dim=0)
    return PremiseDetector(
        # The falsity probes of all layers, then the mention and then the entity probes.
        weight=torch.cat(list(torch.stack([fit.weight for fit in by_layer.values()], 1))).float(),
        bias=tuple(bias.tolist()),
        layer=layers[-1],
        layers=layers,
        combination=combined.combination,
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
