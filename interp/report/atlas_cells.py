"""The cells of one run directory in an atlas: only what its files say.

A cell whose file is not there, or does not say it, has no entry, and is empty in the table.
"""

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.evaluation.transfer import OTHERS
from interp.figures.measures import HELD_OUT, Measure, count_at, format_number, measure_at
from interp.figures.tables import settings_of, where
from interp.files.shape import Maybe, check_shape
from interp.files.tables import read_table
from interp.files.text import read_json_object
from interp.heads.effects import HeadEffects
from interp.heads.headset import Head
from interp.lazy import pd
from interp.patching.stability import stability
from interp.report.read_run import read_evaluation
from interp.statistics.significance import mean_interval

COMPARED_HEADS = 8
"""Of how many heads with the largest effects the overlap is taken."""
FIRST_HEADS = 8
Cells = dict[str, Any]

_MODEL = {
    **dict.fromkeys(("spec", "fingerprint", "architecture", "quantization"), Maybe(str)),
    **dict.fromkeys(("parameters", "n_layers"), Maybe(int)),
    "adapter": Maybe({"type": str, **dict.fromkeys(("r", "num_experts", "top_k"), Maybe(int))}),
}
_MANIFEST = {
    "model": Maybe((_MODEL, str)),
    "dtype": Maybe(str),
    "versions": Maybe({"faithlens": Maybe(str)}),
    "relations": Maybe([str]),
    "settings": Maybe(
        {
            "premises": Maybe((str, [str])),
            **dict.fromkeys(("method", "quantization"), Maybe(str)),
        }
    ),
}
_MEASURES = {
    "measures": {str: {str: {"value": Maybe(float), "null_mean": Maybe(float)}}},
    "projections": Maybe(int),
    "experts": Maybe({"tested": int, "significant": int}),
    "dead_experts": Maybe(int),
    "effects": Maybe({"tested": int, "significant": int}),
}
_METRICS = {
    **{"method": str, "trainable_parameters": int, "base_parameters": int, "steps": int},
    "accuracy": {str: {"value": float}},
    "expert_cosine": Maybe(float),
}
_ADAPTER = dict.fromkeys(("experts", "rank", "top_k"), Maybe(int))


def read_run_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a run of any kind, checked."""
    path = folder / "manifest.json"
    return check_shape(read_json_object(path), _MANIFEST, str(path))


def model_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a manifest says of its model; early ones have its name only."""
    model = manifest.get("model") or {}
    return {"spec": model} if isinstance(model, str) else model


def model_cells(manifest: Mapping[str, Any], folder: Path) -> Cells:
    """The model, how it ran, by which version, and the day on which the manifest was written."""
    model, settings = model_of(manifest), manifest.get("settings") or {}
    adapter = model.get("adapter") or {}
    written = datetime.fromtimestamp((folder / "manifest.json").stat().st_mtime, timezone.utc)
    return {
        "model": model.get("spec"),
        "fingerprint": (model.get("fingerprint") or "")[:12] or None,
        "architecture": model.get("architecture"),
        "parameters": model.get("parameters"),
        "dtype": manifest.get("dtype"),
        "quantization": model.get("quantization") or settings.get("quantization"),
        "adapter": adapter["type"].lower() if adapter else None,
        "experts": adapter.get("num_experts"),
        "top_k": adapter.get("top_k"),
        "rank": adapter.get("r"),
        "version": (manifest.get("versions") or {}).get("faithlens"),
        "written": written.date().isoformat(),
    }


def search_cells(manifest: Mapping[str, Any], folder: Path) -> Cells:
    """What was searched, and of how many facts."""
    settings = manifest.get("settings") or {}
    # A search over several relations may have left some out, and says which it kept.
    given = manifest.get("relations") or settings.get("premises") or ()
    given = (given,) if isinstance(given, str) else given
    names = [Path(name).stem if "/" in name or "." in name else name for name in given]
    files = [folder / "known.json"]
    if not files[0].is_file():  # of a search over several relations each has its own
        files = sorted(folder.glob("relations/*/known.json"))
    known = [
        len(check_shape(read_json_object(path), {"subjects": [str]}, str(path))["subjects"])
        for path in files
    ]
    return {
        "relations": " ".join(names) or None,
        "method": settings.get("method"),
        "known": sum(known) if known else None,
    }


