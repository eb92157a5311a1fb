"""``interp evaluate RUN --leave-one-out`` as a function: heads scored where they were not searched.

Writes transfer.csv (a row for each head set and the relation it is scored on) and transfer.json
(their means over the relations).
"""

from collections.abc import Mapping
from pathlib import Path

from interp.commands.evaluate import SHARDS, EvaluateSettings, chosen_effects, modes_at
from interp.commands.locate import IDENTITY
from interp.commands.locate_joint import AnyEffects, check_prompts
from interp.errors import UserError
from interp.evaluation.transfer import Transfer, leave_one_out
from interp.files.documents import write_json, write_table
from interp.heads.headset import Site
from interp.heads.joint import JointEffects
from interp.jobs import JobRunner
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnySplit, JointSplit
from interp.runs.clock import one_moment
from interp.runs.identity import conditions
from interp.runs.job_runner import StoredJobRunner
from interp.runs.lock import one_process
from interp.runs.resources import run_resources
from interp.runs.shards import Engine, InProcess

TRANSFER = "transfer.csv"


@one_process
@one_moment(IDENTITY)
def transfer_run(
    model: HookedModel,
    split: AnySplit,
    effects: Mapping[Site, AnyEffects],
    *,
    settings: EvaluateSettings,
    run: Path,
    engine: Engine | None = None,
    progress: bool = True,
) -> Transfer:
    """Score every relation of the run under the heads of the others, at all sites and modes.

    Settings as `evaluate_run` takes them: ``heads`` and ``counts`` are the numbers of heads. The
    shards are kept, so that an interrupted call is continued.

    Raises:
        UserError: a run over one relation, another model than the run's, or other prompts.
    """
    if not isinstance(split, JointSplit):
        raise UserError(
            f"{run} was searched in one relation: to leave one out, search several with "
            "`interp locate --premises A B C`; to score another relation give `--premises NAME`"
        )
    check_prompts(run, model)
    stages: JobRunner = StoredJobRunner(run / SHARDS, engine or InProcess(model), conditions(model))
    tables = []
    with run_resources(run, IDENTITY, model):
        for site, found in chosen_effects(effects, settings, run).items():
            assert isinstance(found, JointEffects)
            counts = sorted({*settings.counts, settings.count(found.n_heads)})
            for mode, factor in modes_at(site, settings):
                scored = leave_one_out(
                    model,
                    split.held_out,
                    found,
                    counts=counts,
                    mode=mode,
                    factor=factor,
                    each=True,
                    random_sets=settings.random_sets,
                    seed=settings.seed,
                    progress=progress,
                    stages=stages,
                )
                tables.append(scored.table)
    transfer = Transfer(pd.concat(tables, ignore_index=True))
    write_table(run / TRANSFER, transfer.table)
    means = transfer.over_relations(seed=settings.seed).astype(object)
    content = means.where(means.notna(), None).to_dict("records")
    write_json(run / "transfer.json", {"relations": list(split.relations), "means": content})
    return transfer
