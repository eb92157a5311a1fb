"""Evaluate an intervention: held-out false premises, true twins, a random null, side effects.

With gate ``oracle`` the intervention acts at the object of every question: the false one and, in
the twins, the true one. With gate ``probe`` a detector reads the questions first. The intervention
acts on the span that it finds; where it does not fire, the unconstrained values and answers are
kept. The values are those of ``evaluation.json``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from interp.arguments import check_choice
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.evaluation.answer_pair import AnswerKind, AnswerPair
from interp.evaluation.answers import (
    ANSWER_KINDS,
    AskedQuestions,
    answer_pairs,
    ask_all,
    mention_rates,
)
from interp.evaluation.preference import Preference, preference_under
from interp.evaluation.side_effects import SideEffects, side_effects
from interp.figures.evaluation import answer_outcomes, preference_by_template
from interp.figures.tables import comparison_table
from interp.heads.headset import Head, HeadSet, Site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import (
    check_gate,
    cloze_spans,
    lowest_probability,
    strengths_of,
)
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.intervention import Intervention
from interp.interventions.random_controls import random_interventions
from interp.jobs import RUN_HERE, JobRunner
from interp.lazy import pd
from interp.models import model_info
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnyPremises
from interp.premises.questions import QuestionKind
from probes.detector.detect import detect_premises
from probes.detector.detections import Detector, PremiseDetections

RANDOM_SETS = 20
MINIMUM_RANDOM_SETS = 20
COMPARED: dict[QuestionKind, int | None] = {"false": None, "twin": 1}
"""How many of [the intervention, random, random, …] run on each kind of prompt; None for all."""


@dataclass(frozen=True)
class Evaluation(Displayed):
    """The results for one intervention; ``to_dict`` is ``evaluation.json``.

    Attributes:
        intervention: the intervention that was evaluated.
        model, dtype, n_all_heads: the model's spec, its dtype and its number of heads.
        false, twin: preference per prompt; sets are [none, the intervention, random, random, …].
        answers: greedy answers of both kinds, or empty.
        side_effects: cost on neutral text.
        detection: the detections, with gate ``probe`` or ``soft``.
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
        """The first constraint of heads; without one, a constraint of no heads."""
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
        run = "constrained" if index else "baseline"
        return measures | mention_rates(pairs, run, seed=self.seed)

    def _comparison(self, template: str | None) -> dict[str, Any]:
        runs = ("baseline", "constrained")
        return {
            kind: {run: self._measures(kind, i, template) for i, run in enumerate(runs)}
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
            **setting_of(self.intervention, self.n_all_heads),
            "gate": self.intervention.gate,
            **detection,
            "splits": {
                self.split: self._comparison(None)
                | {"templates": {name: self._comparison(name) for name in templates}}
            },
            "random_null": random_null,
            "side_effects": self.side_effects.to_dict(),
        }

    def null_dataframe(self) -> "pd.DataFrame":
        """One row a random head set, as in ``null.csv``."""
        setting = setting_of(self.intervention, self.n_all_heads)
        return pd.DataFrame(
            {
                **{name: setting[name] for name in ("site", "mode", "n_heads")},
                "set": range(len(self.random_accuracy)),
                "preference_accuracy": self.random_accuracy,
            }
        )

    def plot(self, what: Literal["preference", "answers"] = "preference") -> Any:
        """Preference by template without and with the constraint, or what happens to answers.

        Raises:
            UserError: an unknown figure, or no answers were asked for.
        """
        check_choice("figure", what, Literal["preference", "answers"])
        if what == "preference":
            return preference_by_template(self.to_dict())
        rows = [(pair.kind, pair.outcome) for pair in self.answers]
        return answer_outcomes(pd.DataFrame(rows, columns=["kind", "outcome"]))

    def _shown(self) -> Shown:
        words = (
            f"{self.intervention.name}, gate {self.intervention.gate}, on "
            f"{len(self.false.subjects)} prompts ({self.split}): gain {self.gain:+.2f} in "
            "preference accuracy on false premises, "
            f"cost {self.cost:+.2f} in P(true object) on their twins."
        )
        content = json.loads(json.dumps(self.to_dict()))
        return Shown(words, (comparison_table(content),), self.plot)


