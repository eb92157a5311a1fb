"""``interp patch``: patch a component on pairs of texts, print the largest effects."""

from dataclasses import fields
from typing import Any

from rich.console import Console

from interp.cli.options import PatchOptions, to_config
from interp.models import load_model
from interp.report.tables import rich_table
from interp.runs.patch import PatchSettings, load_pairs, patch_run
from interp.runs.store import read_json, write_yaml


def patch(options: PatchOptions, console: Console) -> None:
    """Effects of every unit; see ``interp.runs.patch``."""
    chosen = {one.name: getattr(options, one.name) for one in fields(PatchSettings)}
    settings = PatchSettings(**chosen)
    load_pairs(settings)  # a broken file should not wait for the model
    with console.status(f"loading {options.model}"):
        model: Any = load_model(options.model, device=options.device, dtype=options.dtype)
    result = patch_run(model, settings, options.out)
    write_yaml(options.out / "config.yaml", to_config(options))
    summary = read_json(options.out / "summary.json")
    top = result.to_dataframe().head(10).drop(columns=["p_value", "rank"])
    text = top.map(lambda cell: f"{cell:.3g}" if isinstance(cell, float) else str(cell))
    title = f"{result.component}, {result.method}: largest of {summary['n_units']} effects"
    console.print(rich_table(text.replace("nan", "–"), title=title))
    for sentence in sentences(summary):
        console.print(f"• {sentence}", markup=False, highlight=False)
    console.print(f"\nfigure: {options.out / 'heatmap.html'}", highlight=False, soft_wrap=True)


def sentences(summary: dict[str, Any]) -> list[str]:
    """What the summary says, in words."""
    means = summary["mean_metric"]
    shown = {
        name: f"{value:.3g} [{low:.3g}, {high:.3g}]" for name, (value, low, high) in means.items()
    }
    found = [
        f"{summary['n_right']} of {summary['n_pairs']} clean texts are answered rightly; effects "
        f"are over {summary['n_prompts']} prompts in {summary['n_groups']} groups",
        f"mean {summary['metric']}: clean {shown['clean']}, corrupted {shown['corrupted']}",
    ]
    screening = summary.get("screening")
    if screening:
        found.append(
            f"ranked by {screening['ranked_by']}, Pearson {screening['pearson']} and Spearman "
            f"{screening['spearman']} with the exact effects; no other unit's effect is above "
            f"{screening['largest_missed']} (confidence {screening['confidence']})"
        )
    if summary["n_significant"] is None:
        return [*found, "too few groups of prompts for intervals and tests"]
    return [
        *found,
        f"{summary['n_significant']} of {summary['n_units']} effects are significant at a "
        f"false-discovery rate of {100 * summary['fdr']:g} %",
    ]
