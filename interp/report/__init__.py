"""Figures, tables and the one-file HTML report of a run."""

from interp.report.dots import dot_figure
from interp.report.figures import (
    gain_cost_curve,
    head_heatmap,
    layer_profile,
    method_agreement,
    preference_by_template,
    random_null,
)
from interp.report.html import write_report
from interp.report.layers import layer_effects
from interp.report.tables import comparison_table, rich_table, template_table

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
