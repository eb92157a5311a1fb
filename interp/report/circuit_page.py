"""The page of ``interp circuit``, and its summary in sentences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from interp.errors import UserError
from interp.figures.measures import format_number
from interp.figures.patching import faithfulness_figure
from interp.files.shape import Maybe, check_shape
from interp.lazy import pd
from interp.patching import EdgeEffects
from interp.report.page import PlacedFigure, dtype_sentence, manifest_rows, render_page
from interp.report.text_table import text_table

MAX_ROWS = 100
MAX_DRAWN = 60
"""Edges of the graph, about."""
CURVE = (
    *("proportion", "n_edges", "faithfulness", "ci_low", "ci_high"),
    *("random_mean", "random_low", "random_high"),
)
"""Columns of ``Faithfulness.to_dataframe``."""
_NUMBERS = [float, float, float]
_SHAPE = {
    **dict.fromkeys(("n_pairs", "n_right", "n_search", "n_edges"), int),
    **dict.fromkeys(("method", "metric", "by", "select"), str),
    "mean_metric": {"clean": _NUMBERS, "corrupted": _NUMBERS},
    "circuit": Maybe({"n_asked": int, "n_kept": int}),
    "stability": Maybe({"k": int, "overlap": _NUMBERS, "chance": float}),
    "held_out": Maybe(
        {
            "n_prompts": int,
            "curve": [dict.fromkeys(CURVE, Maybe(float))],
            "random_curves": [[float]],
            **dict.fromkeys(("cpr", "cmd"), _NUMBERS),
            **{key: [float] for key in ("random_cpr", "random_cmd")},
        }
    ),
}
"""The part of summary.json that is shown; see `interp.files.shape.check_shape`."""

_LARGEST = {"absolute": "largest absolute", "signed": "largest"}
_SELECTED = {"top": "", "greedy": " that lead to the logits, chosen one after the other"}


def render_circuit(
    found: EdgeEffects, summary: Mapping[str, Any], manifest: Mapping[str, Any]
) -> str:
    """The page as text, from the run's scores, its summary.json and its manifest."""
    check_shape(summary, _SHAPE, "summary.json")
    dtype, held_out = dtype_sentence(manifest), summary["held_out"]
    model = manifest.get("model", {})
    curve = None
    if held_out is not None:
        table = pd.DataFrame(held_out["curve"], columns=list(CURVE)).astype(float)
        if any(len(curve) != len(table) for curve in held_out["random_curves"]):
            raise UserError("summary.json has curves of different lengths: make the run again")
        figure = faithfulness_figure(
            table,
            np.array(held_out["random_curves"]).reshape(len(held_out["random_curves"]), len(table)),
            kind="edges",
            cpr=held_out["cpr"][0],
            cmd=held_out["cmd"][0],
        )
        caption = "Faithfulness of circuits of the first edges, on pairs that were not searched."
        curve = PlacedFigure.place("faithfulness", figure, caption)
    table = found.to_dataframe(MAX_ROWS, by=summary["by"])
    return render_page(
        "circuit.html.j2",
        title=str(model.get("spec", "run") if isinstance(model, Mapping) else model),
        setting=f"edges by {found.method}",
        sentences=[*circuit_sentences(summary), *([dtype] if dtype else [])],
        map=PlacedFigure.place("edges", found.plot(), "Mean scores of edges, writers and readers."),
        graph=_graph(found, summary["by"]),
        curve=curve,
        edges=shown_edges(table),
        n_edges=summary["n_edges"],
        manifest=manifest_rows(manifest),
    )


def _graph(found: EdgeEffects, by: Any) -> PlacedFigure | None:
    """The graph of the first edges; None where no path leads to the logits."""
    try:
        figure = found.plot(kind="graph", n=MAX_DRAWN, by=by)
    except UserError:
        return None
    return PlacedFigure.place("graph", figure, "The paths of the first edges, by layer.")


def circuit_sentences(summary: Mapping[str, Any]) -> list[str]:
    """The content of summary.json in sentences."""
    shown = {name: _interval(values) for name, values in summary["mean_metric"].items()}
    sentences = [
        f"{summary['n_right']} of {summary['n_pairs']} clean texts are answered rightly; "
        f"{summary['n_edges']} edges are scored on {summary['n_search']} pairs.",
        f"Mean {summary['metric']}: clean {shown['clean']}, corrupted {shown['corrupted']}.",
    ]
    kept, held_out = summary["circuit"], summary["held_out"]
    if kept is None:
        sentences.append("No path of the first edges leads from the input to the logits.")
    else:
        sentences.append(
            f"circuit.json holds {kept['n_kept']} edges: the first {kept['n_asked']}"
            f"{_SELECTED.get(summary['select'], '')}, less those "
            "that lead nowhere; keys and values of a group are named for each of its heads."
        )
    if (stable := summary["stability"]) is not None:
        sentences.append(
            f"In resamples of the pairs the {stable['k']} {_LARGEST.get(summary['by'], 'first')} "
            f"scores are of the same edges by {_interval(stable['overlap'])} (Jaccard index), by "
            f"chance by {format_number(stable['chance'], 3)}."
        )
    if held_out is None:
        return [*sentences, "No pairs were held out, so that faithfulness was not measured."]
    areas = []
    for name in ("cpr", "cmd"):
        random = held_out[f"random_{name}"]
        beside = f", random circuits {format_number(float(np.mean(random)), 3)}" if random else ""
        areas.append(f"{name.upper()} {_interval(held_out[name])}{beside}")
    return [
        *sentences,
        f"On {held_out['n_prompts']} pairs that were not searched: {'; '.join(areas)}.",
    ]


def _interval(values: Any) -> str:
    value, low, high = values
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def shown_edges(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table as text, with rounded numbers and dashes for missing values."""
    return text_table(table)
