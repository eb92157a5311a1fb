"""Training a premise detector: which layer, which directions, which threshold.

The material is questions about facts that the model knows, each with a false object and with the
true one, objects being false as often as they are true (`probes.detector.balance`). The falsity
probe is fitted on every token of the questions: label 1 for the completion of a false premise, 0
for that of a true one and, with less weight, for all other tokens; what follows a false completion
is left out. Texts without such a premise (the *background*) are other tokens throughout. The
mention probe is fitted on the questions' tokens up to the completion, label 1 for the object's.

Everything that is chosen is chosen by cross-validation: folds by subject and, at the same time, by
template, so that a question's score comes from probes that saw neither. From these scores come the
layer, the calibration, and the threshold, which is the lowest that raises so few false alarms on
true-premise twins. The final probes are the means of the folds' probes: probes fitted anew on all
questions would have scores of another size, for which neither calibration nor threshold holds.
"""

import logging
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
from probes.detector.dataset import FOLDS, DetectorDataset, Folds
from probes.detector.detector import PremiseDetector, TokenScores
from probes.detector.span import false_words
from probes.grouping import groups_of
from probes.linear import fit_direction
from probes.scoring import area_under_curve

logger = logging.getLogger(__name__)

TOKEN_C = 0.003
"""Inverse strength of the penalty; a regression on all tokens has ten times a probe's rows."""
OTHER_TOKENS = 0.1
"""How much a token counts at which no premise is completed."""
KEPT_TOKENS = 0.4
"""The share of such tokens that are fitted on, to save time; each counts for as many more."""
FALSE_ALARMS, MOST_FALSE_ALARMS = 0.01, 0.05
"""On twins: a gate that fires there costs right answers. The higher share is for few twins, whose
hundredth part is less than one: a threshold above the highest of fifty says more of that one."""
ALARMS = 3
"""So many twins may reach the threshold where that is no more than the higher share."""
LAYER_FOLDS = 3


def fit_falsity(
    material: DetectorDataset,
    activations: Float[Tensor, "token d_model"],
    background: Float[Tensor, "background_token d_model"],
    fitted: Bool[np.ndarray, " question"],
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
    activations: Float[Tensor, "token d_model"],
    fitted: Bool[np.ndarray, " question"],
) -> tuple[Float[Tensor, " d_model"], float]:
    """Weight and bias of the mention probe, from some of the questions."""
    rows = material.tokens_of(fitted) & material.before
    return fit_direction(activations[rows], material.mentions[rows].long(), C=TOKEN_C)


@dataclass(frozen=True, eq=False)
class CrossFit:
    """A probe from each fold, and what each says of the questions that it was not fitted on.

    Attributes:
        scores: Float[token], log-odds from the fold that left the token's question out.
        weight, bias: the mean of the folds' probes.
    """

    scores: Float[Tensor, " token"]
    weight: Float[Tensor, " d_model"]
    bias: float


def cross_fit(
    material: DetectorDataset, layer: int, folds: Folds, *, mention: bool = False
) -> tuple[CrossFit, CrossFit | None]:
    """The falsity probe's folds at a layer and, if asked for, the mention probe's."""
    activations, background = material.read(layer), material.read_background(layer)
    pairs = folds.pairs(material.questions)

    def fit(which: str, fitted: Bool[np.ndarray, " question"]) -> tuple[Tensor, float]:
        if which == "mention":
            return fit_mention(material, activations, fitted)
        return fit_falsity(material, activations, background, fitted, folds.seed)

    def across(which: str) -> CrossFit:
        scores = torch.full((len(activations),), torch.nan, dtype=torch.float64)
        probes = []
        for fitted, scored in pairs:
            weight, bias = fit(which, fitted)
            tokens = material.tokens_of(scored)
            scores[tokens] = activations[tokens].double() @ weight + bias
            probes.append((weight, bias))
        mean = torch.stack([weight for weight, _ in probes]).mean(dim=0)
        return CrossFit(scores, mean, float(np.mean([bias for _, bias in probes])))

    return across("falsity"), across("mention") if mention else None


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
    """The share of so many twins on which a detector may fire, where nobody says."""
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
        raise UserError(f"a share of false alarms lies between 0 and 1, not {max_false_alarms}")
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
    """Choose layer, calibration and threshold by cross-validation; fit the probes on everything.

    ``max_false_alarms`` is by default `default_false_alarms`.

    Raises:
        UserError: fewer subjects than folds, one class only, or scores that tell nothing.
    """
    layer, aucs = choose_layer(material, seed=seed, progress=progress)
    falsity, mention = cross_fit(material, layer, Folds(FOLDS, seed), mention=True)
    assert mention is not None
    counted = material.counted
    scores, labels = material.question_scores(falsity.scores)[counted], material.labels[counted]
    curve = fit_calibration(scores, labels, method=calibration)
    probabilities = curve(scores)
    allowed = max_false_alarms
    if allowed is None:
        allowed = default_false_alarms(int((labels == 0).sum()))
    threshold = lowest_threshold(probabilities, labels, allowed)
    fired = probabilities >= threshold
    found = np.zeros(len(counted), dtype=bool)
    found[counted] = fired & (labels == 1)
    covered = _covered(material, falsity.scores, mention.scores, found)
    relations = [one.question.relation for one in material.questions if one.counts]
    training = {
        "relations": {name: relations.count(name) // 2 for name in dict.fromkeys(relations)},
        "n_subjects": len(set(groups_of([one.question for one in material.questions]))),
        "layer_auc": {str(one): auc for one, auc in aucs.items()},
        "auc": area_under_curve(torch.from_numpy(scores).float(), torch.from_numpy(labels)),
        "false_alarms_allowed": allowed,
        "calibration_error": expected_calibration_error(probabilities, labels),
        "fired_on_false": float(fired[labels == 1].mean()),
        "fired_on_twins": float(fired[labels == 0].mean()),
        "span_covers_object": covered,
        "seed": seed,
    }
    logger.info("detector: layer %d, cross-validated AUC %.3f", layer, training["auc"])
    weights = torch.stack([falsity.weight, mention.weight]).float()
    biases = (falsity.bias, mention.bias)
    return PremiseDetector(
        weights, biases, layer, curve, threshold, fingerprint, training, prompting
    )


def _covered(
    material: DetectorDataset,
    falsity: Float[Tensor, " token"],
    mention: Float[Tensor, " token"],
    which: Bool[np.ndarray, " question"],
) -> float | None:
    """The share of these questions in which the words found hold the false object."""
    parts = zip(falsity.split(material.sizes), mention.split(material.sizes), strict=True)
    found = []
    for question, (false, said), chosen in zip(material.questions, parts, which, strict=True):
        if chosen:
            scores = TokenScores(false.numpy(), said.numpy())
            chars = false_words(question.asked, scores.falsity, scores.mention)
            found.append(chars is not None and covers(chars, question.object))
    return float(np.mean(found)) if found else None


def covers(found: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether one span holds the whole of the other."""
    return found[0] <= wanted[0] and wanted[1] <= found[1]
