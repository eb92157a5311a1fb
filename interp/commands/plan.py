"""``--plan`` as functions: what a command will take, from a rehearsal of it on few prompts.

Each function has the arguments of the command's own function, writes nothing into the run
directory, and raises what the command itself would raise. A directory that holds a part of the run
already is planned for what remains. See ``interp.runs.rehearsal``.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from interp.commands.circuit import CircuitSettings, circuit_run
from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import LocateSettings
from interp.commands.locate_joint import AnyEffects, search_run
from interp.commands.patch import PatchSettings, patch_run
from interp.heads.headset import Site
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnySplit
from interp.runs.plan import Plan
from interp.runs.rehearsal import Rehearsal
from interp.runs.shards import InProcess

STAGES = {
    "knowledge_shard": "known facts",
    "right_shard": "pairs answered rightly",
    "locate_shard": "effects of heads",
    "patch_shard": "effects of units",
    "edge_shard": "scores of edges",
    "circuit_shard": "circuits of edges",
    "preference_values": "preference under sets of heads",
    "whole_run_values": "preference, whole runs",
    "greedy_texts": "greedy answers",
    "routing_shard": "routing",
    "estimate_experts": "gradients of the experts' gates",
    "measure_experts": "experts switched off",
}
"""What a plan calls a kind of work, by the function that does it."""


def stage_name(function: str) -> str:
    """What a plan calls the work of a function."""
    return STAGES.get(function, function.replace("_", " "))


def plan_locate(
    model: HookedModel,
    settings: LocateSettings,
    run: Path,
    *,
    check_dtype: bool = True,
    before: float = 0.0,
) -> Plan:
    """What `locate_run` or, for several relations, `locate_joint_run` will take.

    Args:
        before: seconds that the program's start and the model's loading have taken, here and below.
    """
    return _rehearsed(search_run, model, settings, run=run, check_dtype=check_dtype, before=before)


def plan_patch(
    model: HookedModel,
    settings: PatchSettings,
    run: Path,
    *,
    check_dtype: bool = True,
    before: float = 0.0,
) -> Plan:
    """What `patch_run` will take."""
    return _rehearsed(patch_run, model, settings, run=run, check_dtype=check_dtype, before=before)


def plan_circuit(
    model: HookedModel,
    settings: CircuitSettings,
    run: Path,
    *,
    check_dtype: bool = True,
    before: float = 0.0,
) -> Plan:
    """What `circuit_run` will take."""
    return _rehearsed(circuit_run, model, settings, run=run, check_dtype=check_dtype, before=before)


def plan_evaluate(
    model: HookedModel,
    split: AnySplit,
    effects: Mapping[Site, AnyEffects],
    *,
    settings: EvaluateSettings,
    run: Path,
    before: float = 0.0,
) -> Plan:
    """What `evaluate_run` will take."""
    with Rehearsal(run, names=stage_name, before=before) as rehearsal:
        evaluate_run(
            model,
            split,
            effects,
            settings=settings,
            run=rehearsal.folder,
            engine=rehearsal.engine(InProcess(model)),
            progress=False,
        )
    return rehearsal.plan()


def _rehearsed(
    command: Callable[..., Any],
    model: HookedModel,
    settings: Any,
    *,
    run: Path,
    check_dtype: bool,
    before: float,
) -> Plan:
    """The plan of a command that takes a runner for what is not kept in shards."""
    with Rehearsal(run, names=stage_name, before=before) as rehearsal:
        command(
            model,
            settings,
            rehearsal.folder,
            engine=rehearsal.engine(InProcess(model)),
            runner=rehearsal.runner,
            check_dtype=check_dtype,
            progress=False,
        )
    return rehearsal.plan()
