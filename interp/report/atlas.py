"""An atlas of models: a row for each run directory, of what its files say of heads and experts.

Runs of ``interp locate``, ``interp evaluate`` and ``interp demo`` give heads, their stability,
their transfer, the gate and the cost; runs of ``interp moelora train`` and ``interp moelora
analyze`` give an adapter and its experts. Nothing is computed by a model here.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from interp.arguments import as_path
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.atlas import heads_by_depth
from interp.figures.tables import rows_of_site
from interp.files.links import check_links
from interp.heads.effects import HeadEffects, load_effects
from interp.heads.headset import Head
from interp.heads.joint import STABILITY_COLUMNS, JointEffects
from interp.lazy import go, pd
from interp.report.atlas_cells import (
    COMPARED_HEADS,
    Cells,
    analysis_cells,
    evaluation_cells,
    head_cells,
    model_cells,
    other_relations,
    read_run_manifest,
    search_cells,
    stability_cells,
    training_cells,
    transfer_cells,
)
from interp.report.read_run import Run, read_run

logger = logging.getLogger(__name__)

TEXTS = (
    *("run", "kind", "model", "fingerprint", "architecture", "dtype", "quantization", "adapter"),
    *("relations", "method", "site", "heads", "stability_over", "random_gate"),
    *("left_out_worst_in", "other_relations", "version", "written"),
)
COUNTS = (
    *("parameters", "known", "n_heads", "scored", "random_sets", "left_out_relations"),
    *("left_out_heads", "experts", "top_k", "rank", "trainable_parameters", "steps"),
    *("specialized_projections", "projections", "task_experts", "tested_experts"),
    *("dead_experts", "effective_experts", "switched_off_experts"),
)
COLUMNS = (
    *("run", "kind", "model", "fingerprint", "architecture", "parameters", "dtype"),
    *("quantization", "adapter", "relations", "method", "site", "known"),
    *("n_heads", "head_share", "heads", "depth"),
    *("stability_over", "stability", "stability_low", "stability_high", "stability_null"),
    *("rank_correlation", "rank_correlation_null"),
    *("scored", "preference", "preference_low", "preference_high"),
    *("preference_told", "preference_told_low", "preference_told_high"),
    *("twin_cost_told", "p_true_fall_told"),
    *("random_mean", "random_p95", "random_sets", "random_gate"),
    *("preference_gated", "preference_gated_low", "preference_gated_high"),
    *("gain_kept", "twin_cost_gated", "p_true_fall_gated", "fired_on_false", "fired_on_twins"),
    *("left_out_relations", "left_out_heads", "left_out"),
    *("left_out_told", "left_out_told_low", "left_out_told_high"),
    *("left_out_worst", "left_out_worst_in", "left_out_p_true_fall", "other_relations"),
    *("experts", "top_k", "rank", "trainable_parameters", "steps", "accuracy", "expert_cosine"),
    *("task_information", "task_information_null", "specialized_projections", "projections"),
    *("task_experts", "tested_experts", "dead_experts", "effective_experts"),
    *("switched_off_experts", "version", "written"),
)
"""The columns of ``atlas.csv``; `docs/reference/run-directory.md` says what each one is."""
HEAD_COLUMNS = ["run", "layer", "head", "depth", "place", "effect", "share", "selected"]
FIRST_COLUMNS = [
    *("run", "model", "dtype", "n_heads", "stability"),
    *("preference", "preference_told", "preference_gated"),
]
"""The columns that a terminal or a notebook shows."""
_OTHER_KINDS = {
    "patch.json": "patch",
    "circuit_run.json": "circuit",
    "comparison.json": "moelora compare",
    "probe.json": "probe",
}


@dataclass(frozen=True)
class AtlasEntry:
    """A run directory as it was read.

    Attributes:
        cells: its row; an absent cell is empty.
        heads: every head of its site, in `HEAD_COLUMNS`; None for an adapter's run.
        effects: those of its site on each prompt, where the run still has them.
    """

    cells: Cells
    heads: "pd.DataFrame | None" = None
    effects: HeadEffects | None = None


@dataclass(frozen=True, eq=False)
class Atlas(Displayed):
    """Runs side by side.

    Attributes:
        rows: one row a run, in `COLUMNS`; a cell that a run does not hold is empty.
        heads: one row a head of every run: where it is and what it does.
        comparisons: one row a pair of runs of one architecture and site. ``a``, ``b``, ``site``,
            ``n_heads``; ``jaccard`` of that many heads with the largest effects and ``spearman`` of
            all effects, each with ``_null`` (mean) and ``_null_p95`` over draws within layers.
        skipped: what was no run, or could not be read, and why.
    """

    rows: "pd.DataFrame"
    heads: "pd.DataFrame"
    comparisons: "pd.DataFrame"
    skipped: tuple[tuple[str, str], ...] = ()

    def to_dataframe(self) -> "pd.DataFrame":
        """The rows, in the columns of ``atlas.csv``."""
        return self.rows

    def plot(self) -> "go.Figure":
        """The heads of every run on relative depth. Raises UserError if no run has heads."""
        if self.heads.empty:
            raise UserError("no run of the atlas has heads: give runs of `interp locate`")
        return heads_by_depth(self.heads)

    def _shown(self) -> Shown:
        n_models = self.rows["fingerprint"].nunique(dropna=False)
        text = f"{len(self.rows)} runs of {n_models} models"
        text += f"; {len(self.skipped)} left out." if self.skipped else "."
        figure = None if self.heads.empty else self.plot
        return Shown(text, (self.rows.filter(items=FIRST_COLUMNS),), figure)


@checked
def atlas(runs: Iterable[str | Path]) -> Atlas:
    """Read run directories into an atlas: a row each, in their order; one given twice counts once.

    A directory that is no run, or whose files are damaged, is left out, with one line that says
    why (`Atlas.skipped`, and a warning).

    Raises:
        UserError: no directory at all, or none that can be read.
    """
    folders: dict[str, Path] = {}
    for run in runs:
        path = as_path("a run directory", run)
        folders.setdefault(os.path.realpath(path), path)
    paths = list(folders.values())
    if not paths:
        raise UserError("an atlas needs at least one run directory: name those of `interp locate`")
    entries: list[AtlasEntry] = []
    skipped: list[tuple[str, str]] = []
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            entries.append(_read(path, name))
        except UserError as error:
            logger.warning("left out: %s", error)
            skipped.append((name, str(error)))
    if not entries:
        raise UserError(f"none of these {len(paths)} can be read; the first: {skipped[0][1]}")
    heads = [entry.heads for entry in entries if entry.heads is not None]
    return Atlas(
        _table([entry.cells for entry in entries]),
        pd.concat(heads, ignore_index=True) if heads else pd.DataFrame(columns=HEAD_COLUMNS),
        _comparisons(entries),
        tuple(skipped),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The directories' own names; the whole path where two have the same."""
    names = [Path(os.path.abspath(path)).name for path in paths]
    return [
        str(path) if names.count(name) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]


