"""``interp export`` as a function: a directory with a run's constraint, to hand over.

It holds the intervention, the detector if that decides where it acts, a card, and on request the
base model's files, or weights that the intervention is written into.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig

from interp.arguments import check_choice
from interp.attached.anatomy import Anatomy
from interp.attached.plain_model import PlainModel
from interp.attached.what import EVALUATION, of_setting
from interp.commands.evaluate import SiteToScore
from interp.commands.export_origin import origin_of_run
from interp.commands.locate_joint import load_search
from interp.errors import UserError
from interp.exported.bake import bake_into, check_bakeable
from interp.exported.bake_cost import bake_cost
from interp.exported.card import render_card
from interp.exported.folder import (
    BAKED,
    BASE,
    CARD,
    INTERVENTION,
    Weights,
    write_export,
)
from interp.figures.tables import settings_of
from interp.files.documents import write_atomically, write_json
from interp.files.links import check_links
from interp.files.whole import beside_of, move_into_place
from interp.interventions.gate import Gate, check_gate
from interp.interventions.intervention import Intervention
from interp.interventions.intervention_file import shortened
from interp.models import fingerprint_of_folder, load_model, resolve
from interp.models.fingerprint import weight_files
from interp.models.folder import read_folder
from interp.models.quantization import quantized_fingerprint
from interp.models.quiet import quiet_libraries
from interp.models.spec import cache_root, folder_of
from interp.report.read_run import read_evaluation
from interp.runs.manifest import check_same_model, read_manifest, recorded_model, recorded_spec
from interp.runs.shards import versions
from probes.detector.detector import DETECTOR_FOLDER, has_detector
from probes.detector.support_detector import AnyDetector, load_detector
from probes.detector.train import kept_detector

_BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")
"""Endings of the other files that a model consists of."""


@dataclass(frozen=True)
class ExportSettings:
    """What is exported of a run."""

    site: SiteToScore = "best"
    """best: the setting that the run's evaluation chose; else its setting at this site."""
    gate: Gate | None = None
    """oracle: who uses it says which words are false; probe: the detector, which is in the
    directory then. By default as the run was evaluated."""
    weights: bool = False
    """Put the base model's files into the directory too."""
    bake: bool = False
    """Write the intervention into the weights, as an ordinary checkpoint that any program loads. It
    acts at every token then; what that costs is measured."""
    transfer: bool = False
    """The model is a fine-tuned relative of the run's: its layers and heads must fit. Nothing is
    measured on it."""

    def __post_init__(self) -> None:
        check_choice("site", self.site, SiteToScore)
        if self.gate is not None:
            check_gate(self.gate)
        if self.bake and self.weights:
            raise UserError("--bake writes its own weights: leave --weights out")
        if self.bake and self.gate == "probe":
            raise UserError("baked weights act everywhere, without a detector: leave --gate out")
        if self.bake and self.transfer:
            raise UserError("--bake measures its cost on the run's own model: leave --transfer out")

    @property
    def kind(self) -> Weights:
        """Which weights the directory holds."""
        return "baked" if self.bake else "beside" if self.weights else "none"


