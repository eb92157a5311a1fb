"""The page of ``interp patch``, and its summary in sentences."""

from collections.abc import Mapping
from typing import Any

from interp.files.shape import Maybe, check_shape
from interp.patching import PatchEffects
from interp.report.page import PlacedFigure, dtype_sentence, manifest_rows, render_page
from interp.report.text_table import text_table

MAX_ROWS = 100
_SHAPE = {
    **dict.fromkeys(("n_pairs", "n_right", "n_prompts", "n_groups", "n_units"), int),
    **dict.fromkeys(("positions", "metric"), str),
    "mean_metric": {"clean": [float, float, float], "corrupted": [float, float, float]},
    "n_significant": Maybe(int),
    "fdr": float,
    "screening": Maybe(
        dict.fromkeys(
            ("ranked_by", "pearson", "spearman", "largest_missed", "confidence"), (str, float)
        )
    ),
}
"""The part of summary.json that is shown; see `interp.files.shape.check_shape`."""


def render_patch(
    result: PatchEffects, summary: Mapping[str, Any], manifest: Mapping[str, Any]
) -> str:
    """The page as text, from the run's effects, its summary.json and its manifest."""
    check_shape(summary, _SHAPE, "summary.json")
    dtype = dtype_sentence(manifest)
    setting = f"{result.component}, {result.method}, positions {summary['positions']}"
    model = manifest.get("model", {})
    return render_page(
        "patch.html.j2",
        title=str(model.get("spec", "run") if isinstance(model, Mapping) else model),
        setting=f"{setting}, values from {result.source}",
        sentences=[*patch_sentences(summary), *([dtype] if dtype else [])],
        map=PlacedFigure.place("effects", result.plot(), f"Mean effects, {setting}."),
        units=text_table(result.to_dataframe().head(MAX_ROWS)),
        n_units=summary["n_units"],
        manifest=manifest_rows(manifest),
    )


def patch_sentences(summary: Mapping[str, Any]) -> list[str]:
    """The content of summary.json in sentences."""
    shown = {
        name: f"{value:.3g} [{low:.3g}, {high:.3g}]"
        for name, (value, low, high) in summary["mean_metric"].items()
    }
    sentences = [
        f"{summary['n_right']} of {summary['n_pairs']} clean texts are answered rightly; effects "
        f"are over {summary['n_prompts']} prompts in {summary['n_groups']} groups.",
        f"Mean {summary['metric']}: clean {shown['clean']}, corrupted {shown['corrupted']}.",
    ]
    screening = summary.get("screening")
    if screening:
        sentences.append(
            f"Ranked by {screening['ranked_by']}, Pearson {screening['pearson']} and Spearman "
            f"{screening['spearman']} with the exact effects; no other unit's effect is above "
            f"{screening['largest_missed']} (confidence {screening['confidence']})."
        )
    if summary.get("n_significant") is None:
        return [*sentences, "Too few groups of prompts for intervals and tests."]
    return [
        *sentences,
        f"{summary['n_significant']} of {summary['n_units']} effects are significant at a "
        f"false-discovery rate of {100 * summary['fdr']:g} %.",
    ]
