"""``interp probe`` as a function: where a false premise can be read, and a detector of it.

The run holds the facts that the model knows, the held-out scores of a probe at every layer and
position (optionally every head), the probe beside its controls, a detector trained on the search
part with its scores on the held-out part, and a report. Repeating an interrupted call continues it;
activations are on disk while they are needed.
"""

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from interp.arguments import check_choice
from interp.commands.known import split_known
from interp.errors import UserError
from interp.figures.probe_scores import (
    DETECTION_SHAPE,
    controls_figure,
    detection_table,
    grid_figure,
    reliability_figure,
)
from interp.figures.tables import where
from interp.files.documents import read_json, write_atomically, write_json, write_table
from interp.files.shape import check_shape
from interp.files.tables import read_table
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel
from interp.premises import Split
from interp.premises.knowledge import MINIMUM_KNOWN, KnowledgeCheck
from interp.report.page import PlacedFigure, manifest_rows, render_page
from interp.runs.clock import one_moment
from interp.runs.identity import model_identity
from interp.runs.lock import one_process
from interp.runs.manifest import read_manifest, write_manifest
from probes import (
    ControlReport,
    DetectionScore,
    compare_with_controls,
    probe_grid,
    probe_heads,
    score_detector,
    train_detector,
)
from probes.activations import check_place
from probes.linear import ProbeMethod

logger = logging.getLogger(__name__)

BlockHook = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
"""An ``ActivationHook`` but for ``z``, which ``ProbeSettings.heads`` is for."""
IDENTITY = "probe.json"
LARGEST_PLACE = 10**4
_MANIFEST = {"model": {"spec": str}, "settings": {"premises": str, "hook": str}}
_CONTROLS = {"sentence": str, "control_task_auc": float, "selectivity": float}


@dataclass(frozen=True)
class ProbeSettings:
    """Settings that determine the result of ``interp probe``; part of the run's identity."""

    premises: str = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file."""
    hook: BlockHook = "resid_post"
    """Where in a block probes read."""
    method: ProbeMethod = "logistic"
    """How a probe is fitted."""
    heads: bool = False
    """Probe every head's output too."""
    detector: bool = True
    """Train a detector on the search part and score it on the held-out part."""
    check: KnowledgeCheck = "strict"
    """The knowledge check: the cloze's top tokens, or a greedy answer that names the object."""
    limit: int | None = None
    """Only the first so many facts."""
    seed: int = 0
    """Draws false objects, splits and resamples."""

    def __post_init__(self) -> None:
        check_place(self.hook, "object")
        if self.hook == "z":
            raise UserError("heads are probed with --heads; choose another --hook")
        check_choice("method", self.method, ProbeMethod)
        check_choice("check", self.check, KnowledgeCheck)


@one_process
@one_moment(IDENTITY)
def probe_run(
    model: HookedModel, settings: ProbeSettings, run: Path, *, progress: bool = True
) -> tuple[ControlReport, DetectionScore | None]:
    """Probe a model on a relation, and write the results to ``run``.

    Raises:
        UserError: another run in the directory, or too few known facts to cross-validate.
    """
    split = split_known(
        model,
        run,
        IDENTITY,
        identity={**asdict(settings), **model_identity(model)},
        minimum=MINIMUM_KNOWN,
        progress=progress,
    )
    noted = {"settings": asdict(settings), "seed": settings.seed}
    write_manifest(run, model, identity=IDENTITY, **noted)
    _write_maps(model, split, settings, run=run, progress=progress)
    report = _compare(model, split, settings, run=run, progress=progress)
    score = None
    if settings.detector:
        score = _detect(model, split, run, seed=settings.seed, progress=progress)
    shutil.rmtree(run / "activations", ignore_errors=True)
    write_probe_report(run)
    return report, score


def _write_maps(
    model: HookedModel, split: Split, settings: ProbeSettings, *, run: Path, progress: bool
) -> None:
    """Write the tables of the maps that are missing."""
    options: Any = {"method": settings.method, "seed": settings.seed, "progress": progress}
    parts, folder = (split.search, split.held_out), run / "activations"
    if not (run / "auc.csv").is_file():
        grid = probe_grid(model, *parts, hook=settings.hook, folder=folder / "map", **options)
        write_table(run / "auc.csv", grid.to_dataframe())
    if settings.heads and not (run / "auc_heads.csv").is_file():
        grid = probe_heads(model, *parts, folder=folder / "heads", **options)
        write_table(run / "auc_heads.csv", grid.to_dataframe())


def read_grid(path: Path, axis: str) -> "pd.DataFrame":
    """A table of held-out scores by layer and ``axis``, which is ``position`` or ``head``.

    Raises:
        UserError: the file is missing or malformed.
    """
    heads = axis == "head"
    table = read_table(
        path,
        texts=() if heads else (axis,),
        counts=("layer", axis) if heads else ("layer",),
        numbers=("auc", "ci_low", "ci_high", "accuracy", "search_auc"),
    )
    if table.empty or table.duplicated(["layer", axis]).any():
        raise UserError(f"{path}: needs one row for each layer and {axis}; make the run again")
    if len(table) != table["layer"].nunique() * table[axis].nunique():
        raise UserError(f"{path}: a layer lacks a {axis}; make the run again")
    if (table["layer"].max() > LARGEST_PLACE) or (heads and table["head"].max() > LARGEST_PLACE):
        raise UserError(f"{path}: no model has so many layers or heads; make the run again")
    return table