def setting_of(intervention: Intervention, n_all_heads: int) -> dict[str, Any]:
    """The intervention as evaluation.json holds it; settings of several parts are joined."""
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
    steps = next((part.decoding_steps for part in intervention.heads), None)
    if steps is not None:
        setting["decoding_steps"] = steps
    if intervention.experts:
        setting["experts"] = [
            {key: getattr(part, key) for key in ("mode", "factor", "place")}
            | {"experts": [list(pair) for pair in part.pairs]}
            for part in intervention.experts
        ]
    return setting


@checked
def evaluate(
    model: HookedModel,
    premises: AnyPremises,
    *,
    heads: HeadSet | Iterable[Head] | Constraint | ExpertConstraint | Intervention,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    decoding_steps: int | None = None,
    gate: str | None = None,
    detector: Detector | PremiseDetections | None = None,
    reference: AnyPremises | None = None,
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
        decoding_steps: of tuples or a HeadSet: in how many steps of an answer the constraint acts
            after the prefill; by default in all. Preference is read in the prefill.
        gate: ``oracle`` acts at the object, ``probe`` where ``detector`` finds a false premise,
            ``soft`` there as strongly as it is sure; by default the intervention's own gate.
        detector: for gates ``probe`` and ``soft``, or its detections; by default
            ``probes.detector_for(model)``.
        reference: premises whose mean output mode ``mean`` uses, such as the search part.
        random_sets: sets in the null, matched per layer (experts: per projection).
        answers: also give greedy answers, which are slow; or the baseline answers of ``ask_all``.
        stages: where sweeps and answers are done, and kept; by default here, at once.

    Raises:
        UserError: an unknown gate, a head or an expert that the model does not have, or fewer
            random sets than ``MINIMUM_RANDOM_SETS`` (0: no null).
    """
    if 0 < random_sets < MINIMUM_RANDOM_SETS:
        raise UserError(f"random_sets is {random_sets}: give {MINIMUM_RANDOM_SETS} or more, or 0")
    known = None if gate is None else check_gate(gate)
    under = Intervention.of(
        heads, site, mode=mode, factor=factor, decoding_steps=decoding_steps, gate=known
    ).check(model)
    encoded = as_encoded(model, premises)
    averaged = as_encoded(model, reference or premises) if under.needs_mean else None
    mean = None if averaged is None else mean_output(model, averaged)
    random = random_interventions(model, under, random_sets, seed=seed)
    options: dict[str, Any] = {"mean": mean, "progress": progress, "stages": stages}
    detections = None
    if under.gate != "oracle":
        least = lowest_probability(under.gate)
        detections = detect_premises(
            model, premises, detector=detector, least=least, progress=progress
        )
    preferences: dict[QuestionKind, Preference] = {}
    for kind, compared in COMPARED.items():
        spans = cloze_spans(model, premises, encoded, kind=kind, detections=detections)
        strengths = None if detections is None else strengths_of(detections.of(kind), under.gate)
        preferences[kind] = preference_under(
            model,
            encoded,
            kind,
            interventions=(under, *random)[:compared],
            spans=spans,
            strengths=strengths,
            **options,
        )
    if isinstance(answers, bool):
        answers = ask_all(model, premises, progress=progress, stages=stages) if answers else {}
    pairs: list[AnswerPair] = []
    for asked in answers.values():
        pairs += answer_pairs(model, asked, under, detections=detections, **options)
    return Evaluation(
        intervention=under,
        model=model_info(model).spec,
        dtype=model_info(model).dtype,
        n_all_heads=model.cfg.n_layers * model.cfg.n_heads,
        split=premises.part,
        false=preferences["false"],
        twin=preferences["twin"],
        answers=tuple(pairs),
        side_effects=side_effects(model, under, mean=mean),
        seed=seed,
        detection=detections,
    )
