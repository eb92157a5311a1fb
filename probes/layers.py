"""Linear probes for false premises, one a layer, scored on held-out subjects and templates.

A probe is fitted on the search part's false-premise prompts (label 1) and their twins (label 0),
and scored on the held-out part. The best layer is chosen by cross-validation within the search
part, so the held-out AUC of that layer is unbiased. Its folds share neither a subject nor an
object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_scores import auc_by_layer
from interp.lazy import go, pd
from interp.models import fingerprint
from interp.models.fingerprint import prompting_fingerprint
from interp.models.hooked_model import HookedModel
from interp.premises import Premises, Split
from interp.progress import progress_bar
from probes.activation_reader import ActivationHook, chosen_layers
from probes.activations import Position, check_place
from probes.controls import DEFAULT_SHUFFLES, shuffled_label_auc
from probes.labelled_activations import LabelledActivations, collect_pairs
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

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a layer."""
        frame = pd.DataFrame([vars(score) for score in self.scores])
        frame.insert(7, "n_subjects", self.n_subjects)
        return frame

    def plot(self) -> "go.Figure":
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
        UserError: parts that share a subject or a template, an unknown hook, position or layer,
            hook ``z`` (use `probes.probe_heads`), or too few subjects or objects in the search part
            for five folds.
    """
    check_residual_place(hook, position)
    Split(search, held_out)  # raises if the parts share a subject or a template
    chosen = chosen_layers(model, layers)
    fitted, scored = (
        collect_pairs(
            model, premises, hook=hook, layers=chosen, position=position, progress=progress
        )
        for premises in (search, held_out)
    )
    fitting: dict[str, Any] = {
        "hook": hook,
        "position": position,
        "method": method,
        "C": C,
        "seed": seed,
        "fingerprint": fingerprint(model),
        "prompting": prompting_fingerprint(model.tokenizer),
    }
    scores, probes = [], []
    for index, layer in enumerate(progress_bar(chosen, description="probes", shown=progress)):
        parts = fitted.at_layer(index), scored.at_layer(index)
        probe, values = fit_and_score(*parts, fitted.objects, layer=layer, **fitting)
        shuffled = shuffled_label_auc(*parts, n_shuffles=n_shuffles, C=C, seed=seed)
        scores.append(LayerScore(layer=layer, shuffled_auc=float(shuffled.mean()), **values))
        probes.append(probe)
    return ProbeMap(tuple(scores), tuple(probes), len(set(held_out.subjects)), seed)


def check_residual_place(hook: str, position: str) -> None:
    """Raise UserError for an unknown hook or position, and for hook ``z``."""
    check_place(hook, position)
    if hook == "z":
        raise UserError("hook 'z' has one vector a head: use probes.probe_heads")


def fit_and_score(
    fitted: LabelledActivations,
    scored: LabelledActivations,
    fitted_objects: Sequence[str],
    *,
    seed: int = 0,
    method: ProbeMethod = "logistic",
    C: float = DEFAULT_C,
    **place: Any,
) -> tuple[LinearProbe, dict[str, float]]:
    """Fit a probe on one part, and score it on the other.

    Args:
        fitted_objects: the object in each fitted prompt. The folds of the cross-validated score
            share neither objects nor subjects.
        place: where the activations come from, as `probes.linear.fit_probe` takes it.

    Returns:
        the probe, and its held-out AUC and accuracy with intervals and its search AUC.
    """
    probe = fit_probe(fitted.activations, fitted.labels, method=method, C=C, **place)
    values = probe.scores(scored.activations)
    within = cross_validated_scores(
        fitted.activations, fitted.labels, fitted_objects, apart=fitted.subjects, method=method, C=C
    )
    found: dict[str, float] = {}
    for keys, interval in (
        (("auc", "ci_low", "ci_high"), auc_with_interval),
        (("accuracy", "accuracy_low", "accuracy_high"), accuracy_with_interval),
    ):
        ends = interval(values, scored.labels, scored.subjects, seed=seed)
        found |= dict(zip(keys, ends, strict=True))
    return probe, found | {"search_auc": area_under_curve(within, fitted.labels)}
