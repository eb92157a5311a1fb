"""One evaluation: held-out false premises, their true twins, a random null, and side effects.

With gate ``oracle`` the intervention acts at the object of every question, the false one and, in
the twins, the true one. With gate ``probe`` a detector reads the bare questions first: the
intervention acts on the span that was found, and where the detector did not fire the unconstrained
values and answers count, the very same ones. The figures are those of ``evaluation.json``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.evaluation.answer_pair import AnswerKind, AnswerPair
from interp.evaluation.answers import (
    QUESTION_KINDS,
    AskedQuestions,
    answer_pairs,
    ask,
    mention_rates,
)
from interp.evaluation.preference import Preference, preference_under
from interp.evaluation.side_effects import SideEffects, side_effects
from interp.figures.evaluation import preference_by_template
from interp.figures.tables import comparison_table
from interp.forward.batch import Span
from interp.heads.headset import Head, HeadSet, Site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import Gate, check_gate, cloze_spans
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.intervention import Intervention
from interp.interventions.random_controls import random_interventions
from interp.jobs import RUN_HERE, JobRunner
from interp.models import model_info
from interp.models.hooked_model import HookedModel
from interp.premises.questions import Premises, QuestionKind
from probes.detector.detect import detect_premises
from probes.detector.detections import Detector, PremiseDetections

RANDOM_SETS = 20
MINIMUM_RANDOM_SETS = 20
ANSWER_KINDS: tuple[AnswerKind, ...] = ("false_premise", "true_premise")


@dataclass(frozen=True)
class Evaluation(Displayed):
    """The outcome for one intervention; ``to_dict`` is ``evaluation.json``.

    Attributes:
        intervention: what was evaluated; ``n_all_heads``, ``model`` and ``dtype`` say in what.
        false, twin: preference per prompt; sets are [none, the intervention, random, random, …].
        answers: greedy answers by kind, or empty if they were not asked for.
        side_effects: cost on neutral text.
        detection: what the detector said, with gate ``probe``.
    """

    intervention: Intervention
    model: str
    n_all_heads: int
    split: str
    false: Preference
    twin: Preference
    answers: tuple[AnswerPair, ...]
    side_effects: SideEffects
    seed: int = 0
    detection: PremiseDetections | None = None
    dtype: str = "float32"

    @property
    def constraint(self) -> Constraint:
        """The first constraint of heads; one of no heads where only experts are constrained."""
        heads = self.intervention.heads
        return heads[0] if heads else Constraint(HeadSet(()))

    @cached_property
    def random_accuracy(self) -> np.ndarray:
        """Preference accuracy on false premises of every random head set."""
        return self.false.accuracy[2:]

    @property
    def gain(self) -> float:
        """Rise of preference accuracy on false premises."""
        return float(self.false.accuracy[1] - self.false.accuracy[0])

    @property
    def cost(self) -> float:
        """Fall of P(true object) on the twins."""
        return float(self.twin.p_true[:, 0].mean() - self.twin.p_true[:, 1].mean())

    def _measures(self, kind: AnswerKind, index: int, template: str | None) -> dict[str, Any]:
        values = self.false if kind == "false_premise" else self.twin
        measures = values.measures(index, template=template, seed=self.seed)
        pairs = [p for p in self.answers if p.kind == kind and template in (None, p.template)]
        if pairs:
            run = "constrained" if index else "baseline"
            measures |= mention_rates(pairs, run, seed=self.seed)
        else:
            measures |= dict.fromkeys(("true_object_mention_rate", "false_object_mention_rate"))
        return measures

    def _comparison(self, template: str | None) -> dict[str, Any]:
        return {
            kind: {
                "baseline": self._measures(kind, 0, template),
                "constrained": self._measures(kind, 1, template),
            }
            for kind in ANSWER_KINDS
        }

    def to_dict(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        chosen, null = float(self.false.accuracy[1]), self.random_accuracy
        random_null: dict[str, Any] = {"n_sets": len(null)}
        if len(null):
            random_null["preference_accuracy"] = {
                "mean": float(null.mean()),
                "p95": float(np.quantile(null, 0.95)),
            }
            random_null["percentile_of_selected"] = float((null < chosen).mean() * 100)
        templates = dict.fromkeys(self.false.templates)
        detection = {} if self.detection is None else {"detection": self.detection.to_dict()}
        return {
            "model": self.model,
            "dtype": self.dtype,
            **_setting(self.intervention, self.n_all_heads),
            "gate": self.intervention.gate,
            **detection,
            "splits": {
                self.split: self._comparison(None)
                | {"templates": {name: self._comparison(name) for name in templates}}
            },
            "random_null": random_null,
            "side_effects": self.side_effects.to_dict(),
        }

    def null_dataframe(self) -> pd.DataFrame:
        """One row a random head set, as in ``null.csv``."""
        setting = _setting(self.intervention, self.n_all_heads)
        return pd.DataFrame(
            {
                **{name: setting[name] for name in ("site", "mode", "n_heads")},
                "set": range(len(self.random_accuracy)),
                "preference_accuracy": self.random_accuracy,
            }
        )

    def plot(self) -> Any:
        """Preference per template, without and with the constraint."""
        return preference_by_template(self.to_dict())

    def _shown(self) -> Shown:
        words = (
            f"{self.intervention.name}, gate {self.intervention.gate}, on "
            f"{len(self.false.subjects)} prompts ({self.split}): gain {self.gain:+.2f} in "
            "preference accuracy on false premises, "
            f"cost {self.cost:+.2f} in P(true object) on their twins."
        )
        content = json.loads(json.dumps(self.to_dict()))
        return Shown(words, (comparison_table(content),), self.plot)


def _setting(intervention: Intervention, n_all_heads: int) -> dict[str, Any]:
    """What was done, as evaluation.json says it; of several parts, the settings in a row."""
    parts = intervention.parts or (Constraint(HeadSet(())),)
    heads = list(dict.fromkeys(head for part in intervention.heads for head in part.heads))
    chosen = [
        part.heads.chosen_by if isinstance(part, Constraint) else part.chosen_by for part in parts
    ]
    setting = {
        "n_heads": len(heads),
        "head_fraction": len(heads) / n_all_heads,
        "heads": [list(head) for head in heads],
        "chosen_by": " + ".join(dict.fromkeys(chosen)),
        "site": " + ".join(part.site for part in parts),
        "mode": " + ".join(part.mode for part in parts),
        "factor": parts[0].factor,
    }
    if intervention.experts:
        setting["experts"] = [
            {
                "mode": part.mode,
                "factor": part.factor,
                "place": part.place,
                "experts": [list(pair) for pair in part.pairs],
            }
            for part in intervention.experts
        ]
    return setting


@checked
def ask_all(
    model: HookedModel, premises: Premises, *, progress: bool = True, stages: JobRunner = RUN_HERE
) -> dict[AnswerKind, AskedQuestions]:
    """Unconstrained answers to the false-premise questions and to their twins."""
    return {
        kind: ask(model, premises, kind, progress=progress, stages=stages) for kind in ANSWER_KINDS
    }


@checked
def evaluate(
    model: HookedModel,
    premises: Premises,
    *,
    heads: HeadSet | Iterable[Head] | Constraint | ExpertConstraint | Intervention,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    gate: str | None = None,
    detector: Detector | PremiseDetections | None = None,
    reference: Premises | None = None,
    random_sets: int = RANDOM_SETS,
    answers: bool | Mapping[AnswerKind, AskedQuestions] = True,
    seed: int = 0,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> Evaluation:
    """Score an intervention on premises, best on the held-out part of a split.

    Args:
        heads: a HeadSet, (layer, head) tuples with ``site``, a whole Constraint, an
            ExpertConstraint, or an Intervention of several.
        gate: ``oracle`` acts at the object, ``probe`` where ``detector`` finds a false premise; by
            default the intervention's own, which is ``oracle`` for anything else.
        detector: for gate ``probe``, or what it found; by default ``probes.detector_for(model)``.
        reference: premises whose mean output mode ``mean`` uses; give the search part.
        random_sets: sets in the null, matched per layer (experts: per projection).
        answers: also ask for greedy answers, the slow part; or baseline answers of ``ask_all``.
        stages: where sweeps and answers are done, and kept; by default here, at once.

    Raises:
        UserError: an unknown gate, a head or an expert that the model does not have, or fewer
            random sets than ``MINIMUM_RANDOM_SETS`` (0: no null).
    """
    what = _checked(heads, site, mode, factor, gate, random_sets).check(model)
    encoded = as_encoded(model, premises)
    mean = None
    if any(part.mode == "mean" for part in what.heads):
        mean = mean_output(model, as_encoded(model, reference or premises))
    random = random_interventions(model, what, random_sets, seed=seed)
    detections = None
    if what.gate == "probe":
        detections = detect_premises(model, premises, detector=detector, progress=progress)

    def prefers(kind: QuestionKind, *some: Intervention) -> Preference:
        spans: list[Span | None] | None = None
        if detections is not None:
            spans = cloze_spans(model, premises, encoded, kind, detections.of(kind))
        return preference_under(
            model, encoded, kind, some, spans=spans, mean=mean, progress=progress, stages=stages
        )

    false, twin = prefers("false", what, *random), prefers("twin", what)
    pairs: list[AnswerPair] = []
    if isinstance(answers, bool):
        answers = ask_all(model, premises, progress=progress, stages=stages) if answers else {}
    for kind, asked in answers.items():
        found = None if detections is None else detections.of(QUESTION_KINDS[kind])
        pairs += answer_pairs(
            model, asked, what, detections=found, mean=mean, progress=progress, stages=stages
        )
    with torch.no_grad():
        effects = side_effects(model, what, mean=mean)
    return Evaluation(
        intervention=what,
        model=model_info(model).spec,
        dtype=model_info(model).dtype,
        n_all_heads=model.cfg.n_layers * model.cfg.n_heads,
        split=premises.part,
        false=false,
        twin=twin,
        answers=tuple(pairs),
        side_effects=effects,
        seed=seed,
        detection=detections,
    )


def _checked(
    heads: HeadSet | Iterable[Head] | Constraint | ExpertConstraint | Intervention,
    site: Site | None,
    mode: Mode,
    factor: float,
    gate: str | None,
    random_sets: int,
) -> Intervention:
    """The intervention that is asked for. Raises UserError for what cannot be evaluated."""
    known: Gate | None = None
    if gate is not None:
        check_gate(gate)
        known = gate  # type: ignore[assignment]
    if 0 < random_sets < MINIMUM_RANDOM_SETS:
        raise UserError(
            f"a null of {random_sets} random sets says little: {MINIMUM_RANDOM_SETS} or 0"
        )
    return Intervention.of(heads, site, mode, factor, gate=known)
