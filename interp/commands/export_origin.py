"""Where a run's heads come from, for files that leave the run's directory."""

from math import isnan
from pathlib import Path
from typing import Any

from interp.commands.locate import EFFECTS
from interp.commands.locate_joint import searched_relations
from interp.figures.tables import where
from interp.heads.effects import load_effects
from interp.heads.headset import HeadSet
from interp.heads.noting import SCORES
from interp.heads.origin import Origin
from interp.models.spec import shown_spec
from interp.report.atlas_cells import COMPARED_HEADS, stability_cells
from interp.report.read_run import read_heads
from interp.runs.manifest import read_manifest, recorded_model

_SETTINGS = ("method", "check", "limit", "seed")


def origin_of_run(run: Path, heads: HeadSet) -> Origin:
    """The model, the search and its effects of some heads, by the files of their run."""
    recorded, manifest = recorded_model(run), read_manifest(run)
    settings = dict(manifest.get("settings") or {})
    relations = searched_relations(run) or (_relation(settings.get("premises")),)
    found = {
        "searched": [name for name in relations if name],
        **{name: settings[name] for name in _SETTINGS if settings.get(name) is not None},
    }
    versions = manifest.get("versions") or {}
    return Origin(
        shown_spec(str(recorded["spec"])),
        recorded["fingerprint"],
        int(recorded.get("n_layers") or 0),
        int(recorded.get("n_heads") or 0),
        found=found,
        scores=_scores(run, heads),
        stability=_stability(run, heads),
        versions={str(name): str(version) for name, version in dict(versions).items()},
    )


def _relation(premises: Any) -> str:
    """The relation's name; of a file, its name without the directories."""
    return Path(str(premises)).stem if premises else ""


def _scores(run: Path, heads: HeadSet) -> tuple[dict[str, Any], ...]:
    """The effects of the heads in heads.csv."""
    path = run / "heads.csv"
    if not path.is_file():
        return ()
    table = read_heads(path)
    rows = {
        (int(row["layer"]), int(row["head"])): row
        for row in where(table, table["site"] == heads.site).to_dict("records")
    }
    return tuple(
        {
            **{"layer": layer, "head": head},
            **{name: _number(rows[layer, head][name]) for name in SCORES},
        }
        for layer, head in heads
        if (layer, head) in rows
    )


def _number(value: Any) -> float | None:
    return None if isnan(value) else float(value)


def _stability(run: Path, heads: HeadSet) -> dict[str, Any]:
    """How alike the best heads of two such searches are."""
    path = run / EFFECTS
    effects = load_effects(path).get(heads.site) if path.is_file() else None
    cells = stability_cells(run, heads.site, effects)
    names = ("stability", "stability_low", "stability_high")
    overlap = [cells[name] for name in names if cells.get(name) is not None]
    if not overlap:
        return {}
    over, chance = cells["stability_over"], cells["stability_null"]
    return {"over": over, "n_heads": COMPARED_HEADS, "jaccard": overlap, "chance": chance}
