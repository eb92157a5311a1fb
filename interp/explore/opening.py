"""Make an explorer from a run directory, or from a model and the effects of its heads."""

from collections.abc import Iterable
from pathlib import Path

from interp.commands.evaluate import run_detector
from interp.commands.locate_joint import check_prompts, load_search
from interp.errors import UserError
from interp.explore.explorer import Explorer
from interp.files.documents import read_json
from interp.files.shape import Maybe, check_shape
from interp.heads.effects import HeadEffects
from interp.interventions.head_constraint import Constraint
from interp.lazy import pd
from interp.models import load_model
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnySplit
from interp.report.read_run import read_heads
from interp.runs.manifest import read_manifest, recorded_quantization, recorded_spec
from probes.detector.detections import Detector
from probes.detector.detector import has_detector


def check_explorable(run: Path) -> None:
    """Raise UserError if a directory is not a run of ``interp locate`` or ``interp demo``."""
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
        model: the run's model, if it is already loaded; else it is loaded on ``device``.
        detector: by default the run's, which is trained when it is first needed
            (`interp.commands.evaluate.run_detector`) and saved in the run.

    Raises:
        UserError: the run does not exist, has another model, or its facts have changed.
    """
    run = Path(run)
    check_explorable(run)
    settings, split, _ = load_search(run)
    heads = read_heads(run / "heads.csv")
    if model is None:
        model = load_model(
            recorded_spec(run),
            device=device,
            dtype=dtype,
            quantization=recorded_quantization(run),
        )
    check_prompts(run, model)

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
    split: AnySplit | None = None,
    detector: Detector | None = None,
) -> Explorer:
    """An explorer of a model and the effects of its heads, at one site or both.

    Args:
        split: the premises of the search, for mode ``mean`` and for examples.
        detector: by default ``probes.detector_for(model)``.
    """
    by_site = [effects] if isinstance(effects, HeadEffects) else list(effects)
    if not by_site:
        raise UserError("effects is empty: give those of interp.locate_heads")
    sites = [site_effects.site for site_effects in by_site]
    if len(set(sites)) < len(sites):
        raise UserError(f"effects has a site twice: {', '.join(sites)}")
    heads = pd.concat([site_effects.to_dataframe() for site_effects in by_site], ignore_index=True)
    return Explorer(model, heads, split=split, detector=detector)


def _evaluated(run: Path, explorer: Explorer) -> Constraint | None:
    """The best constraint of the run's evaluation, if there is one."""
    path = run / "evaluation.json"
    if not path.is_file():
        return None
    shape = {"heads": Maybe([[int, int]]), "factor": Maybe(float), "decoding_steps": Maybe(int)}
    evaluation = check_shape(read_json(path), shape, str(path))
    site, mode = evaluation.get("site"), evaluation.get("mode")
    if site not in explorer.sites or mode not in explorer.modes(site):
        return None  # an intervention with several parts, which the page cannot show
    pairs = ((layer, head) for layer, head in evaluation.get("heads") or ())
    heads = explorer.choose(site, pairs, chosen_by="evaluated in the run")
    steps = evaluation.get("decoding_steps")
    return Constraint(heads, mode, float(evaluation.get("factor") or 0.0), steps)
