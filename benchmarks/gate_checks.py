"""What docs/gate.md says beside its table: is the probe's direction the cause, and what else shows.

On the first seed's split: the causal check of the probe, the three uncertainty scores, and the
information flow. Run by gate_table.py.
"""

from typing import Any

import numpy as np
import torch

from interp.evaluation import preference
from interp.heads import HeadSet
from interp.heads.locate import as_encoded
from interp.inspection.flow import PARTS, information_flow
from interp.inspection.uncertainty import uncertainty
from interp.interventions import Constraint
from interp.models import fingerprint
from interp.premises import Premises, Split
from interp.premises.relation import names_any
from probes import LinearProbe, collect_activations, fit_probe
from probes.causal import remove_direction
from probes.scoring import area_under_curve, cross_validated_scores

LAYERS = (6, 9, 12, 15, 18, 21)
UNCERTAIN_FACTS = 6
SAMPLES = 10


def best_probe(model: Any, search: Premises) -> tuple[LinearProbe, float]:
    """The probe of the layer with the highest cross-validated AUC on the search part."""
    encoded = as_encoded(model, search)
    false, twin = (
        collect_activations(model, encoded, kind, layers=LAYERS) for kind in ("false", "twin")
    )
    questions = [item.question for item in encoded.items]
    labels = torch.cat([torch.ones(len(false)), torch.zeros(len(twin))]).long()
    objects = [one.false_object for one in questions] + [one.true_object for one in questions]
    found = []
    for index, layer in enumerate(LAYERS):
        values = torch.cat([false[:, index], twin[:, index]])
        scores = cross_validated_scores(values, labels, objects, apart=encoded.subjects * 2)
        found.append((area_under_curve(scores, labels), layer, values))
    auc, layer, values = max(found, key=lambda one: one[0])
    return fit_probe(values, labels, layer=layer, fingerprint=fingerprint(model)), auc


def causal(model: Any, split: Split, constraint: Constraint, seed: int) -> dict[str, Any]:
    """Removing the probe's direction on held-out questions, beside the heads' constraint."""
    probe, auc = best_probe(model, split.search)
    encoded = as_encoded(model, split.held_out)
    sets = [HeadSet((), constraint.site), constraint.heads]
    values = preference(model, encoded, "false", constraint=constraint, sets=sets).logit_difference
    held = values[:, 1] - values[:, 0]
    found: dict[str, Any] = {
        "layer": probe.layer,
        "search_auc": auc,
        "constraint_change": float(held.mean()),
        "untreated": float(values[:, 0].mean()),
    }
    for removal in ("component", "score"):
        removed = remove_direction(model, encoded, probe, removal=removal, seed=seed)
        null = removed.random.mean(axis=1)
        found[removal] = {
            "effect": list(removed.effect),
            "p_value": removed.p_value,
            "null": [float(null.min()), float(null.max())],
            **removed.agreement(held),
        }
    return found


def uncertain(model: Any, premises: Premises, seed: int) -> dict[str, Any]:
    """How well each score foretells that an answer does not name the true object."""
    some = premises.first(min(UNCERTAIN_FACTS, len(premises.facts)))
    answers = uncertainty(model, some, n_samples=SAMPLES, max_new_tokens=20, seed=seed)
    wrong = [
        not names_any(answer, question.true_names)
        for answer, question in zip(answers.answers, some.questions(), strict=True)
    ]
    found: dict[str, Any] = {"n": len(wrong), "hallucinated": float(np.mean(wrong))}
    if 0 < sum(wrong) < len(wrong):
        found["auc"] = answers.auc(wrong).to_dict(orient="records")
    return found


def flow(model: Any, premises: Premises) -> dict[str, Any]:
    """In which layer each part is drawn on most, on false premises and on twins."""
    found: dict[str, Any] = {}
    for kind in ("false", "twin"):
        table = information_flow(model, premises, kind=kind).to_dataframe()  # type: ignore[arg-type]
        by_layer = table.pivot(index="layer", columns="part", values="saliency")
        found[kind] = {
            part: {"peak": int(by_layer[part].idxmax()), "values": by_layer[part].tolist()}
            for part in PARTS
        }
    return found


def run(model: Any, split: Split, constraint: Constraint, *, seed: int) -> dict[str, Any]:
    """All three."""
    return {
        "causal": causal(model, split, constraint, seed),
        "uncertainty": uncertain(model, split.held_out, seed),
        "flow": flow(model, split.held_out),
    }


def markdown(checks: dict[str, Any]) -> str:
    """The paragraphs of docs/gate.md."""
    cause, said, drawn = checks["causal"], checks["uncertainty"], checks["flow"]["false"]
    lines = [
        "\n### Is the probe's direction the cause?\n\n"
        f"Probe after layer {cause['layer']} (chosen on the search part, AUC "
        f"{cause['search_auc']:.3f}). Change of the logit difference on held-out false premises; "
        f"without an intervention it is {cause['untreated']:.2f}, and the constraint changes it by "
        f"{cause['constraint_change']:.2f}.\n\n"
        "| removed | change | of the constraint's | Spearman | random directions | p |\n"
        "|---|---|---|---|---|---|\n"
    ]
    for removal in ("component", "score"):
        row = cause[removal]
        mean, low, high = row["effect"]
        lines.append(
            f"| {removal} | {mean:.2f} [{low:.2f}, {high:.2f}] | {row['share']:.2f} | "
            f"{row['spearman']:.2f} | {row['null'][0]:.2f} to {row['null'][1]:.2f} | "
            f"{row['p_value']:.3f} |\n"
        )
    lines.append("\n### Uncertainty and information flow\n\n")
    lines.append(
        f"{said['hallucinated']:.2f} of {said['n']} greedy answers to false premises do not name "
        "the true object. "
    )
    if "auc" in said:
        scores = "; ".join(
            f"{row['score']} {row['auc']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
            for row in said["auc"]
        )
        lines.append(f"AUC of each score for these: {scores}.\n")
    else:
        lines.append("All are alike, so that no score can be judged.\n")
    peaks = ", ".join(f"{part} in layer {drawn[part]['peak']}" for part in PARTS)
    lines.append(f"The last token draws most, per token, on: {peaks}.\n")
    return "".join(lines)
