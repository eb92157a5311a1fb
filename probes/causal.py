"""Does the model use what the probe reads? The answer when the probe's direction is taken away.

A probe that reads a false premise shows that it can be read, not that the answer depends on it. So
the direction is removed from the activation at every token of the object, in the probe's layer and
at its hook point only, and everything after it is recomputed:

* ``component``: x ← x − (x·ŵ) ŵ, the projection out of the direction (ŵ = w / |w|);
* ``score``: x ← x − (x·ŵ + b/|w|) ŵ, so that the probe's log-odds become 0 and the rest stays.

The null takes a step of the same length at every token, along random directions instead.

Sign: ``change`` = logit difference (true − false object) without the direction, less with it;
positive where the model answers better without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_scores import removal_null
from interp.forward.batch import TokenBatch
from interp.forward.hook_points import hook_name
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import RecordedRun, record_run, resume
from interp.heads.locate import as_encoded
from interp.heads.significance import mean_interval
from interp.models.hooked_model import HookedModel
from interp.patching.edits import edited_points
from interp.patching.metrics import LogitDifference, apply_metric
from interp.precision import widened
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises
from interp.progress import progress_bar
from probes.activations import PremiseKind
from probes.linear import LinearProbe

Removal = Literal["component", "score"]
MINIMUM_RANDOM_DIRECTIONS = 20


@dataclass(frozen=True, eq=False)
class DirectionRemoval(Displayed):
    """What removing a probe's direction does to the answers, beside random directions.

    Attributes:
        change: Float[prompt], logits.
        random: Float[direction prompt], the same for steps along random directions.
        layer, hook: where it was removed.
    """

    change: Float[np.ndarray, " prompt"]
    random: Float[np.ndarray, "direction prompt"]
    subjects: tuple[str, ...]
    templates: tuple[str, ...]
    kind: PremiseKind
    layer: int
    hook: str
    removal: Removal
    seed: int = 0

    def __post_init__(self) -> None:
        n = len(self.change)
        if self.random.shape[1] != n or len(self.subjects) != n or len(self.templates) != n:
            raise UserError("changes, subjects and templates differ in number")

    @property
    def effect(self) -> tuple[float, float, float]:
        """Mean change with its 95 % interval from resampling subjects."""
        return mean_interval(self.change, self.subjects, seed=self.seed)

    @property
    def p_value(self) -> float:
        """Share of directions, the probe's own among them, whose mean change is as large."""
        null = np.abs(self.random.mean(axis=1))
        return float((1 + (null >= abs(self.change.mean())).sum()) / (1 + len(null)))

    def agreement(self, constrained: Sequence[float] | np.ndarray) -> dict[str, float]:
        """How far this change is that of a head constraint on the same prompts.

        Args:
            constrained: the constraint's change of the logit difference, per prompt.

        Returns:
            ``spearman`` over prompts (NaN where either is constant), and ``share``: this mean
            change as a share of the constraint's.
        """
        other = np.asarray(constrained, dtype=float)
        if other.shape != self.change.shape:
            raise UserError(f"{len(self.change)} prompts here, {len(other)} in the constraint")
        constant = np.ptp(other) == 0 or np.ptp(self.change) == 0
        correlation: Any = None if constant else spearmanr(self.change, other)
        rank = float("nan") if constant else float(correlation.statistic)
        share = float(self.change.mean() / other.mean()) if other.mean() else float("nan")
        return {"spearman": rank, "share": share}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a prompt: subject, template, change, and the random directions' mean change."""
        return pd.DataFrame(
            {
                "subject": self.subjects,
                "template": self.templates,
                "change": self.change,
                "random_change": self.random.mean(axis=0),
            }
        )

    def plot(self) -> go.Figure:
        """The mean change beside those of the random directions."""
        return removal_null(self.effect, self.random.mean(axis=1), p_value=self.p_value)

    def _shown(self) -> Shown:
        mean, low, high = self.effect
        words = (
            f"Without the probe's direction (layer {self.layer}, {self.hook}, {self.removal}) the "
            f"logit difference changes by {mean:+.3g} [{low:.3g}, {high:.3g}] logits; p = "
            f"{self.p_value:.3g} against {len(self.random)} random directions."
        )
        return Shown(words, (self.to_dataframe(),), self.plot)


