"""Fit a premise detector: its directions, the weights of its evidence, calibration and threshold.

The data are questions about facts that the model knows, each with a false and with the true object;
every object is false as often as it is true (`probes.detector.balance`). The falsity probe is
fitted on the tokens of the questions: label 1 at the completion of a false premise, 0 at that of a
true one and, with less weight, at all other tokens. Tokens after a false completion are left out.
The *background*, texts without a premise, is of label 0: the probes are fitted on one half of it
and all further choices use the other half. The mention probe is fitted on the tokens up to the
completion, with label 1 for the object's. Every relation has the same weight.

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
from probes.detector.discriminant import Moments, fit_discriminant, pooled
from probes.detector.evidence import (
    EXPECTATION,
    PROBES,
    Combination,
    fit_combination,
    token_evidence,
)
from probes.detector.span import false_words
from probes.scoring import area_under_curve, groups_of

logger = logging.getLogger(__name__)

OTHER_TOKENS = 0.1
"""Weight of a token at which no premise is completed."""
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


def falsity_tokens(
    material: DetectorDataset, fitted: Bool[np.ndarray, " question"]
) -> tuple[Bool[Tensor, " token"], Bool[Tensor, " token"], Float[Tensor, " token"]]:
    """The tokens that falsity is fitted on, their labels, and their weights.

    Within a relation a completion weighs 1 and another token ``OTHER_TOKENS``; the relations' false
    completions weigh the same in all, and so do their other tokens.
    """
    rows, positive, weights = _falsity_rows(material)
    rows = rows & material.tokens_of(fitted)
    relation = torch.from_numpy(material.relations)[material.question_of]
    for number in relation.unique():
        for chosen in (positive, ~positive):
            part = rows & chosen & (relation == number)
            weights[part] /= weights[part].sum()
    return rows, positive, weights


def _falsity_rows(
    material: DetectorDataset,
) -> tuple[Bool[Tensor, " token"], Bool[Tensor, " token"], Float[Tensor, " token"]]:
    """Tokens, labels and weights of the falsity probe, in all relations alike."""
    false = torch.from_numpy(material.labels == 1)[material.question_of]
    weights = torch.where(material.completes, 1.0, OTHER_TOKENS).double()
    return material.before | ~false, material.completes & false, weights


def _mention_rows(
    material: DetectorDataset,
) -> tuple[Bool[Tensor, " token"], Bool[Tensor, " token"], Float[Tensor, " token"]]:
    """Tokens, labels and weights of the mention probe."""
    n_tokens = len(material.question_of)
    return material.before, material.mentions, torch.ones(n_tokens, dtype=torch.float64)


class FoldMoments:
    """Moments of one layer's tokens, by relation and by the folds that they are fitted in.

    Questions that are fitted on in the same folds are one part, whose moments are computed once;
    each fold's discriminant is made from the parts that it fits on. Within a class every relation
    weighs the same. For falsity, all background tokens weigh as much as the other tokens of one
    relation.
    """

    def __init__(
        self,
        material: DetectorDataset,
        layer: int,
        fitted: Bool[np.ndarray, "fold question"],
    ) -> None:
        values, background = material.read(layer), material.read_background(layer)
        self.centre = values.mean(dim=0)
        self.fitted, self.parts = fitted, np.unique(fitted.T, axis=0, return_inverse=True)[1]
        self._background: list[tuple[Bool[np.ndarray, " fold"], Moments]] = []
        self._of_probes = [
            self._by_part(material, values, rows) for rows in _rows_of_probes(material)
        ]
        if material.background:
            half = _half_of_background(material, 0)
            used = torch.stack([half & material.background_of(fold) for fold in fitted])
            patterns, which = used.unique(dim=1, return_inverse=True)
            for number, pattern in enumerate(patterns.T):
                chosen = background[which == number] - self.centre
                if bool(pattern.any()):
                    self._background.append(
                        (pattern.numpy(), Moments.of(chosen, torch.ones(len(chosen))))
                    )

    def _by_part(
        self,
        material: DetectorDataset,
        values: Float[Tensor, "token d_model"],
        tokens: tuple[Tensor, Tensor, Tensor],
    ) -> dict[tuple[int, int, bool], Moments]:
        """Moments by relation, part and label."""
        rows, labels, weights = tokens
        found = {}
        for relation, part in {*zip(material.relations, self.parts, strict=True)}:
            questions = (material.relations == relation) & (self.parts == part)
            for label in (True, False):
                chosen = rows & material.tokens_of(questions) & (labels == label)
                if bool(chosen.any()):
                    found[int(relation), int(part), label] = Moments.of(
                        values[chosen] - self.centre, weights[chosen]
                    )
        return found

    def fit(self, fold: int) -> tuple[Float[Tensor, "2 d_model"], Float[Tensor, "2"]]:
        """Weights and biases of the falsity and the mention probe of a fold."""
        parts = set(self.parts[self.fitted[fold]].tolist())
        directions, biases = [], []
        for moments, with_background in zip(self._of_probes, (True, False), strict=True):
            classes: dict[bool, dict[int, Moments]] = {True: {}, False: {}}
            for (relation, part, label), found in moments.items():
                if part in parts:
                    of_class = classes[label]
                    before = of_class.get(relation)
                    of_class[relation] = found if before is None else before + found
            negative = list(classes[False].values())
            texts = [found for pattern, found in self._background if pattern[fold]]
            if with_background and texts:
                negative.append(sum(texts[1:], texts[0]))
            direction, bias = fit_discriminant(pooled(classes[True].values()), pooled(negative))
            directions.append(direction)
            biases.append(bias - float(direction @ self.centre.double()))
        return torch.stack(directions), torch.tensor(biases, dtype=torch.float64)


def _rows_of_probes(material: DetectorDataset) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """Tokens, labels and weights of both probes."""
    return _falsity_rows(material), _mention_rows(material)


def _half_of_background(material: DetectorDataset, half: int) -> Bool[Tensor, " token"]:
    """The tokens of every other background text: half 0 for the probes, 1 for what is chosen."""
    sizes = [len(text.asked.offsets) for text in material.background]
    number = torch.repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    return number % 2 == half


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Cross-validated log-odds of the probes of one layer, and the mean of its folds' probes.

    Attributes:
        scores: Float[token 2], falsity and mention, from the fold that held out the token's
            question; NaN for questions that no fold holds out.
        background: Float[background_token 2], from the mean of the folds' probes.
        weight, bias: the mean of the folds' probes, falsity and mention.
    """

    scores: Float[Tensor, "token 2"]
    background: Float[Tensor, "background_token 2"]
    weight: Float[Tensor, "2 d_model"]
    bias: Float[Tensor, "2"]


