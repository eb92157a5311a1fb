"""The page of ``interp probe``: one self-contained HTML file."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.moved import old_names
from interp.report.page import PlacedFigure, manifest_rows, render_page


def render_probe_report(
    *,
    title: str,
    sentences: list[str],
    figures: Mapping[str, tuple[go.Figure, str]],
    detection: pd.DataFrame | None,
    manifest: Mapping[str, Any],
) -> str:
    """The page as text; ``figures`` are by section name, each with its caption."""
    placed = {
        name: PlacedFigure.place(f"probe-{number}", figure, caption)
        for number, (name, (figure, caption)) in enumerate(figures.items())
    }
    return render_page(
        "probes.html.j2",
        title=title,
        setting="",
        sentences=sentences,
        figures=placed,
        detection=detection,
        manifest=manifest_rows(manifest),
    )


__getattr__ = old_names(__name__)
