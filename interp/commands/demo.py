"""``interp demo``: what the toolkit does about false premises, in two or three minutes.

Raw questions about facts that the model knows, with a false premise or with the true one. A
detector reads each; where it fires, a few heads are constrained at the words that it found. For the
embedded model both ship with the package, and have not seen the demo's relation. Any other model or
relation is searched first, and its detector trained on the search part.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp.commands.evaluate import run_detector, write_evaluations
from interp.commands.locate import IDENTITY, LocateSettings, load_run, locate_run
from interp.errors import UserError
from interp.evaluation.answer_pair import AnswerPair
from interp.evaluation.answers import answer_pairs, ask_all
from interp.evaluation.evaluate import RANDOM_SETS, Evaluation, evaluate
from interp.heads.effects import HeadEffects, count_of_fraction
from interp.heads.headset import HeadSet
from interp.heads.shipped import Shipped, shipped_for
from interp.interventions.head_constraint import Constraint
from interp.models.hooked_model import HookedModel
from interp.premises.questions import Premises, Split
from interp.runs.clock import one_moment
from interp.runs.identity import conditions
from interp.runs.job_runner import StoredJobRunner
from interp.runs.lock import one_process
from interp.runs.resources import run_resources
from interp.runs.shards import InProcess
from probes.detector.detect import detect_premises
from probes.detector.train import detector_for

logger = logging.getLogger(__name__)

SHARDS = Path("shards") / "demo"
FRACTION = 0.03
"""Share of the heads that are constrained in a model for which none ship."""


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demo: how many facts are tried, and how many questions are answered in full."""

    premises: str = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file."""
    limit: int = 48
    """How many facts are tried, best known first."""
    heads: float | None = None
    """A fraction of all heads (below 1), or a count, of those found here; by default those that
    ship for the model, or 3 % of all."""
    answers: int = 10
    """How many false premises, and how many true ones, are answered in full."""
    seed: int = 0
    """Draws false objects, splits, random head sets and resamples."""

    def __post_init__(self) -> None:
        if self.heads is not None and self.heads <= 0:
            raise UserError(f"heads is a fraction below 1 or a count from 1, not {self.heads:g}")
        if self.answers < 1:
            raise UserError(f"answers is {self.answers}: it must be at least 1")

    @property
    def search(self) -> LocateSettings:
        """Settings of the search."""
        return LocateSettings(
            premises=self.premises, limit=self.limit, seed=self.seed, site="attention"
        )


@one_process
@one_moment(IDENTITY)
def demo_run(
    model: HookedModel, settings: DemoSettings, run: Path, *, progress: bool = True
) -> list[Evaluation]:
    """Run the demo in ``run``; an interrupted call is continued.

    Returns the constraint with the detector as its gate, and the one that is told where to act.
    """
    locate_run(model, settings.search, run, progress=progress)
    _, split, effects = load_run(run)
    shipped = shipped_for(model)
    if shipped is not None and split.search.relation.name not in shipped.left_out:
        shipped = None  # what ships has seen this relation
    heads = _heads(effects["attention"], settings, shipped)
    if shipped is not None:
        detector = detector_for(model, progress=progress)
    else:
        detector = run_detector(model, split, run, seed=settings.seed, progress=progress)
    stages = StoredJobRunner(run / SHARDS, InProcess(model), conditions(model))
    options: dict[str, Any] = {"seed": settings.seed, "progress": progress, "stages": stages}
    with run_resources(run, IDENTITY, model):
        found = detect_premises(model, split.held_out, detector=detector, progress=progress)
        told = evaluate(model, split.held_out, heads=heads, random_sets=0, answers=False, **options)
        gated = evaluate(
            model,
            split.held_out,
            heads=heads,
            gate="probe",
            detector=found,
            random_sets=RANDOM_SETS,
            answers=False,
            **options,
        )
        few = _few(split, settings.answers)
        few_found = detect_premises(model, few, detector=detector, progress=progress)
        del options["seed"]
        pairs = [
            pair
            for asked in ask_all(model, few, **options).values()
            for pair in answer_pairs(
                model, asked, Constraint(heads), detections=few_found, **options
            )
        ]
    evaluations = [replace(gated, answers=_first_of_each_kind(pairs, settings.answers)), told]
    write_evaluations(run, evaluations)
    stages.remove_others()
    return evaluations


def _heads(effects: HeadEffects, settings: DemoSettings, shipped: Shipped | None) -> HeadSet:
    """The heads that ship for the model, or the best that were found here."""
    if settings.heads is None and shipped is not None:
        return shipped.heads
    wanted = FRACTION if settings.heads is None else settings.heads
    count = int(wanted) if wanted >= 1 else count_of_fraction(wanted, effects.n_heads)
    return effects.select(count=count)


def _few(split: Split, count: int) -> Premises:
    """The first held-out facts, for at least ``count`` questions, with false objects among them."""
    every = split.held_out
    for n_facts in range(max(2, -(-count // len(every.templates))), len(every.facts)):
        few = every.first(n_facts)
        try:
            few.questions()
        except UserError:  # their objects are too alike
            continue
        return few
    return every


def _first_of_each_kind(pairs: Sequence[AnswerPair], count: int) -> tuple[AnswerPair, ...]:
    """The first ``count`` answers to false and to true premises."""
    kinds = dict.fromkeys(pair.kind for pair in pairs)
    return tuple(
        pair for kind in kinds for pair in [pair for pair in pairs if pair.kind == kind][:count]
    )