def _read(folder: Path, name: str) -> AtlasEntry:
    """A run of any kind that has heads or an adapter. Raises UserError for anything else."""
    if not os.path.isdir(folder):  # Path.is_dir() raises on some names
        raise UserError(f"{folder} is not a directory; give the directory of a run")
    check_links(folder)
    for file, command in _OTHER_KINDS.items():
        if (folder / file).is_file():
            raise UserError(
                f"{folder} is a run of `interp {command}`, which has no row in an atlas"
            )
    kinds: tuple[tuple[str, str, str, Callable[[Path], Cells]], ...] = (
        ("training.json", "metrics.json", "training", training_cells),
        ("analyze.json", "measures.json", "analysis", analysis_cells),
    )
    for identity, last, kind, read in kinds:
        if (folder / identity).is_file():
            if not (folder / last).is_file():
                raise UserError(f"{folder} is not finished: it has no {last}; run it again")
            model = model_cells(read_run_manifest(folder), folder)
            return AtlasEntry({"run": name, "kind": kind, **model, **read(folder)})
    return _read_search(folder, name)


def _read_search(folder: Path, name: str) -> AtlasEntry:
    """A run that searched heads."""
    run, manifest = read_run(folder), read_run_manifest(folder)
    sites = list(run.heads["site"].unique())
    evaluated = "" if run.evaluation is None else run.evaluation.get("site") or ""
    site = str(evaluated if evaluated in sites else sites[0])
    heads = _heads_table(run, site, name)
    path = folder / "effects.safetensors"
    effects = load_effects(path).get(site) if path.is_file() else None
    shape = (int(heads["layer"].max()) + 1, int(heads["head"].max()) + 1)
    if effects is not None and effects.values.shape[1:] != shape:
        raise UserError(f"{path} is of a model of another size than heads.csv: make the run again")
    chosen = _chosen_heads(run, heads, evaluated=evaluated == site)
    cells = {"run": name, "kind": "search", **model_cells(manifest, folder), "site": site}
    cells |= search_cells(manifest, folder) | head_cells(chosen, heads)
    cells |= stability_cells(folder, site, effects)
    if run.evaluation is not None:
        cells |= evaluation_cells(run.evaluation)
    if run.transfer is not None:
        cells |= transfer_cells(run.transfer, cells)
    cells |= other_relations(folder)
    heads["selected"] = [pair in chosen for pair in zip(heads["layer"], heads["head"], strict=True)]
    return AtlasEntry(cells, heads.filter(items=HEAD_COLUMNS), effects)