def best_layer(table: "pd.DataFrame") -> int:
    """The best layer at the object's last token, by cross-validation on the search part."""
    rows = where(table, table["position"] == "object")
    ordered = rows.sort_values(["search_auc", "layer"], ascending=[False, True])
    return int(ordered["layer"].iloc[0])


def _compare(
    model: HookedModel, split: Split, settings: ProbeSettings, *, run: Path, progress: bool
) -> ControlReport:
    """Compare the probe of the best layer with its controls, and write the outcome."""
    layer = best_layer(read_grid(run / "auc.csv", "position"))
    report = compare_with_controls(
        model,
        split.search,
        split.held_out,
        layer=layer,
        hook=settings.hook,
        seed=settings.seed,
        progress=progress,
    )
    write_table(run / "controls.csv", report.to_dataframe())
    names = ("layer", "beats_controls", "sentence", "control_task_auc", "selectivity")
    write_json(run / "controls.json", {name: getattr(report, name) for name in names})
    return report


def _detect(
    model: HookedModel, split: Split, run: Path, *, seed: int, progress: bool
) -> DetectionScore | None:
    """Train and score a detector, and write both; None if it cannot be trained."""
    try:
        detector = train_detector(
            model,
            [split.search],
            known=False,
            activations=run / "activations" / "questions",
            seed=seed,
            progress=progress,
        )
    except UserError as error:  # a result of the run; its other results are still valid
        logger.warning("no detector: %s", error)
        write_json(run / "detection.json", {"no_detector": str(error)})
        return None
    detector.save(run / "detector")
    score = score_detector(model, split.held_out, detector, seed=seed, progress=progress)
    write_json(run / "detection.json", {"layer": detector.layer, **score.to_dict()})
    write_table(run / "reliability.csv", score.curve)
    return score


def write_probe_report(run: Path) -> Path:
    """Write report.html of a finished run and return its path.

    Raises:
        UserError: the run is not finished, or one of its files is malformed.
    """
    if not (run / IDENTITY).is_file() or not (run / "controls.json").is_file():
        raise UserError(f"{run} is no finished run of `interp probe`: make one first")
    manifest = check_shape(read_manifest(run), _MANIFEST, str(run / "manifest.json"))
    controls = _read(run / "controls.json", _CONTROLS)
    known = _read(run / "known.json", {"summary": str})["summary"]
    sentences = [known, controls["sentence"], _selectivity(controls)]
    auc, settings = read_grid(run / "auc.csv", "position"), manifest["settings"]
    scores = ("auc", "ci_low", "ci_high")
    compared = read_table(run / "controls.csv", texts=("name",), numbers=scores)
    figures: dict[str, tuple[go.Figure, str]] = {
        "Where the premise can be read": (
            grid_figure(auc, axis="position", hook=settings["hook"]),
            "AUC of a probe on held-out subjects and templates; white is chance.",
        ),
        "Controls": (
            controls_figure(compared),
            "The probe of the best layer beside what it has to beat.",
        ),
    }
    if (run / "auc_heads.csv").is_file():
        figures["Which heads carry it"] = (
            grid_figure(read_grid(run / "auc_heads.csv", "head"), axis="head", hook="z"),
            "AUC of a probe on each head's output at the object's last token.",
        )
    detection = None
    path = run / "detection.json"
    if path.is_file() and "no_detector" in read_json(path):
        reason = _read(path, {"no_detector": str})["no_detector"]
        sentences.append(f"No detector could be trained: {reason}")
    elif path.is_file():
        detection = detection_table(_read(path, DETECTION_SHAPE))
        bins = read_table(run / "reliability.csv", numbers=("predicted", "observed"), counts=("n",))
        figures["Can the probabilities be believed"] = (
            reliability_figure(bins),
            "On the diagonal a probability is what it says.",
        )
    placed = {
        name: PlacedFigure.place(f"probe-{number}", figure, caption)
        for number, (name, (figure, caption)) in enumerate(figures.items())
    }
    page = render_page(
        "probes.html.j2",
        title=f"{manifest['model']['spec']}, {settings['premises']}",
        setting="",
        sentences=sentences,
        figures=placed,
        detection=detection,
        manifest=manifest_rows(manifest),
    )
    return write_atomically(run / "report.html", page)


def _read(path: Path, shape: Any) -> dict[str, Any]:
    """A JSON file of the given shape. Raises UserError otherwise."""
    return check_shape(read_json(path), shape, str(path))


def _selectivity(controls: dict[str, Any]) -> str:
    return (
        f"Learning a coin's label of each object by heart, the same probe reaches AUC "
        f"{controls['control_task_auc']:.3f} on other subjects with the same objects; its "
        f"selectivity is {controls['selectivity']:+.3f}."
    )
