"""The page of a comparison of adapters, and its tables and sentences."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from interp.errors import UserError
from interp.figures.measures import MISSING
from interp.files.shape import Maybe, check_shape
from interp.files.tables import read_table
from interp.moelora.training.adapters import METHOD_NAMES
from interp.moelora.training.comparison import REFERENCE
from interp.moelora.training.scoring import MEAN
from interp.report.comparison_figures import accuracy_figure, curve_figure
from interp.report.page import PlacedFigure, manifest_rows, render_page

_BALANCE = "1: all experts get as much; 8, of 8 experts: one gets all."
_CONTRASTIVE = "Low: an expert's outputs are like each other, and unlike others'."
CURVES = (
    ("language_loss", "loss per answer token (nats)", None, "What is trained: the answers' loss."),
    ("load_balance", "load balance", 1.0, _BALANCE),
    ("contrastive", "contrastive loss (nats)", None, _CONTRASTIVE),
    ("load_smallest", "least used expert (1: even)", 1.0, "The least used expert of any layer."),
)

_INTERVAL = [float, float]
_WITH_INTERVAL = {"mean": float}
_SHAPE = {
    "settings": {"model": str},
    "manifest": Maybe(dict),
    "parameters_differ_by": Maybe(float),
    "base": Maybe({"accuracy": Maybe({str: {"value": float, "ci_low": float, "ci_high": float}})}),
    "differences": Maybe(
        {str: {str: {"mean": float, "questions": _INTERVAL, "seeds": Maybe(_INTERVAL)}}}
    ),
    "methods": {
        str: {
            **{"trainable_parameters": int, "seeds": [int], "steps": int},
            "seconds_per_step": float,
            "accuracy": {
                str: {
                    **{"mean": float, "by_seed": [float]},
                    **{"questions": _INTERVAL, "seeds": Maybe(_INTERVAL)},
                }
            },
            "held_out_loss": {str: _WITH_INTERVAL},
            "experts": Maybe(
                {
                    "dead_experts": [float],
                    "load_smallest": Maybe([float]),
                    "load_largest": Maybe([float]),
                    "cosine": Maybe(_WITH_INTERVAL),
                }
            ),
        }
    },
}
"""The part of comparison.json that is shown; see `interp.files.shape.check_shape`."""


def check_comparison(content: Any, where: str) -> dict[str, Any]:
    """The content of comparison.json. Raises UserError if it is malformed."""
    check_shape(content, _SHAPE, where)
    methods = content["methods"]
    named = (*methods, *(content.get("differences") or {}))
    unknown = [name for name in named if name not in METHOD_NAMES]
    if not methods or unknown:
        found = unknown[0] if methods else "none"
        raise UserError(f"{where}: unknown method {found[:40]!r}; make the run again")
    tasks = list(next(iter(methods.values()))["accuracy"])
    by_task = [row["accuracy"] for row in methods.values()]
    by_task += (content.get("differences") or {}).values()
    if not tasks or any(list(scores) != tasks for scores in by_task):
        raise UserError(f"{where}: the methods are not of the same tasks; make the run again")
    return content


def read_losses(path: Path) -> pd.DataFrame:
    """The table of logged steps. Raises UserError if it is malformed."""
    table = read_table(path, texts=("method",), counts=("seed", "step"), others=True)
    if unknown := [name for name in table["method"].unique() if name not in METHOD_NAMES]:
        raise UserError(f"{path}: unknown method {unknown[0][:40]!r}; make the run again")
    for column, *_ in CURVES:
        if column in table and not is_numeric_dtype(table[column]):
            raise UserError(f"{path}: {column} must hold numbers; make the run again")
    return table


def render_comparison(content: Mapping[str, Any], losses: pd.DataFrame) -> str:
    """The page as text, from comparison.json's content and the table of logged steps."""
    caption = "Whiskers: 95 % intervals over questions. Small dots: single seeds."
    return render_page(
        "comparison.html.j2",
        title=content["settings"]["model"],
        setting="LoRA, experts, and experts with a contrastive loss at equal trainable parameters",
        sentences=summary(content),
        table=accuracy_table(content),
        differences=difference_table(content),
        costs=cost_table(content),
        accuracy=PlacedFigure.place("accuracy", accuracy_figure(content), caption),
        curves=_curves(losses),
        settings=_settings_rows(content["settings"]),
        manifest=manifest_rows(content.get("manifest", {})),
    )


