"""``interp probe`` as a function: where a model reads a false premise, and a detector of it.

The run holds the facts the model knows, the held-out scores of a probe at every layer and position
(and every head, if asked for), the probe beside its controls, a detector trained on the search
part with its scores on the held-out part, figures and a report. The same call again takes up what
is finished; activations are on disk while they are needed.
"""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

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
from interp.files import check_shape, read_table
from interp.files.choice import check_choice
from interp.files.documents import read_json, write_atomically, write_json, write_table
from interp.models.hooked_model import HookedModel
from interp.premises import Split
from interp.premises.knowledge import MINIMUM_KNOWN, KnowledgeCheck
from interp.report.probes import render_probe_report
from interp.runs.clock import one_moment
from interp.runs.identity import model_identity
from interp.runs.lock import one_process
from interp.runs.manifest import read_manifest, write_manifest
from interp.runs.prompting import noted_prompts
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
    """What decides the outcome of ``interp probe``; part of the run's identity."""

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
    """Probe a model on a relation, and leave everything in ``run``.

    Raises:
        UserError: another run in the directory, or too few known facts to cross-validate.
    """
    split = split_known(
        model,
        run,
        IDENTITY,
        {**asdict(settings), **model_identity(model)},
        minimum=MINIMUM_KNOWN,
        progress=progress,
    )
    write_manifest(
        run,
        model,
        settings=asdict(settings),
        seed=settings.seed,
        **noted_prompts(read_json(run / IDENTITY)),
    )
    _maps(model, split, settings, run, progress)
    report = _controls(model, split, settings, run, progress)
    score = _detector(model, split, settings, run, progress) if settings.detector else None
    shutil.rmtree(run / "activations", ignore_errors=True)
    write_probe_report(run)
    return report, score


def _maps(
    model: HookedModel, split: Split, settings: ProbeSettings, run: Path, progress: bool
) -> None:
    """The tables of the maps, unless they are there."""
    options: dict[str, Any] = {
        "method": settings.method,
        "seed": settings.seed,
        "progress": progress,
    }
    if not (run / "auc.csv").is_file():
        grid = probe_grid(
            model,
            split.search,
            split.held_out,
            hook=settings.hook,
            folder=run / "activations" / "map",
            **options,
        )
        write_table(run / "auc.csv", grid.to_dataframe())
    if settings.heads and not (run / "auc_heads.csv").is_file():
        grid = probe_heads(
            model, split.search, split.held_out, folder=run / "activations" / "heads", **options
        )
        write_table(run / "auc_heads.csv", grid.to_dataframe())


def read_grid(path: Path, axis: str) -> pd.DataFrame:
    """A table of held-out scores by layer and position, or head. Raises UserError otherwise."""
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


def best_layer(table: pd.DataFrame) -> int:
    """The layer that is best at the object's last token, by the search part's cross-validation."""
    rows = where(table, table["position"] == "object")
    ordered = rows.sort_values(["search_auc", "layer"], ascending=[False, True])
    return int(ordered["layer"].iloc[0])


def _controls(
    model: HookedModel, split: Split, settings: ProbeSettings, run: Path, progress: bool
) -> ControlReport:
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
    content = {
        "layer": report.layer,
        "beats_controls": report.beats_controls,
        "sentence": report.sentence,
        "control_task_auc": report.control_task_auc,
        "selectivity": report.selectivity,
    }
    write_json(run / "controls.json", content)
    return report


def _detector(
    model: HookedModel, split: Split, settings: ProbeSettings, run: Path, progress: bool
) -> DetectionScore | None:
    try:
        detector = train_detector(
            model,
            [split.search],
            known=False,
            activations=run / "activations" / "questions",
            seed=settings.seed,
            progress=progress,
        )
    except UserError as error:  # a finding, and no reason to lose the rest of the run
        logger.warning("no detector: %s", error)
        write_json(run / "detection.json", {"no_detector": str(error)})
        return None
    detector.save(run / "detector")
    score = score_detector(model, split.held_out, detector, seed=settings.seed, progress=progress)
    write_json(run / "detection.json", {"layer": detector.layer, **score.to_dict()})
    write_table(run / "reliability.csv", score.curve)
    return score


def write_probe_report(run: Path) -> Path:
    """Write report.html of a finished run. Raises UserError where there is none."""
    if not (run / IDENTITY).is_file() or not (run / "controls.json").is_file():
        raise UserError(f"{run} is no finished run of `interp probe`: make one first")
    manifest = check_shape(read_manifest(run), _MANIFEST, str(run / "manifest.json"))
    controls = check_shape(read_json(run / "controls.json"), _CONTROLS, str(run / "controls.json"))
    known = check_shape(read_json(run / "known.json"), {"summary": str}, str(run / "known.json"))[
        "summary"
    ]
    sentences = [known, controls["sentence"], _selectivity(controls)]
    auc = read_grid(run / "auc.csv", "position")
    settings = manifest["settings"]
    figures: dict[str, tuple[go.Figure, str]] = {
        "Where the premise can be read": (
            grid_figure(auc, axis="position", hook=settings["hook"]),
            "AUC of a probe on held-out subjects and templates; white is chance.",
        ),
        "Controls": (
            controls_figure(
                read_table(
                    run / "controls.csv", texts=("name",), numbers=("auc", "ci_low", "ci_high")
                )
            ),
            "The probe of the best layer beside what it has to beat.",
        ),
    }
    if (run / "auc_heads.csv").is_file():
        figures["Which heads carry it"] = (
            grid_figure(read_grid(run / "auc_heads.csv", "head"), axis="head", hook="z"),
            "AUC of a probe on each head's output at the object's last token.",
        )
    detection = None
    found = read_json(run / "detection.json") if (run / "detection.json").is_file() else {}
    if "no_detector" in found:
        check_shape(found, {"no_detector": str}, str(run / "detection.json"))
        sentences.append(f"No detector could be trained: {found['no_detector']}")
    elif found:
        detection = detection_table(
            check_shape(found, DETECTION_SHAPE, str(run / "detection.json"))
        )
        figures["Can the probabilities be believed"] = (
            reliability_figure(
                read_table(
                    run / "reliability.csv", numbers=("predicted", "observed"), counts=("n",)
                )
            ),
            "On the diagonal a probability is what it says.",
        )
    page = render_probe_report(
        title=f"{manifest['model']['spec']}, {settings['premises']}",
        sentences=sentences,
        figures=figures,
        detection=detection,
        manifest={
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in manifest.items()
        },
    )
    return write_atomically(run / "report.html", page)


def _selectivity(controls: dict[str, Any]) -> str:
    return (
        f"Learning a coin's label of each object by heart, the same probe reaches AUC "
        f"{controls['control_task_auc']:.3f} on other subjects with the same objects; its "
        f"selectivity is {controls['selectivity']:+.3f}."
    )
