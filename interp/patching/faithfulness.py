"""How much of a behaviour do the first k nodes of a ranking carry? The faithfulness curve of MIB.

The circuit of k nodes is run on the clean prompts with every *other* ranked node at the value that
it has in the corrupted run. With m for the mean metric over prompts,

    f(k) = (m(circuit) − m(corrupted)) / (m(clean) − m(corrupted)),

at k = ⌊p · n⌋ of n ranked nodes for MIB's ten proportions p from 0.001 to 1. **CPR** is the area
under f over p, **CMD** that between f and one, |1 − f|; both by trapezoids between the ten points
(MIB, arXiv 2504.13151, section 3; ``evaluate_area_under_curve`` of its circuit track). MIB gives
CPR for rankings by signed score, which look for what helps, and CMD for rankings by absolute
score, which look for what matters.

Nodes are heads (patched at their output before the output projection) and MLPs. Nodes that are not
ranked, such as MLPs in a ranking of heads, are in every circuit, as in MIB; so is the input.
Intervals resample groups of prompts. Random orders of the same nodes are the null.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.arguments import listed, pairs_of_numbers, real_number, whole_number
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.patching import faithfulness_figure
from interp.forward.batch import Prompts
from interp.forward.hook_points import hook_name
from interp.forward.memory import Budget
from interp.forward.partial import RecordedRun, record_run, unedited_logits
from interp.forward.trial import keeping_unhooked
from interp.lazy import integrate, pd
from interp.models.hooked_model import HookedModel
from interp.patching.alignment import align
from interp.patching.chunks import chunk_prompts, first_position, row_demand
from interp.patching.circuit import Node, head_node, parse_node
from interp.patching.edits import ActivationEdit, rows_of_units
from interp.patching.effect_arrays import has_gap
from interp.patching.metrics import Metric, can_take
from interp.patching.patch_inputs import PatchInputs
from interp.patching.patch_source import patching_edit
from interp.patching.sweep import check_units
from interp.patching.variants import Variant, measure_runs, metrics_for, run_variants
from interp.precision import result_dtype
from interp.statistics.resampling import group_draws, resamples_at_once
from interp.statistics.significance import BOOTSTRAP_RESAMPLES, CONFIDENCE, group_order

PROPORTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's proportions of nodes in the circuit."""
INTERVAL = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
"""Percentiles of the resamples between which the interval lies."""