def export_run(
    run: Path,
    to: Path,
    settings: ExportSettings,
    *,
    model: str | None = None,
    device: str | None = None,
    allow_pickle: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a directory for `interp.load_exported`; it is there whole, or not at all.

    Args:
        model: the base model's spec, in place of the one that the run recorded.
        device: where a baked model's cost is measured.

    Returns:
        the content of ``baked.json`` for baked weights, else an empty dict.

    Raises:
        UserError: a run that was not evaluated, a target that holds something, another model than
            the run's, no detector, or heads that no weights can hold.
    """
    _check_target(to)
    setting = _setting(run, settings.site)
    intervention = _intervention(run, setting, settings)
    check_bakeable(intervention) if settings.bake else _check_attachable(intervention)
    entries = _model_entries(run, model)
    base = None
    if model is not None or settings.kind != "none" or _needs_detector(run, intervention, settings):
        base = resolve(model or recorded_spec(run), allow_pickle=allow_pickle)
        entries = _checked_entries(entries, base, transfer=settings.transfer)
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = beside_of(to)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        cost: dict[str, Any] = {}
        more: dict[str, Any] = {}
        if settings.bake:
            assert base is not None
            more["baked_fingerprint"] = _write_baked(base, entries, intervention, beside)
            cost = _cost(run, entries, intervention, device=device, progress=progress)
            write_json(beside / BAKED, cost)
        else:
            if settings.weights:
                assert base is not None
                _copy_model(base, beside / BASE)
            if intervention.gate != "oracle":
                _detector(run, base, entries).save(beside / DETECTOR_FOLDER)
        intervention.save(beside / INTERVENTION)
        write_json(beside / EVALUATION, setting)
        card = render_card(
            intervention,
            setting,
            model=entries,
            weights=settings.kind,
            baked=cost or None,
            transferred=settings.transfer,
        )
        write_atomically(beside / CARD, card)
        if settings.transfer:
            more["transferred"] = True
        more |= {"gate": intervention.gate, "versions": versions()}
        write_export(beside, {"model": entries, "weights": settings.kind, **more})
        move_into_place(beside, to)
    except OSError as error:
        raise UserError(f"{to} cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return cost


def _check_target(to: Path) -> None:
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} holds something already: choose another --to, or empty it")


def _setting(run: Path, site: SiteToScore) -> Mapping[str, Any]:
    """The setting of the run's evaluation.json: the best, or the first at a site."""
    read_manifest(run)  # raises for a directory that is no run
    check_links(run)
    path = run / EVALUATION
    if not path.is_file():
        raise UserError(f"{run} has no {EVALUATION}: run `interp evaluate` on it first")
    found = [
        setting
        for setting in settings_of(read_evaluation(path))
        if site in ("best", setting.get("site"))
    ]
    if not found:
        raise UserError(
            f"{run} was not evaluated at site {site!r}: run `interp evaluate {run} --site {site}`"
        )
    best = found[0]
    same = [  # the same heads under another gate, for the card
        other
        for other in found[1:]
        if all(other.get(key) == best.get(key) for key in ("site", "mode", "factor", "heads"))
    ]
    return {**best, "alternatives": same}


def _intervention(run: Path, setting: Mapping[str, Any], settings: ExportSettings) -> Intervention:
    """The setting's intervention, whose heads say where they come from."""
    found = of_setting(setting, run)
    gate = "oracle" if settings.bake else settings.gate or found.gate
    parts = []
    for part in found.heads:
        heads = replace(
            part.heads,
            chosen_by=shortened(str(setting.get("chosen_by") or "not noted")),
            origin=origin_of_run(run, part.heads),
        )
        parts.append(part.with_heads(heads))
    return Intervention(tuple(parts), (), gate)


def _check_attachable(intervention: Intervention) -> None:
    if not len(intervention):
        raise UserError("there are no heads to export")
    for part in intervention.heads:
        if part.mode not in ("zero", "scale"):
            raise UserError(
                f"mode {part.mode!r} needs values of other prompts, which an exported directory "
                "does not hold: evaluate the run with --mode zero or scale"
            )


def _model_entries(run: Path, model: str | None) -> dict[str, Any]:
    """The base model in export.json."""
    recorded, manifest = recorded_model(run), read_manifest(run)
    sizes = {name: recorded.get(name) for name in ("n_layers", "n_heads")}
    if not all(isinstance(size, int) for size in sizes.values()):
        raise UserError(f"{run} does not say how many heads its model has: make the run again")
    quantized = recorded.get("quantization")
    spec = model or recorded.get("folder", recorded["spec"])
    return {
        "spec": folder_of(spec) or spec,  # a relative path leads nowhere from another directory
        "fingerprint": recorded["fingerprint"],
        **sizes,
        "dtype": str(manifest.get("dtype", "float32")),
        **({} if quantized is None else {"quantization": quantized}),
    }


def _checked_entries(entries: dict[str, Any], base: Path, *, transfer: bool) -> dict[str, Any]:
    """The entries with the fingerprint of the base model's files.

    Raises:
        UserError: another model than the run's, or a relative whose layers or heads do not fit.
    """
    digest = fingerprint_of_folder(base, cache=cache_root() / "fingerprints")
    found = quantized_fingerprint(digest, entries.get("quantization"))
    if found == entries["fingerprint"]:
        return entries
    if not transfer:
        raise UserError(
            f"{entries['spec']!r} ({found[:12]}…) is not the model that the run was made with "
            f"({entries['fingerprint'][:12]}…): name that one with --model or, for a fine-tuned "
            "relative of it, add --transfer"
        )
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    sizes = (text.num_hidden_layers, text.num_attention_heads)
    if sizes != (entries["n_layers"], entries["n_heads"]):
        raise UserError(
            f"{entries['spec']!r} has {sizes[0]} layers of {sizes[1]} heads, the run's model "
            f"{entries['n_layers']} of {entries['n_heads']}: a relative has the same"
        )
    return {**entries, "fingerprint": found}


def _needs_detector(run: Path, intervention: Intervention, settings: ExportSettings) -> bool:
    """Whether the model is needed to find its detector: the run has none of its own."""
    return not settings.bake and intervention.gate != "oracle" and not has_detector(run)


def _detector(run: Path, base: Path | None, entries: Mapping[str, Any]) -> AnyDetector:
    """The run's detector, or the model's own."""
    if has_detector(run):
        return load_detector(run / DETECTOR_FOLDER)
    assert base is not None
    hf_model, tokenizer = read_folder(
        base,
        spec=entries["spec"],
        dtype=getattr(torch, entries["dtype"]),
        quantization=cast(Any, entries.get("quantization")),
    )
    plain: Any = PlainModel(
        hf_model, tokenizer, Anatomy.of(hf_model), wanted=entries["fingerprint"]
    )
    found = kept_detector(plain)
    if found is None:
        raise UserError(
            f"there is no detector for the model of {run}: run `interp evaluate {run} --gate "
            "probe`, or export with --gate oracle"
        )
    return found


def _copy_model(base: Path, to: Path) -> None:
    """Copy the files of a model; its fingerprint stays."""
    to.mkdir()
    small = [path for path in sorted(base.iterdir()) if path.suffix in _BESIDE_WEIGHTS]
    for path in (*small, *weight_files(base)):
        if path.is_file():
            shutil.copyfile(path, to / path.name)


def _write_baked(
    base: Path, entries: Mapping[str, Any], intervention: Intervention, to: Path
) -> str:
    """Write the checkpoint; returns its fingerprint."""
    if entries.get("quantization") is not None:
        raise UserError(
            "quantized weights cannot be scaled by head: make the run with the model as it is "
            "without --quantization"
        )
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    hf_model, tokenizer = read_folder(base, spec=entries["spec"], dtype=dtype)
    bake_into(hf_model, intervention)
    with quiet_libraries():
        hf_model.save_pretrained(to)
        tokenizer.save_pretrained(to)
    return fingerprint_of_folder(to)


def _cost(
    run: Path,
    entries: Mapping[str, Any],
    intervention: Intervention,
    *,
    device: str | None,
    progress: bool,
) -> dict[str, Any]:
    """What baked weights do to the run's held-out part."""
    model = load_model(entries["spec"], device=device, dtype=entries["dtype"])
    check_same_model(run, model)
    settings, split, _ = load_search(run)
    return bake_cost(model, split.held_out, intervention, seed=settings.seed, progress=progress)
