"""The probes of each fold, from moments that are computed once.

Label 1 of falsity is the completion of a false premise; tokens after it are left out. Label 1 of
mention are the object's tokens, among those up to the completion. Label 1 of entity are the
subject's and the object's tokens, among all.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.detector.dataset import DetectorDataset
from probes.detector.discriminant import Moments, fit_discriminant, pooled

OTHER_TOKENS = 0.1
"""Weight of a token at which no premise is completed."""


def half_of_background(material: DetectorDataset, half: int) -> Bool[Tensor, " token"]:
    """The tokens of every other background text: half 0 for the probes, 1 for what is chosen."""
    sizes = [len(text.asked.offsets) for text in material.background]
    number = torch.repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    return number % 2 == half


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


def _entity_rows(
    material: DetectorDataset,
) -> tuple[Bool[Tensor, " token"], Bool[Tensor, " token"], Float[Tensor, " token"]]:
    """Tokens, labels and weights of the entity probe."""
    n_tokens = len(material.question_of)
    every = torch.ones(n_tokens, dtype=torch.bool)
    return every, material.entities, torch.ones(n_tokens, dtype=torch.float64)


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
            half = half_of_background(material, 0)
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

    def fit(self, fold: int) -> tuple[Float[Tensor, "3 d_model"], Float[Tensor, "3"]]:
        """Weights and biases of a fold's probes: falsity, mention and entity."""
        parts = set(self.parts[self.fitted[fold]].tolist())
        directions, biases = [], []
        for moments, with_background in zip(self._of_probes, (True, False, False), strict=True):
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
    """Tokens, labels and weights of each probe."""
    return _falsity_rows(material), _mention_rows(material), _entity_rows(material)