@dataclass(frozen=True, eq=False)
class Faithfulness(Displayed):
    """A faithfulness curve.

    Attributes:
        proportions, counts: how many nodes each circuit keeps.
        circuit: Float[prompt proportion], the metric with the ranking's first nodes.
        clean, corrupted: Float[prompt], the metric in the whole runs.
        random: Float[order prompt proportion], the same for random orders of the nodes.
        groups: of each prompt.
        seed: of the intervals.
        kind: what the circuits keep, "nodes" or "edges".
    """

    proportions: tuple[float, ...]
    counts: tuple[int, ...]
    circuit: Float[Tensor, "prompt proportion"]
    clean: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]
    random: Float[Tensor, "order prompt proportion"]
    groups: tuple[str, ...]
    seed: int = 0
    kind: str = "nodes"

    def __post_init__(self) -> None:
        if not has_gap(self.clean, self.corrupted):
            raise UserError(
                "clean and corrupted runs have the same mean metric: faithfulness is not defined"
            )

    @property
    def curve(self) -> Float[np.ndarray, " proportion"]:
        """f at each proportion."""
        return self._curve(self.circuit, np.ones((1, len(self.clean))))[0]

    @property
    def random_curves(self) -> Float[np.ndarray, "order proportion"]:
        """f at each proportion of each random order."""
        weights = np.ones((1, len(self.clean)))
        curves = [self._curve(circuit, weights)[0] for circuit in self.random]
        return np.array(curves).reshape(len(self.random), len(self.proportions))

    @property
    def cpr(self) -> tuple[float, float, float]:
        """Area under f, with its interval; larger is better."""
        return self._with_interval(area_under)

    @property
    def cmd(self) -> tuple[float, float, float]:
        """Area between f and one, with its interval; smaller is better."""
        return self._with_interval(area_from_one)

    @property
    def random_cpr(self) -> Float[np.ndarray, " order"]:
        """CPR of each random order."""
        return area_under(self.proportions, self.random_curves)

    @property
    def random_cmd(self) -> Float[np.ndarray, " order"]:
        """CMD of each random order."""
        return area_from_one(self.proportions, self.random_curves)

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a proportion: ``proportion``, ``n_nodes`` (or ``n_edges``), ``faithfulness``, its
        interval, and ``random_mean``, ``random_low`` and ``random_high`` (least, largest)."""
        low, high = np.percentile(self._drawn_curves(), INTERVAL, axis=0)
        random = self.random_curves
        random = random if len(random) else np.full((1, len(self.proportions)), np.nan)
        return pd.DataFrame(
            {
                "proportion": self.proportions,
                f"n_{self.kind}": self.counts,
                "faithfulness": self.curve,
                "ci_low": low,
                "ci_high": high,
                "random_mean": random.mean(axis=0),
                "random_low": random.min(axis=0),
                "random_high": random.max(axis=0),
            }
        )

    def plot(self) -> Any:
        """A figure of the curve over its null; see ``interp.figures.patching``."""
        return faithfulness_figure(
            self.to_dataframe(),
            self.random_curves,
            cpr=self.cpr[0],
            cmd=self.cmd[0],
            kind=self.kind,
        )

    def _curve(
        self, circuit: Float[Tensor, "prompt proportion"], weights: np.ndarray
    ) -> Float[np.ndarray, "draw proportion"]:
        """f with prompts weighted: a ratio of means, one row for each row of weights."""
        corrupted = weights @ self.corrupted.double().numpy()
        gap = weights @ self.clean.double().numpy() - corrupted
        return (weights @ circuit.double().numpy() - corrupted[:, None]) / gap[:, None]

    def _drawn_curves(self) -> Float[np.ndarray, "draw proportion"]:
        """f in each resample of groups, some resamples at a time."""
        index = group_order(self.groups, len(self.clean))
        generator = np.random.default_rng(self.seed)
        size = resamples_at_once(3 * len(index), BOOTSTRAP_RESAMPLES)
        draws = group_draws(int(index.max()) + 1, BOOTSTRAP_RESAMPLES, size, generator=generator)
        curves = [self._curve(self.circuit, counts[:, index].astype(float)) for counts in draws]
        return np.concatenate(curves)

    def _with_interval(self, area: Any) -> tuple[float, float, float]:
        low, high = np.percentile(area(self.proportions, self._drawn_curves()), INTERVAL)
        return float(area(self.proportions, self.curve[None])[0]), float(low), float(high)

    def _shown(self) -> Shown:
        (cpr, cpr_low, cpr_high), (cmd, cmd_low, cmd_high) = self.cpr, self.cmd
        text = (
            f"Faithfulness of circuits on {len(self.clean)} prompts: CPR {cpr:.3f} [{cpr_low:.3f}, "
            f"{cpr_high:.3f}], CMD {cmd:.3f} [{cmd_low:.3f}, {cmd_high:.3f}]; {len(self.random)} "
            "random orders."
        )
        return Shown(text, (self.to_dataframe(),), self.plot)


def area_under(
    proportions: Sequence[float], curves: Float[np.ndarray, "curve proportion"]
) -> Float[np.ndarray, " curve"]:
    """Area under each curve by trapezoids between the given points, none added: MIB's CPR."""
    return integrate.trapezoid(curves, np.asarray(proportions), axis=1)


def area_from_one(
    proportions: Sequence[float], curves: Float[np.ndarray, "curve proportion"]
) -> Float[np.ndarray, " curve"]:
    """Area of |1 − f| by trapezoids between the given points: MIB's CMD."""
    return integrate.trapezoid(np.abs(1 - curves), np.asarray(proportions), axis=1)


