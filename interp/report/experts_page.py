"""The page of an analysis of experts, and its tables and sentences."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interp.experts.effects.agreement import RoutingAgreement
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.similarity import OutputSimilarity
from interp.experts.routing.specialization import Specialization
from interp.figures.measures import MISSING
from interp.figures.routing import MAX_TASKS, NULL_NAMES
from interp.figures.tables import where
from interp.report.page import PlacedFigure, manifest_rows, render_page

SHOWN = (
    ("task_information", "Mutual information of expert and task, by depth."),
    ("token_information", "Mutual information of expert and token id, corrected for bias."),
    ("class_information", "Expert and class of token: number, operator, function word, name."),
    ("repeat_rate", "How often a token's first expert is that of the token before."),
)
MAX_ROWS = 60


@dataclass(frozen=True)
class EffectsPart:
    """The page's section on causal effects; empty if they were not measured."""

    sentences: tuple[str, ...] = ()
    figures: tuple[PlacedFigure, ...] = ()
    table: pd.DataFrame | None = None


@dataclass(frozen=True)
class Analysis:
    """The content of the page.

    Attributes:
        content: of measures.json.
        manifest: of manifest.json.
    """

    title: str
    records: RoutingRecords
    specialization: Specialization
    similarity: OutputSimilarity
    content: Mapping[str, Any]
    effects: EffectsPart
    manifest: Mapping[str, Any]


def render_analysis(analysis: Analysis) -> str:
    """The page as text."""
    fdr, similarity = float(analysis.content["fdr"]), analysis.similarity.plot()
    return render_page(
        "experts.html.j2",
        title=analysis.title,
        setting=f"{analysis.content['tokens']:,} tokens of {len(analysis.records.tasks)} tasks, "
        f"{len(analysis.records.projections)} adapted projections",
        sentences=sentences(analysis.content),
        tasks=tasks_table(analysis.content),
        loads=_loads(analysis.records),
        summary=summary_table(analysis.content),
        nulls=NULL_NAMES,
        percent=f"{100 * fdr:g}",
        measures=_measures(analysis),
        experts=expert_rows(analysis.specialization.experts, fdr=fdr),
        effects=analysis.effects,
        similarity=[PlacedFigure.place("similarity", similarity, "Means over pairs of experts.")],
        sampled=f"{analysis.similarity.n:,}",
        manifest=manifest_rows(analysis.manifest),
    )


def sentences(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The results in sentences, positive or negative."""
    measures, n = content["measures"], content["projections"]
    task = measures["task_information"]
    first = next(iter(task.values()))
    sentences = [
        f"An expert tells {first['value']:.4f} nats about the task on average over {n} projections "
        f"(of at most {content['task_entropy']:.3f}, the entropy of the tasks)."
    ]
    for null, row in task.items():
        if row["projections"] and row["null_mean"] is not None:  # a null may be left out
            sentences.append(
                f"Against {NULL_NAMES.get(null, null)} (mean {row['null_mean']:.4f}) that is "
                f"significant in {row['significant']} of {row['projections']} projections."
            )
    experts = content["experts"]
    sentences.append(
        f"{experts['significant']} of {experts['tested']} pairs of expert and task differ "
        f"significantly from all tokens; {content['dead_experts']} of {experts['experts']} experts "
        "are dead (less than a hundredth of an even share)."
    )
    if content.get("effects"):
        effects = content["effects"]
        sentences.append(
            f"Switched off one by one, {effects['significant']} of {effects['tested']} pairs of "
            "expert and task change the task's loss significantly."
        )
    return tuple(sentences)


def summary_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each measure: each null's mean and the number of significant projections."""
    rows = []
    for name, nulls in content["measures"].items():
        first = next(iter(nulls.values()))
        row = {"measure": name.replace("_", " "), "mean": f"{first['value']:.4g}"}
        for null, shown in NULL_NAMES.items():
            row[shown] = MISSING
            if (found := nulls.get(null)) is not None and found["null_mean"] is not None:
                counts = f"{found['significant']} of {found['projections']}"
                row[shown] = f"{found['null_mean']:.4g}; {counts}"
        rows.append(row)
    return pd.DataFrame(rows)


def tasks_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each task: the number of tokens and of independent texts."""
    tasks = content["tasks"].items()
    rows = [(task, f"{counts['tokens']:,}", f"{counts['units']:,}") for task, counts in tasks]
    return pd.DataFrame(rows, columns=["task", "tokens", "independent texts"])


def expert_rows(experts: pd.DataFrame, *, fdr: float) -> pd.DataFrame:
    """The largest significant differences of an expert's share of a task from its share of all.

    All cells are text; the table is empty if nothing is significant.
    """
    found = where(experts, experts["q_value"] <= fdr)
    found = found.sort_values("difference", key=abs, ascending=False, kind="stable")
    return pd.DataFrame(
        [
            {
                "expert": f"layer {row.layer} {row.target}, expert {row.expert}",
                "task": row.task,
                "share": f"{row.specialization:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]",
                "against all": f"{row.difference:+.3f}",
                "q": f"{row.q_value:.2g}",
            }
            for row in found.head(MAX_ROWS).itertuples()
        ],
        columns=["expert", "task", "share", "against all", "q"],
    )


def agreement_sentences(agreement: RoutingAgreement) -> tuple[str, ...]:
    """The agreement of routing and effects in sentences."""
    sentences = ["No expert has a significant effect on any task."]
    if agreement.n:
        sentences = [
            f"Of {agreement.n} experts with a significant effect on some task, "
            f"{100 * agreement.share:.0f} % are of use to the task that they are routed to most "
            f"(by chance {100 * agreement.chance:.0f} %, p = {agreement.p_value:.2g})."
        ]
    if agreement.spearman == agreement.spearman:
        sentences.append(
            f"Spearman's correlation of load and effect over experts and tasks: "
            f"{agreement.spearman:.2f} (p = {agreement.spearman_p:.2g})."
        )
    return tuple(sentences)


def agreement_rows(agreement: RoutingAgreement) -> pd.DataFrame:
    """One row for each expert: the task routed to it most, and the task it helps most."""
    return pd.DataFrame(
        [
            {
                "expert": f"layer {row.layer} {row.target}, expert {row.expert}",
                "routed to": f"{row.routed_task} ({row.load:.3f}, else {row.load_elsewhere:.3f})",
                "of use to": f"{row.affected_task} ({row.effect:+.4f}, else "
                f"{row.effect_elsewhere:+.4f})",
                "q": MISSING if row.q_value != row.q_value else f"{row.q_value:.2g}",
                "same": "yes" if row.agree else "no",
            }
            for row in agreement.table.head(MAX_ROWS).itertuples()
        ],
        columns=["expert", "routed to", "of use to", "q", "same"],
    )


def _loads(records: RoutingRecords) -> list[PlacedFigure]:
    targets = dict.fromkeys(projection.target for projection in records.projections)
    more = f" The first {MAX_TASKS} tasks." if len(records.tasks) > MAX_TASKS else ""
    return [
        PlacedFigure.place(
            f"load-{number}",
            records.plot("load", target=target),
            f"Load of each expert of {target}.{more}",
        )
        for number, target in enumerate(targets)
    ]


def _measures(analysis: Analysis) -> list[PlacedFigure]:
    placed = [
        PlacedFigure.place(name, analysis.specialization.plot(name), caption)
        for name, caption in SHOWN
    ]
    caption = "Router entropy and load entropy, by depth; 1 is even."
    return [*placed, PlacedFigure.place("entropy", analysis.records.plot("entropy"), caption)]
