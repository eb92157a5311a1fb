"""Compare a probe with its controls: does it read the premise, or something correlated with it?

A probe beats its controls if the lower end of its held-out AUC's interval lies above the upper end
of every control's:

* ``shuffled labels``: the mean over shuffles (its spread over shuffles is the interval);
* ``object alone``: the object's embedding, before any context is read;
* ``layer 0``: after one block;
* ``random weights``: the same place in a model with random weights.

The selectivity of the control task is reported, but is not a condition: where every object is false
of some subjects and true of others, memorised objects do not help on the task, while the control
task rewards nothing else.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_scores import controls_figure
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel
from interp.premises import Premises
from probes.activation_reader import ActivationHook
from probes.activations import Position
from probes.controls import DEFAULT_SHUFFLES, control_task_auc, random_weights, shuffled_label_auc
from probes.labelled_activations import collect_pairs
from probes.layers import probe_layers
from probes.scoring import area_under_curve, cross_validated_scores


@dataclass(frozen=True)
class Score:
    """An AUC with its 95 % interval."""

    name: str
    auc: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class ControlReport(Displayed):
    """A probe and its controls, on the same held-out questions.

    Attributes:
        layer, hook, position: where the probe reads.
        task: its own AUC.
        controls: the AUC of each control.
        control_task_auc: AUC of the control task, cross-validated in the search part.
        selectivity: the task's AUC in the same folds minus ``control_task_auc``.
    """

    layer: int
    hook: ActivationHook
    position: Position
    task: Score
    controls: tuple[Score, ...]
    control_task_auc: float
    selectivity: float

    def __post_init__(self) -> None:
        if not self.controls:
            raise UserError("a verdict needs at least one control")

    @property
    def beats_controls(self) -> bool:
        """Whether the probe's interval lies above every control's."""
        return all(self.task.ci_low > control.ci_high for control in self.controls)

    @property
    def sentence(self) -> str:
        """The verdict in words, whichever way it went."""
        best = max(self.controls, key=lambda control: control.ci_high)
        shown = f"{self.task.auc:.3f} [{self.task.ci_low:.3f}, {self.task.ci_high:.3f}]"
        against = f"{best.name} {best.auc:.3f} [{best.ci_low:.3f}, {best.ci_high:.3f}]"
        if self.beats_controls:
            return f"The probe of layer {self.layer} reads the premise: AUC {shown}; {against}."
        return (
            f"The probe of layer {self.layer} does not beat its controls: AUC {shown}, but "
            f"{against}. It is no evidence that the premise is read there."
        )

    def to_dataframe(self) -> "pd.DataFrame":
        """One row for the probe and each control."""
        return pd.DataFrame([vars(score) for score in (self.task, *self.controls)])

    def plot(self) -> "go.Figure":
        """AUC of the probe and its controls with their intervals."""
        return controls_figure(self.to_dataframe())

    def _shown(self) -> Shown:
        words = f"{self.sentence} Selectivity {self.selectivity:.3f}."
        return Shown(words, (self.to_dataframe(),), self.plot)


@checked
def compare_with_controls(
    model: HookedModel,
    search: Premises,
    held_out: Premises,
    *,
    layer: int,
    hook: ActivationHook = "resid_post",
    position: Position = "object",
    n_shuffles: int = DEFAULT_SHUFFLES,
    seed: int = 0,
    progress: bool = True,
) -> ControlReport:
    """Fit the probe of one place and its controls on ``search``, and score them on ``held_out``.

    Raises:
        UserError: what `probe_layers` refuses.
    """
    options: dict[str, Any] = {"position": position, "progress": progress}

    def score(name: str, probed: HookedModel, **place: Any) -> Score:
        found = probe_layers(
            probed, search, held_out, **place, n_shuffles=1, seed=seed, **options
        ).scores[0]
        return Score(name, found.auc, found.ci_low, found.ci_high)

    read, read_held_out = (
        collect_pairs(model, premises, hook=hook, layers=[layer], **options)
        for premises in (search, held_out)
    )
    fitted, scored = read.at_layer(0), read_held_out.at_layer(0)
    shuffled = shuffled_label_auc(fitted, scored, n_shuffles=n_shuffles, seed=seed)
    low, high = np.quantile(shuffled, [0.025, 0.975])
    place: dict[str, Any] = {"layers": [layer], "hook": hook}
    controls = (
        Score("shuffled labels", float(shuffled.mean()), float(low), float(high)),
        score("object alone", model, layers=[0], hook="resid_pre"),
        score("layer 0", model, layers=[0], hook="resid_post"),
        score("random weights", random_weights(model, seed=seed), **place),
    )
    within = cross_validated_scores(fitted.activations, fitted.labels, fitted.subjects)
    by_heart = float(control_task_auc(fitted, read.objects, seed=seed).mean())
    selectivity = area_under_curve(within, fitted.labels) - by_heart
    task = score("probe", model, **place)
    return ControlReport(layer, hook, position, task, controls, by_heart, selectivity)