def head_cells(heads: list[Head], table: "pd.DataFrame") -> Cells:
    """The chosen heads among all of a site, which `table` holds with their relative depths."""
    depths = table.set_index(["layer", "head"])["depth"]
    if missing := [head for head in heads if head not in depths.index]:
        raise UserError(f"evaluation.json names the head {missing[0]}, which heads.csv lacks")
    first = " ".join(f"{layer}.{head}" for layer, head in heads[:FIRST_HEADS])
    return {
        "n_heads": len(heads),
        "head_share": len(heads) / len(table),
        "heads": first + (" …" if len(heads) > FIRST_HEADS else ""),
        "depth": float(depths.loc[heads].mean()) if heads else None,
    }


def stability_cells(folder: Path, site: str, effects: HeadEffects | None) -> Cells:
    """Overlap of the best heads between relations or, in one relation, of resampled subjects."""
    path = folder / "stability.csv"
    if path.is_file():
        names = ("jaccard", "jaccard_null", "spearman", "spearman_null")
        table = read_table(path, texts=("site",), numbers=names, advice="run `interp locate` again")
        table = where(table, table["site"] == site)
        if table.empty:
            return {}
        means = table[list(names)].mean()
        return {
            "stability_over": "relations",
            "stability": float(means["jaccard"]),
            "stability_null": float(means["jaccard_null"]),
            "rank_correlation": float(means["spearman"]),
            "rank_correlation_null": float(means["spearman_null"]),
        }
    if effects is None or len(set(effects.subjects)) < 2 or effects.n_heads < 2:
        return {}
    count = min(COMPARED_HEADS, effects.n_heads // 2)
    found = stability(effects.as_patching()[0], count, by="signed")
    value, low, high = found.overlap
    return {
        "stability_over": "resamples",
        **{"stability": value, "stability_low": low, "stability_high": high},
        "stability_null": found.chance,
    }


def evaluation_cells(evaluation: Mapping[str, Any]) -> Cells:
    """The held-out scores: told where the object is, and where a detector says so."""
    same = [
        setting
        for setting in settings_of(evaluation)
        if all(setting.get(key) == evaluation.get(key) for key in ("site", "mode", "heads"))
    ]
    told = next((part for part in same if part.get("gate") in (None, "oracle")), None)
    gated = next((part for part in same if part.get("gate") not in (None, "oracle")), None)
    drawn = next((part for part in same if _null(part, "mean") is not None), {})
    cells: Cells = {
        "scored": count_at(evaluation, *HELD_OUT, "false_premise", "baseline", "n"),
        **_ends("preference", _held_out(evaluation, "baseline")),
        "random_mean": _null(drawn, "mean"),
        "random_p95": _null(drawn, "p95"),
        "random_sets": count_at(drawn, "random_null", "n_sets"),
        "random_gate": drawn.get("gate"),
    }
    for name, setting in (("told", told), ("gated", gated)):
        if setting is not None:
            cells |= _ends(f"preference_{name}", _held_out(setting, "constrained"))
            cells[f"twin_cost_{name}"] = _fall(setting, "preference_accuracy")
            cells[f"p_true_fall_{name}"] = _fall(setting, "p_true_object")
    if gated is not None:
        for name in ("fired_on_false", "fired_on_twins"):
            cells[name] = _value(measure_at(gated, "detection", name))
        base, whole, kept = (
            cells.get(name) for name in ("preference", "preference_told", "preference_gated")
        )
        if base is not None and whole is not None and kept is not None and whole > base:
            cells["gain_kept"] = (kept - base) / (whole - base)
    return cells


def transfer_cells(table: "pd.DataFrame", cells: Mapping[str, Any]) -> Cells:
    """Means of a ``transfer.csv`` over the relations, each under the heads of all others.

    Of several settings: the one whose site and number of heads are the row's, else the largest.
    """
    part = where(table, table["searched"] == OTHERS)
    for column in ("site", "n_heads"):
        wanted = part[column] == cells.get(column)
        part = where(part, wanted if wanted.any() else part[column] == part[column].max())
    part = where(part, part["mode"] == part["mode"].iloc[0]) if len(part) else part
    if part.empty:
        return {}
    worst = part.loc[part["preference_accuracy"].idxmin()]
    scored, values = list(part["scored"]), part["preference_accuracy"].to_numpy()
    return {
        "left_out_relations": len(set(scored)),
        "left_out_heads": int(part["n_heads"].iloc[0]),
        "left_out": float(part["baseline"].mean()),
        **_ends("left_out_told", Measure(*mean_interval(values, scored))),
        "left_out_worst": float(worst["preference_accuracy"]),
        "left_out_worst_in": str(worst["scored"]),
        "left_out_p_true_fall": float(part["p_true_cost"].mean()),
    }


def other_relations(folder: Path) -> Cells:
    """Relations that the run never searched: the preference without and with its heads."""
    texts = []
    for path in sorted(folder.glob("scored/*/evaluation.json")):
        evaluation = read_evaluation(path)
        pair = [_value(_held_out(evaluation, run)) for run in ("baseline", "constrained")]
        shown = " → ".join("–" if value is None else format_number(value) for value in pair)
        texts.append(f"{path.parent.name} {shown}")
    return {"other_relations": "; ".join(texts) or None}


def training_cells(folder: Path) -> Cells:
    """What a run of ``interp moelora train`` says of its adapter."""
    metrics = _checked(folder / "metrics.json", _METRICS)
    accuracy = metrics["accuracy"]  # of one task there is no mean
    of_all = accuracy.get("mean") or (next(iter(accuracy.values())) if len(accuracy) == 1 else {})
    settings = _checked(folder / "training.json", {**_ADAPTER, "data": [str]})
    cells: Cells = {
        "adapter": metrics["method"],
        "parameters": metrics["base_parameters"],
        "trainable_parameters": metrics["trainable_parameters"],
        "relations": " ".join(Path(name).name for name in settings["data"]),
        "steps": metrics["steps"],
        "accuracy": of_all.get("value"),
        "expert_cosine": metrics.get("expert_cosine"),
        "rank": settings.get("rank"),
    }
    if metrics["method"] != "lora":  # which has no experts, whatever the settings name
        cells |= {"experts": settings.get("experts"), "top_k": settings.get("top_k")}
    return cells


def analysis_cells(folder: Path) -> Cells:
    """What a run of ``interp moelora analyze`` says of its experts."""
    measures = _checked(folder / "measures.json", _MEASURES)
    settings = _checked(folder / "analyze.json", {"data": [str]})
    routing = read_table(folder / "routing.csv", texts=("target",), counts=("layer", "expert"))
    by_projection = set(routing.groupby(["layer", "target"])["expert"].nunique())
    information = measures["measures"].get("task_information", {}).get("texts", {})
    experts, effects = measures.get("experts") or {}, measures.get("effects") or {}
    return {
        "adapter": "moelora",
        "relations": " ".join(Path(name).name for name in settings["data"]),
        "experts": by_projection.pop() if len(by_projection) == 1 else None,
        "task_information": information.get("value"),
        "task_information_null": information.get("null_mean"),
        "specialized_projections": information.get("significant"),
        "projections": measures.get("projections"),
        "task_experts": experts.get("significant"),
        "tested_experts": experts.get("tested"),
        "dead_experts": measures.get("dead_experts"),
        "effective_experts": effects.get("significant"),
        "switched_off_experts": effects.get("tested"),
    }


def _checked(path: Path, shape: Any) -> Any:
    return check_shape(read_json_object(path), shape, str(path))


def _held_out(setting: Mapping[str, Any], run: str) -> Measure | None:
    return measure_at(setting, *HELD_OUT, "false_premise", run, "preference_accuracy")


def _fall(setting: Mapping[str, Any], measure: str) -> float | None:
    """How much a measure of the twins falls under the constraint."""
    keys = (*HELD_OUT, "true_premise")
    before, after = (
        measure_at(setting, *keys, run, measure) for run in ("baseline", "constrained")
    )
    return None if before is None or after is None else before.value - after.value


def _null(setting: Mapping[str, Any], what: str) -> float | None:
    return _value(measure_at(setting, "random_null", "preference_accuracy", what))


def _value(measure: Measure | None) -> float | None:
    return None if measure is None else measure.value


def _ends(name: str, measure: Measure | None) -> Cells:
    """A measure and the ends of its interval, as three cells."""
    if measure is None:
        return {}
    return {name: measure.value, f"{name}_low": measure.low, f"{name}_high": measure.high}