def _heads_table(run: Run, site: str, name: str) -> "pd.DataFrame":
    """Every head of a site with its place in the model, and its share of the largest effect."""
    table = rows_of_site(run.heads, site).sort_values("rank").reset_index(drop=True)
    deepest, last = table["layer"].max(), table["head"].max()
    largest = table["effect"].max()
    table["run"] = name
    table["depth"] = table["layer"] / max(deepest, 1)
    table["place"] = table["head"] / max(last, 1)
    table["share"] = table["effect"] / (largest if largest > 0 else 1.0)
    return table


def _chosen_heads(run: Run, heads: "pd.DataFrame", *, evaluated: bool) -> list[Head]:
    """The heads that were evaluated, else those that are marked, largest effect first."""
    named: Any = run.evaluation.get("heads") if evaluated and run.evaluation is not None else None
    if named is not None:
        return [(int(layer), int(head)) for layer, head in named]
    marked = heads.loc[heads["selected"]]
    return [
        (int(layer), int(head)) for layer, head in zip(marked["layer"], marked["head"], strict=True)
    ]


def _table(rows: Sequence[Cells]) -> "pd.DataFrame":
    """The rows in `COLUMNS`, each column of its own type, so that an empty cell stays empty."""
    if unknown := {name for row in rows for name in row} - set(COLUMNS):
        raise ValueError(f"cells without a column: {sorted(unknown)}")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    kinds = dict.fromkeys(COLUMNS, "Float64")
    kinds |= dict.fromkeys(COUNTS, "Int64") | dict.fromkeys(TEXTS, "string")
    return table.astype(kinds)


def _comparisons(entries: Sequence[AtlasEntry]) -> "pd.DataFrame":
    """Every pair of runs whose heads can be set side by side."""
    rows = []
    for first, second in combinations(entries, 2):
        a, b = first.effects, second.effects
        if a is None or b is None or not _is_comparable(first, second):
            continue
        count = min(COMPARED_HEADS, a.n_heads // 2)
        names = [str(entry.cells["run"]) for entry in (first, second)]
        (found,) = (
            JointEffects(dict(zip(names, (a, b), strict=True))).stability(count).to_dict("records")
        )
        rows.append({**found, "site": a.site, "n_heads": count})
    columns = [*STABILITY_COLUMNS[:2], "site", "n_heads", *STABILITY_COLUMNS[2:]]
    return pd.DataFrame(rows, columns=columns)


def _is_comparable(first: AtlasEntry, second: AtlasEntry) -> bool:
    """Whether two runs with effects are of one architecture, and the effects of the same kind.

    Where a run of an older version does not name the architecture, the model's name decides.
    """
    a, b = first.effects, second.effects
    if any(getattr(a, what) != getattr(b, what) for what in ("site", "method", "source")):
        return False
    if a is None or b is None or a.values.shape[1:] != b.values.shape[1:] or a.n_heads < 2:
        return False
    named = [entry.cells["architecture"] for entry in (first, second)]
    of_model = [entry.cells["model"] for entry in (first, second)]
    return named[0] == named[1] if None not in named else of_model[0] == of_model[1]
