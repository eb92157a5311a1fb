"""Remove a probe's direction from the activations, and measure how the answers change.

That a probe reads a false premise does not show that the answer depends on it. So the direction is
removed from the activation at every token of the object, at the probe's hook point only, and
everything after it is recomputed:

* ``component``: x ← x − (x·ŵ) ŵ, the projection out of the direction (ŵ = w / |w|);
* ``score``: x ← x − (x·ŵ + b/|w|) ŵ, so that the probe's log-odds become 0 and the rest stays.

The null takes a step of the same length at every token, along random directions instead.

Sign: ``change`` = logit difference (true − false object) without the direction minus with it;
positive where the model answers better without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import check_choice
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_scores import removal_null
from interp.forward.batch import TokenBatch
from interp.forward.hook_points import hook_name
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import RecordedRun, record_run
from interp.heads.locate import as_encoded
from interp.lazy import stats
from interp.models.hooked_model import HookedModel
from interp.moved import old_names
from interp.patching.edits import edited_points
from interp.patching.metrics import LogitDifference, apply_metric
from interp.patching.variants import Variant, run_variants
from interp.precision import widened
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises
from interp.progress import progress_bar
from interp.statistics.significance import mean_interval
from probes.activations import PremiseKind
from probes.linear import LinearProbe

RemovalMode = Literal["component", "score"]
MINIMUM_RANDOM_DIRECTIONS = 20


@dataclass(frozen=True, eq=False)
class DirectionRemoval(Displayed):
    """Change of the answers when a probe's direction, or a random one, is removed.

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
    removal: RemovalMode
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {len(self.change), self.random.shape[1], len(self.subjects), len(self.templates)}
        if len(sizes) != 1:
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
        """Compare the change with that of a head constraint on the same prompts.

        Args:
            constrained: the constraint's change of the logit difference, per prompt.

        Returns:
            ``spearman`` over prompts (NaN where either is constant), and ``share``: this mean
            change as a share of the constraint's.
        """
        other = np.asarray(constrained, dtype=float)
        if other.shape != self.change.shape:
            raise UserError(f"{len(self.change)} prompts here, {len(other)} in the constraint")
        rank = float("nan")
        if np.ptp(other) and np.ptp(self.change):
            correlation: Any = stats.spearmanr(self.change, other)
            rank = float(correlation.statistic)
        share = float(self.change.mean() / other.mean()) if other.mean() else float("nan")
        return {"spearman": rank, "share": share}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a prompt: subject, template, change, and the random directions' mean change."""
        changes = {"change": self.change, "random_change": self.random.mean(axis=0)}
        return pd.DataFrame({"subject": self.subjects, "template": self.templates, **changes})

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
    removal: RemovalMode = "component",
    n_random: int = MINIMUM_RANDOM_DIRECTIONS,
    seed: int = 0,
    progress: bool = True,
) -> DirectionRemoval:
    """Remove the probe's direction at the object's tokens, and measure how the answers change.

    Args:
        n_random: random directions of the null, ``MINIMUM_RANDOM_DIRECTIONS`` or more.

    Raises:
        UserError: a probe of another model or of heads' outputs, an unknown removal or kind, too
            few random directions, or a direction of length zero.
    """
    check_choice("removal", removal, get_args(RemovalMode))
    check_choice("kind", kind, get_args(PremiseKind))
    if n_random < MINIMUM_RANDOM_DIRECTIONS:
        raise UserError(
            f"n_random is {n_random}: the null needs at least {MINIMUM_RANDOM_DIRECTIONS} random "
            "directions"
        )
    if probe.hook == "z":
        raise UserError("a probe of one head's output has no direction in the residual stream")
    probe.check_model(model)
    if not bool(probe.weight.any()):
        raise UserError("the probe's weight is zero: there is no direction to remove")
    encoded = as_encoded(model, premises)
    drawn = torch.randn(n_random, len(probe.weight), generator=torch.Generator().manual_seed(seed))
    along = torch.cat([probe.weight.float().cpu()[None], drawn])
    directions = torch.nn.functional.normalize(along, dim=-1)
    batch, at = encoded.batch(kind), encoded.objects(kind)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)

    def change_of(part: TokenBatch, some: range) -> Float[Tensor, "direction prompt"]:
        rows = torch.arange(some.start, some.stop, device=batch.tokens.device)
        start = int(at[rows].any(dim=0).nonzero()[0])
        run = record_run(
            model, part, start=start, keep=(probe.hook,), edits=edited_points(probe.hook)
        )
        variants = _variants(run, at[rows, run.start :], probe, removal=removal, along=directions)
        logits = (run.logits, *run_variants(model, run, variants))
        before, *after = [apply_metric(metric.take(rows), found).cpu() for found in logits]
        return torch.stack(after) - before

    with progress_bar(total=len(batch), description="directions", shown=progress) as bar:
        changes = list(over_parts(batch, change_of, bar=bar))
    change = torch.cat(changes, dim=1).double().numpy()
    return DirectionRemoval(
        change=change[0],
        random=change[1:],
        subjects=encoded.subjects,
        templates=encoded.templates,
        kind=kind,
        layer=probe.layer,
        hook=probe.hook,
        removal=removal,
        seed=seed,
    )


def step_along(
    values: Float[Tensor, "*tokens d_model"], probe: LinearProbe, removal: RemovalMode
) -> Float[Tensor, " *tokens"]:
    """The length of the step along −ŵ at each token, in units of the activation."""
    weight = probe.weight.to(values)
    length = weight.norm()
    along = values @ (weight / length)
    return along + probe.bias / length if removal == "score" else along


def _variants(
    run: RecordedRun,
    at: Bool[Tensor, "prompt pos"],
    probe: LinearProbe,
    *,
    removal: RemovalMode,
    along: Float[Tensor, "direction d_model"],
) -> Iterator[Variant]:
    """The run with the probe's step taken along each direction in turn."""
    recorded = widened(run.values[probe.hook][probe.layer][:, :, 0])
    step = (step_along(recorded, probe, removal) * at)[..., None]
    for direction in along.to(recorded):
        edited = recorded - step * direction

        def write(value: Tensor, hook: object, edited: Tensor = edited) -> Tensor:
            return torch.where(at[..., None].to(value.device), edited.to(value), value)

        yield Variant(probe.layer, ((hook_name(probe.hook, probe.layer), write),))


__getattr__ = old_names(__name__)
