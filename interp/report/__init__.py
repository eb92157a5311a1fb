"""Figures, tables and the one-file HTML report of a run."""

from typing import TYPE_CHECKING

from interp.lazy import names_on_demand

if TYPE_CHECKING:
    from interp.figures.dots import dot_figure
    from interp.figures.evaluation import (
        gain_cost_curve,
        head_heatmap,
        layer_profile,
        method_agreement,
        preference_by_template,
        random_null,
    )
    from interp.figures.heatmap import layer_effects
    from interp.figures.tables import comparison_table, rich_table, template_table
    from interp.report.heads_page import write_report

__all__ = [
    "comparison_table",
    "dot_figure",
    "gain_cost_curve",
    "head_heatmap",
    "layer_effects",
    "layer_profile",
    "method_agreement",
    "preference_by_template",
    "random_null",
    "rich_table",
    "template_table",
    "write_report",
]

__getattr__, __dir__ = names_on_demand(__name__)
