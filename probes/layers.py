"""In which layers a false premise can be read off: one probe a layer, scored on what it never saw.

A probe is fitted on the search part's false-premise prompts (label 1) and their twins (label 0),
and scored on the held-out part: other subjects, other templates. Which layer is best is decided by
cross-validation within the search part, so that the held-out AUC of that layer stays honest; its
folds share neither a subject nor an object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_layers import auc_by_layer
from interp.forward.partial import device_of
from interp.models import fingerprint
from interp.models.hooked_model import HookedModel
from interp.models.tokenizer_fingerprint import prompting_fingerprint
from interp.premises import Premises, Question, Split
from interp.premises.encode import encode_premises
from interp.progress import progress_bar
from probes.activation_reader import ActivationHook, chosen_layers
from probes.activations import Position, check_place, collect_activations
from probes.controls import DEFAULT_SHUFFLES, shuffled_label_auc
from probes.labelled_activations import LabelledActivations
from probes.linear import DEFAULT_C, LinearProbe, ProbeMethod, fit_probe
from probes.scoring import (
    accuracy_with_interval,
    area_under_curve,
    auc_with_interval,
    cross_validated_scores,
)


@dataclass(frozen=True)
class LayerScore:
    """How well one layer's probe tells false premises from their twins.

    Attributes:
        auc, ci_low, ci_high: on the held-out part, with the interval over its subjects.
        accuracy, accuracy_low, accuracy_high: likewise, of the sign of the probe's log-odds.
        shuffled_auc: the control's mean, see `probes.controls`.
        search_auc: cross-validated within the search part; what a layer is chosen by.
    """

    layer: int
    auc: float
    ci_low: float
    ci_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    shuffled_auc: float
    search_auc: float


@dataclass(frozen=True, eq=False)
class ProbeMap(Displayed):
    """One probe and one score per layer.

    Attributes:
        scores, probes: in the order of the layers asked for.
        n_subjects: held-out subjects that the intervals come from.
        seed: of intervals and shuffles.
    """

    scores: tuple[LayerScore, ...]
    probes: tuple[LinearProbe, ...]
    n_subjects: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.scores:
            raise UserError("a probe map needs at least one layer")
        if self.layers != tuple(probe.layer for probe in self.probes):
            raise UserError("scores and probes are of different layers")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers probed, in the order asked for."""
        return tuple(score.layer for score in self.scores)

    def probe(self, layer: int) -> LinearProbe:
        """The probe of a layer; UserError when there is none."""
        if layer not in self.layers:
            raise UserError(
                f"there is no probe of layer {layer}; there are {', '.join(map(str, self.layers))}"
            )
        return self.probes[self.layers.index(layer)]

    @property
    def best(self) -> LinearProbe:
        """The probe with the highest cross-validated search AUC; the lowest layer of equals."""
        layer = min(self.scores, key=lambda score: (-score.search_auc, score.layer)).layer
        return self.probe(layer)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer."""
        frame = pd.DataFrame([vars(score) for score in self.scores])
        frame.insert(7, "n_subjects", self.n_subjects)
        return frame

    def plot(self) -> go.Figure:
        """AUC against layer, with its interval as a band."""
        probe = self.probes[0]
        return auc_by_layer(self.to_dataframe(), hook=probe.hook, position=probe.position)

    def _shown(self) -> Shown:
        best = self.best
        words = (
            f"Probes of {best.hook} at {best.position}, {self.n_subjects} held-out subjects; "
            f"layer {best.layer} is best in the search part."
        )
        return Shown(words, (self.to_dataframe(),), self.plot)


@checked
def probe_layers(
    model: HookedModel,
    search: Premises,
    held_out: Premises,
    *,
    layers: Sequence[int] | None = None,
    hook: ActivationHook = "resid_post",
    position: Position = "object",
    method: ProbeMethod = "logistic",
    C: float = DEFAULT_C,
    n_shuffles: int = DEFAULT_SHUFFLES,
    seed: int = 0,
    progress: bool = True,
) -> ProbeMap:
    """Fit a probe on ``search`` in each layer and score it on ``held_out``.

    Args:
        search, held_out: the parts of a split of known facts, which share no subject or template.
        layers: blocks counted from zero; all of them if None.
        method, C: how probes are fitted, see `probes.linear`.

    Raises:
        UserError: parts that share a subject or a template, an unknown hook, position or layer
            (heads, hook ``z``, are `probes.probe_heads`'), or
            too few subjects or objects in the search part to cross-validate in five folds.
    """
    check_place(hook, position)
    if hook == "z":
        raise UserError("hook 'z' has one vector a head: use probes.probe_heads")
    Split(search, held_out)  # refuses parts that share a subject or a template
    chosen = chosen_layers(model, layers)
    fitted_part, scored_part = (
        _collect_part(model, premises, hook, chosen, position, progress)
        for premises in (search, held_out)
    )
    of_model, prompting = fingerprint(model), prompting_fingerprint(model.tokenizer)
    scores, probes = [], []
    for index, layer in enumerate(progress_bar(chosen, description="probes", shown=progress)):
        fitted, scored = fitted_part.at(index), scored_part.at(index)
        probe = fit_probe(
            fitted.activations,
            fitted.labels,
            layer=layer,
            fingerprint=of_model,
            prompting=prompting,
            hook=hook,
            position=position,
            method=method,
            C=C,
        )
        shuffled = shuffled_label_auc(fitted, scored, n_shuffles=n_shuffles, C=C, seed=seed)
        values = score_place(
            probe, fitted, scored, fitted_part.objects, method=method, C=C, seed=seed
        )
        scores.append(LayerScore(layer=layer, shuffled_auc=float(shuffled.mean()), **values))
        probes.append(probe)
    return ProbeMap(tuple(scores), tuple(probes), len(set(held_out.subjects)), seed)


def score_place(
    probe: LinearProbe,
    fitted: LabelledActivations,
    scored: LabelledActivations,
    fitted_objects: Sequence[str],
    *,
    method: ProbeMethod = "logistic",
    C: float = DEFAULT_C,
    seed: int = 0,
) -> dict[str, float]:
    """A fitted probe's held-out scores with intervals, and the cross-validated search AUC.

    Args:
        fitted_objects: what each fitted prompt names; folds share neither objects nor subjects.
    """
    values = probe.scores(scored.activations)
    auc, low, high = auc_with_interval(values, scored.labels, scored.subjects, seed=seed)
    accuracy, worst, best = accuracy_with_interval(
        values, scored.labels, scored.subjects, seed=seed
    )
    within = cross_validated_scores(
        fitted.activations, fitted.labels, fitted_objects, apart=fitted.subjects, method=method, C=C
    )
    return {
        "auc": auc,
        "ci_low": low,
        "ci_high": high,
        "accuracy": accuracy,
        "accuracy_low": worst,
        "accuracy_high": best,
        "search_auc": area_under_curve(within, fitted.labels),
    }


@dataclass(frozen=True, eq=False)
class _Part:
    """One part of a split: the activations of its questions in every layer."""

    false: Float[Tensor, "question layer d_model"]
    twin: Float[Tensor, "question layer d_model"]
    questions: tuple[Question, ...]

    @property
    def objects(self) -> tuple[str, ...]:
        """What each prompt of ``at`` names: the false objects, then the true ones."""
        return tuple(question.false_object for question in self.questions) + tuple(
            question.true_object for question in self.questions
        )

    def at(self, index: int) -> LabelledActivations:
        """One layer's activations, false-premise prompts first."""
        subjects = tuple(question.subject for question in self.questions)
        return LabelledActivations.from_pairs(self.false[:, index], self.twin[:, index], subjects)


def _collect_part(
    model: HookedModel,
    premises: Premises,
    hook: ActivationHook,
    layers: tuple[int, ...],
    position: Position,
    progress: bool,
) -> _Part:
    encoded = encode_premises(model.tokenizer, premises, device=device_of(model))
    false, twin = (
        collect_activations(
            model, encoded, kind, hook=hook, layers=layers, position=position, progress=progress
        )
        for kind in ("false", "twin")
    )
    return _Part(false, twin, tuple(item.question for item in encoded.items))