@torch.no_grad()
def remove_direction(
    model: HookedModel,
    premises: Premises | EncodedPremises,
    probe: LinearProbe,
    *,
    kind: PremiseKind = "false",
    removal: Removal = "component",
    n_random: int = MINIMUM_RANDOM_DIRECTIONS,
    seed: int = 0,
    progress: bool = True,
) -> DirectionRemoval:
    """Remove the probe's direction at the object's tokens, and read how the answers change.

    Args:
        n_random: random directions of the null, ``MINIMUM_RANDOM_DIRECTIONS`` or more.

    Raises:
        UserError: a probe of another model or of heads' outputs, an unknown removal or kind, too
            few random directions, or a direction of length zero.
    """
    if removal not in get_args(Removal):
        raise UserError(f"unknown removal {removal!r}; known: {', '.join(get_args(Removal))}")
    if kind not in get_args(PremiseKind):
        raise UserError(f"unknown kind {kind!r}; known: {', '.join(get_args(PremiseKind))}")
    if n_random < MINIMUM_RANDOM_DIRECTIONS:
        raise UserError(
            f"a null of {n_random} random directions says little: "
            f"at least {MINIMUM_RANDOM_DIRECTIONS} needed"
        )
    if probe.hook == "z":
        raise UserError("a probe of one head's output has no direction in the residual stream")
    probe.check_model(model)
    if not bool(probe.weight.any()):
        raise UserError("the probe's weight is zero: there is no direction to remove")
    encoded = as_encoded(model, premises)
    directions = _random_directions(n_random, len(probe.weight), seed)
    batch, at = encoded.batch(kind), encoded.objects(kind)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)

    def change_of(part: TokenBatch, some: range) -> Tensor:
        rows = torch.arange(some.start, some.stop, device=batch.tokens.device)
        of_part = at[rows]
        start = int(of_part.any(dim=0).nonzero()[0])
        run = record_run(
            model, part, start=start, keep=(probe.hook,), edits=edited_points(probe.hook)
        )
        edited = _runs_without(
            model, run, of_part[:, start:], probe, removal, directions, metric.take(rows)
        )
        return edited - apply_metric(metric.take(rows), run.logits).cpu()

    with progress_bar(total=len(batch), description="directions", shown=progress) as bar:
        changes = list(over_parts(batch, change_of, bar=bar))
    change = torch.cat(changes, dim=1).double().numpy()
    return DirectionRemoval(
        change[0],
        change[1:],
        encoded.subjects,
        encoded.templates,
        kind,
        probe.layer,
        probe.hook,
        removal,
        seed,
    )


def _random_directions(n: int, width: int, seed: int) -> Float[Tensor, "direction d_model"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=-1)


def step_along(
    values: Float[Tensor, "*tokens d_model"], probe: LinearProbe, removal: Removal
) -> Float[Tensor, " *tokens"]:
    """How far each activation has to go back along ŵ, in units of the activation."""
    weight = probe.weight.to(values)
    length = weight.norm()
    along = values @ (weight / length)
    return along + probe.bias / length if removal == "score" else along


def _runs_without(
    model: HookedModel,
    run: RecordedRun,
    at: Bool[Tensor, "prompt tail"],
    probe: LinearProbe,
    removal: Removal,
    directions: Float[Tensor, "direction d_model"],
    metric: LogitDifference,
) -> Float[Tensor, "run prompt"]:
    """The metric after a step along ŵ, and then along each random direction."""
    recorded = widened(run.values[probe.hook][probe.layer][:, :, 0])
    step = (step_along(recorded, probe, removal) * at)[..., None]
    own = torch.nn.functional.normalize(probe.weight.float(), dim=0)[None]
    rows: Int[Tensor, " row"] = torch.arange(len(run.batch), device=at.device)
    found = []
    for direction in torch.cat([own.cpu(), directions]).to(recorded):
        edited = recorded - step * direction

        def write(value: Tensor, hook: object, edited: Tensor = edited) -> Tensor:
            return torch.where(at[..., None], edited.to(value.dtype), value)

        hooks = [(hook_name(probe.hook, probe.layer), write)]
        logits = resume(model, run, layer=probe.layer, rows=rows, hooks=hooks)
        found.append(apply_metric(metric, logits).cpu())
    return torch.stack(found)