def summary(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The results in sentences, positive or negative."""
    methods = content["methods"]
    first = next(iter(methods.values()))
    n_seeds = len(first["seeds"])
    spread = content.get("parameters_differ_by", 0.0)
    sentences = [
        f"{len(methods)} methods, {n_seeds} seeds each, {first['steps']} steps, the same data in "
        f"the same order; trainable parameters differ by at most {100 * spread:.2g} %."
    ]
    for method, by_task in content.get("differences", {}).items():
        found = by_task[MEAN if MEAN in by_task else next(iter(by_task))]
        sentences.append(
            f"{METHOD_NAMES[method]} against {METHOD_NAMES[REFERENCE]}: {points(found['mean'])} "
            f"points of accuracy ({intervals(found, None, ', ')}). {verdict(found)}"
        )
    for method, row in methods.items():
        if row.get("experts"):
            dead = int(max(row["experts"]["dead_experts"], default=0))
            worst = f"{dead} dead experts in the worst run" if dead else "no dead expert in any run"
            sentences.append(f"{METHOD_NAMES[method]}: {worst} at the end of training.")
    return tuple(sentences)


def accuracy_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """One row for each task, one column for each method; each interval on a separate line."""
    methods, base = content["methods"], content.get("base", {}).get("accuracy", {})
    rows = []
    for task in next(iter(methods.values()))["accuracy"]:
        row = {"task": task}
        if task in base:
            value, low, high = (base[task][name] for name in ("value", "ci_low", "ci_high"))
            row["no adapter"] = f"{value:.3f}\nquestions [{low:.2f}, {high:.2f}]"
        for method, found in methods.items():
            score = found["accuracy"][task]
            row[METHOD_NAMES[method]] = f"{score['mean']:.3f}\n{intervals(score, '{:.2f}')}"
        rows.append(row)
    return pd.DataFrame(rows).fillna(MISSING)


def difference_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """Accuracy minus LoRA's in points: one row for each task, one column for each method."""
    differences = content.get("differences", {})
    rows = []
    for task in next(iter(differences.values()), {}):
        row = {"task": task}
        for method, by_task in differences.items():
            found = by_task[task]
            row[METHOD_NAMES[method]] = f"{points(found['mean'])}\n{intervals(found, None)}"
        rows.append(row)
    return pd.DataFrame(rows)


def cost_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """Size, speed, loss, and the use of the experts of each method."""
    rows = []
    for method, row in content["methods"].items():
        experts = row.get("experts") or {}
        losses = [loss["mean"] for loss in row["held_out_loss"].values()]
        cosine = experts.get("cosine")
        rows.append(
            {
                "method": METHOD_NAMES[method],
                "trainable parameters": f"{row['trainable_parameters']:,}",
                "seconds a step": f"{row['seconds_per_step']:.2f}",
                "held-out loss": f"{sum(losses) / len(losses):.3f}",
                "dead experts": _by_seed(experts.get("dead_experts"), "{:.0f}"),
                "least used": _by_seed(experts.get("load_smallest"), "{:.2f}"),
                "most used": _by_seed(experts.get("load_largest"), "{:.2f}"),
                "cosine": MISSING if cosine is None else f"{cosine['mean']:.3f}",
            }
        )
    return pd.DataFrame(rows)


def _curves(losses: pd.DataFrame) -> list[PlacedFigure]:
    return [
        PlacedFigure.place(column, curve_figure(losses, column, title, even=even), caption)
        for column, title, even, caption in CURVES
        if column in losses and losses[column].notna().any()
    ]


def _settings_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value) or MISSING)
        for name, value in settings.items()
    ]


def verdict(difference: Mapping[str, Any]) -> str:
    """The conclusion that the intervals of a difference support."""
    ends = [difference[name] for name in ("questions", "seeds") if difference.get(name)]
    if all(low > 0 for low, _ in ends):
        return "Ahead by both measures." if len(ends) > 1 else "Ahead on these questions."
    if all(high < 0 for _, high in ends):
        return "Behind by both measures." if len(ends) > 1 else "Behind on these questions."
    return "No difference that the intervals bear out."


def intervals(measure: Mapping[str, Any], form: str | None, separator: str = "\n") -> str:
    """Both intervals in a number format; ``form=None`` gives percentage points."""
    parts = []
    for name in ("questions", "seeds"):
        if measure.get(name):
            ends = [points(end) if form is None else form.format(end) for end in measure[name]]
            parts.append(f"{name} [{', '.join(ends)}]")
    return separator.join(parts)


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text


def _by_seed(values: list[Any] | None, form: str) -> str:
    return MISSING if values is None else ", ".join(form.format(value) for value in values)
