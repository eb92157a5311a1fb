"""What is attached: an intervention, or what becomes one, such as a run directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from interp.arguments import shown
from interp.errors import UserError
from interp.files.shape import Maybe, check_shape
from interp.heads.headset import HeadSet, check_site
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import Gate, check_gate
from interp.interventions.head_constraint import Constraint, check_mode
from interp.interventions.intervention import Intervention
from interp.report.read_run import read_evaluation
from interp.runs.manifest import read_manifest

EVALUATION, EXPORT = "evaluation.json", "export.json"
_SHAPE = {
    **{"heads": [[int, int]], "site": str, "mode": str},
    **{"factor": Maybe(float), "gate": Maybe(str), "decoding_steps": Maybe(int)},
}


def run_of(what: Any) -> Path | None:
    """The run directory that is meant; None for anything else."""
    return Path(what) if isinstance(what, str | Path) and Path(what).is_dir() else None


def intervention_of(what: Any) -> Intervention:
    """The intervention that is meant: heads at one site or at both, experts, or all of them.

    Raises:
        UserError: no such file or run, a run that was not evaluated, or nothing to attach.
    """
    if (run := run_of(what)) is not None:
        if (run / EXPORT).is_file():
            raise UserError(
                f"{run} is an exported directory: load it with interp.load_exported, or attach "
                "the intervention.yaml in it"
            )
        found = _of_run(run)
    elif isinstance(what, str | Path):
        found = Intervention.load(what)
    elif isinstance(what, HeadSet | Constraint | ExpertConstraint | Intervention):
        found = Intervention.of(what)
    else:
        raise UserError(
            "attach takes a run directory, an Intervention, a Constraint or a HeadSet, not "
            f"{shown(what)}"
        )
    if not len(found):
        raise UserError("there are no heads or experts to attach")
    return found


def _of_run(run: Path) -> Intervention:
    """The best setting of a run's evaluation."""
    path = run / EVALUATION
    if not path.is_file():
        read_manifest(run)  # raises for a directory that is no run
        raise UserError(f"{run} has no {EVALUATION}: run `interp evaluate` on it first")
    return of_setting(read_evaluation(path), run)


def of_setting(setting: Mapping[str, Any], run: Path) -> Intervention:
    """The intervention of one setting of a run's evaluation.json."""
    path, advice = run / EVALUATION, "run `interp evaluate` on this run again"
    content: Mapping[str, Any] = check_shape(setting, _SHAPE, str(path), advice=advice)
    site, mode = content["site"], content["mode"]
    check_site(site)
    check_mode(site, mode)
    heads = HeadSet(tuple((layer, head) for layer, head in content["heads"]), site, str(run))
    factor = float(content.get("factor") or 0.0) if mode == "scale" else 0.0
    gate = cast(Gate, check_gate(content.get("gate") or "oracle"))
    steps = content.get("decoding_steps")
    return Intervention((Constraint(heads, mode, factor, steps),), (), gate)
