"""Opening: an explorer from a run directory, or from a model and the effects of its heads."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from interp.commands.detector import has_detector, run_detector
from interp.commands.locate import check_same_prompts, load_run
from interp.errors import UserError
from interp.explore.explorer import Explorer
from interp.files import Maybe, check_shape
from interp.files.documents import read_json
from interp.heads.effects import HeadEffects
from interp.interventions.head_constraint import Constraint
from interp.models import load_model
from interp.models.hooked_model import HookedModel
from interp.premises.questions import Split
from interp.report.read_run import read_heads
from interp.runs.manifest import read_manifest, recorded_model
from probes.detector.detections import Detector


def check_explorable(run: Path) -> None:
    """Raise UserError if a directory holds no run of ``interp locate``."""
    if not run.is_dir():
        raise UserError(f"there is no run {run}: make one with `interp locate --out {run}`")
    read_manifest(run)
    for name in ("heads.csv", "premises.jsonl", "effects.safetensors"):
        if not (run / name).is_file():
            raise UserError(
                f"{run} has no {name}: only a run of `interp locate` or `interp demo` can be "
                "explored"
            )


def open_run(
    run: str | Path,
    *,
    model: HookedModel | None = None,
    detector: Detector | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> Explorer:
    """An explorer of a run of ``interp locate``.

    Args:
        model: the run's model, if it is loaded already; else it is loaded on ``device``.
        detector: by default the run's own, which is trained on the search part when first needed
            and left in the run.

    Raises:
        UserError: no such run, another model, or facts that have changed since.
    """
    run = Path(run)
    check_explorable(run)
    settings, split, _ = load_run(run)
    heads = read_heads(run / "heads.csv")
    if model is None:
        model = load_model(recorded_model(run)["spec"], device=device, dtype=dtype)
    check_same_prompts(run, model)

    def make() -> Detector:
        return run_detector(model, split, run, seed=settings.seed, progress=False)

    if detector is None and has_detector(run):
        detector = make()
    explorer = Explorer(model, heads, split=split, detector=detector or make)
    explorer.start = _evaluated(run, explorer) or explorer.start
    return explorer


def open_model(
    model: HookedModel,
    effects: HeadEffects | Iterable[HeadEffects],
    *,
    split: Split | None = None,
    detector: Detector | None = None,
) -> Explorer:
    """An explorer of a model and the effects of its heads, at one site or both.

    Args:
        split: the premises of the search, for mode ``mean`` and for examples.
        detector: by default the model's own, ``probes.detector_for(model)``.
    """
    several = [effects] if isinstance(effects, HeadEffects) else list(effects)
    if not several:
        raise UserError("there are no effects to explore: give those of interp.locate_heads")
    sites = [one.site for one in several]
    if len(set(sites)) < len(sites):
        raise UserError(f"give the effects of one search a site, not of {', '.join(sites)}")
    heads = pd.concat([one.to_dataframe() for one in several], ignore_index=True)
    return Explorer(model, heads, split=split, detector=detector)


def _evaluated(run: Path, explorer: Explorer) -> Constraint | None:
    """The constraint that the run's evaluation put first, if it was evaluated."""
    if not (run / "evaluation.json").is_file():
        return None
    said = check_shape(
        read_json(run / "evaluation.json"),
        {"heads": Maybe([[int, int]]), "factor": Maybe(float)},
        str(run / "evaluation.json"),
    )
    site, mode = said.get("site"), said.get("mode")
    if site not in explorer.sites or mode not in explorer.modes(site):
        return None  # several parts at once: nothing that the page could begin with
    pairs = ((layer, head) for layer, head in said.get("heads") or ())
    heads = explorer.choose(site, pairs, chosen_by="evaluated in the run")
    return Constraint(heads, mode, float(said.get("factor") or 0.0))