@checked
@keeping_unhooked()
def faithfulness_curve(
    model: HookedModel,
    clean: Prompts,
    corrupted: Prompts,
    metric: Metric,
    *,
    ranking: Iterable[Node | tuple[int, int]],
    proportions: Sequence[float] = PROPORTIONS,
    n_random: int = 5,
    groups: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> Faithfulness:
    """Run the circuits of a ranking's first nodes on the clean prompts.

    Args:
        clean, corrupted: pairs of prompts of equal lengths.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt].
        ranking: every node once, most important first: (layer, head), or names such as ``a3.h1``
            and ``m3`` for an MLP.
        n_random: how many random orders make the null.
        groups: of each prompt, for the intervals; by default each prompt its own.

    Raises:
        UserError: a node that is not there or comes twice, proportions that do not rise from
            above 0 to 1, unequal lengths, or no gap between the clean and corrupted metric.
    """
    inputs = PatchInputs(
        model, clean, corrupted, metric, groups=groups, seed=seed, budget=budget, progress=progress
    )
    nodes = [
        node if isinstance(node, str) else head_node(*pairs_of_numbers("nodes", [node])[0])
        for node in listed("ranking", ranking, "nodes")
    ]
    n_random = whole_number("n_random", n_random, least=0)
    seed = whole_number("seed", seed, least=0)
    units = _units_of(model, nodes)
    proportions = check_proportions(proportions)
    counts = tuple(int(p * len(nodes)) for p in proportions)
    generator = np.random.default_rng(seed)
    orders = [units]
    orders += [[units[i] for i in generator.permutation(len(units))] for _ in range(n_random)]
    dropped = [frozenset(order[count:]) for order in orders for count in counts]
    different = list(dict.fromkeys(dropped))
    values = _run_without(inputs, different)
    index = [2 + different.index(units) for units in dropped]
    n_prompts = len(values)
    curves = values[:, index].reshape(n_prompts, len(orders), len(counts)).transpose(0, 1)
    return Faithfulness(
        proportions=proportions,
        counts=counts,
        circuit=curves[0],
        clean=values[:, 0],
        corrupted=values[:, 1],
        random=curves[1:],
        groups=tuple(inputs.groups) or tuple(map(str, range(n_prompts))),
        seed=seed,
    )


def check_proportions(given: Sequence[float]) -> tuple[float, ...]:
    """The proportions of a curve. Raises UserError unless they rise from above 0 to at most 1."""
    proportions = [real_number("proportion", share) for share in listed("proportions", given)]
    rising = [0.0, *proportions]
    if rising != sorted(set(rising)) or rising[-1] > 1 or len(rising) < 3:
        raise UserError("proportions rise from above 0 to at most 1, and are at least two")
    return tuple(proportions)


_Part = tuple[str, int, int]
"""Component, layer, unit."""


def _units_of(model: HookedModel, nodes: Sequence[Node]) -> list[_Part]:
    if not nodes:
        raise UserError("the ranking is empty: name at least one node")
    if len(set(nodes)) < len(nodes):
        raise UserError("a node comes twice in the ranking")
    units = []
    for name in nodes:
        layer, head = parse_node(name)
        component, unit = ("mlp_out", 0) if head is None else ("z", head)
        check_units(model, [(layer, unit)], component)
        units.append((component, layer, unit))
    return units


def _run_without(
    inputs: PatchInputs, sets: Sequence[frozenset[_Part]]
) -> Float[Tensor, "prompt run"]:
    """The metric of the clean run, of the corrupted run, and of the clean one without each set.

    Without a set, its units have the values of the corrupted run.
    """
    model, clean, corrupted, metric = inputs.model, inputs.clean, inputs.corrupted, inputs.metric
    components = sorted({component for units in sets for component, _, _ in units})
    # The source of each edit is recorded as well, one after the other.
    demand = row_demand(model, 1, "z", edits=[*components, "z"])
    at = align(corrupted, clean, "all").at
    chunks = chunk_prompts(at, demand, metrics=[metric], budget=inputs.budget)

    def runs(chunk: list[int]) -> Iterator[Tensor]:
        measure = metrics_for([metric], inputs.index(chunk))
        part, other = clean.take(chunk), corrupted.take(chunk)
        alignment = align(other, part, "all")
        edits = {
            name: patching_edit(model, other, alignment, component=name) for name in components
        }
        start, points = first_position(alignment.at), [hook_name(name, 0) for name in components]
        run = record_run(model, part, start=start, keep=(), edits=points)
        yield measure(run.logits)
        yield measure(unedited_logits(model, other))
        variants = [_without(edits, dropped, run) for dropped in sets]
        yield from map(measure, run_variants(model, run, variants))

    return measure_runs(
        runs,
        chunks,
        shape=(1, len(clean), 2 + len(sets)),
        dtype=result_dtype(model),
        divisible=can_take([metric]),
        progress=inputs.progress,
        description="circuits",
    )[0]


def _without(
    edits: Mapping[str, ActivationEdit], dropped: frozenset[_Part], run: RecordedRun
) -> Variant:
    """The run with the corrupted values at all units of a set."""
    rows = run.batch.every_row
    by_layer: dict[tuple[str, int], list[int]] = {}
    for component, layer, unit in dropped:
        by_layer.setdefault((component, layer), []).append(unit)
    hooks = []
    for (component, layer), units in by_layer.items():
        source = edits[component].source
        assert source is not None
        acting = rows_of_units([units], source.shape[3], len(rows), device=rows.device)
        hooks.append(edits[component].hook(layer, rows=rows, units=acting, start=run.start))
    return Variant(min((layer for _, layer in by_layer), default=0), tuple(hooks))