def cross_fit(material: DetectorDataset, layer: int, folds: Folds) -> CrossFit:
    """Fit both probes at a layer in every fold, and score the questions that it holds out."""
    pairs = folds.pairs(material.questions)
    moments = FoldMoments(material, layer, np.stack([fitted for fitted, _ in pairs]))
    activations, background = material.read(layer), material.read_background(layer)
    scores = torch.full((len(activations), 2), torch.nan, dtype=torch.float64)
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
        mention: Float[token], of the mention probe.
        background: Float[text], the highest of each text that the probes were not fitted on.
        combination: the weights of the evidence.
    """

    tokens: Float[Tensor, " token"]
    mention: Float[Tensor, " token"]
    background: Float[np.ndarray, " text"]
    combination: Combination


def combine(
    material: DetectorDataset, fits: dict[int, CrossFit], names: Sequence[str]
) -> CombinedScores:
    """Weigh the named evidence on the tokens that count, and on half of the background.

    Evidence that was not read is left out.
    """
    probes = torch.stack([fit.scores for fit in fits.values()]).mean(dim=0)
    evidence = token_evidence(probes.numpy(), material.read_predictions(), material.sizes)
    used = [name for name in names if name in evidence]
    rows, positive, weights = falsity_tokens(material, material.counted)
    sizes = [len(text.asked.offsets) for text in material.background]
    of_texts = torch.stack([fit.background for fit in fits.values()]).mean(dim=0).numpy()
    beside = token_evidence(of_texts, material.read_background_predictions(), sizes or [0])
    others = _half_of_background(material, 1).numpy()
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
        highest[1::2],
        combination,
    )


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


def _threshold(
    probabilities: Float[np.ndarray, " question"],
    labels: Int[np.ndarray, " question"],
    background: Float[np.ndarray, " text"],
    max_false_alarms: float,
) -> float:
    """The lowest threshold within the allowed false alarms on twins and on the background."""
    threshold = lowest_threshold(probabilities, labels, max_false_alarms)
    if not len(background):
        return threshold
    share = max(BACKGROUND_ALARMS, 1 / len(background))
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
    threshold = max(least, _threshold(probabilities, labels, background, max_false_alarms))
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
        # The falsity probes of all layers, then the mention probes.
        weight=torch.cat(list(torch.stack([fit.weight for fit in by_layer.values()], 1))).float(),
        bias=(float(bias[0]), float(bias[1])),
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
