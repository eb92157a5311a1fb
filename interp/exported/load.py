"""``load_exported``: an exported directory becomes a transformers model with its constraint.

TransformerLens is not imported.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from interp.arguments import check_choice
from interp.attached import Attached, attach
from interp.checked import checked
from interp.errors import UserError
from interp.exported.folder import ExportedFolder, read_export
from interp.exported.hub import from_hub, names_repository
from interp.forward.batch import Span
from interp.interventions.gate import Gate
from interp.interventions.object_positions import ObjectPositions
from interp.models.device_map import choose_device
from interp.models.fingerprint import fingerprint_of_folder
from interp.models.folder import read_folder
from interp.models.quantization import quantized_fingerprint
from interp.models.spec import cache_root, resolve
from probes.detector.detections import Detector
from probes.detector.support_detector import load_detector

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@checked
def load_exported(
    folder: str | Path,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    gate: Gate | None = None,
    detector: Detector | None = None,
    false_object: str | Sequence[str | None] | None = None,
    at: Sequence[Span | None] | Tensor | ObjectPositions | None = None,
    transfer: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any]:
    """A transformers model, ready to use, and its tokenizer: ``model, tokenizer = ...``.

    ``model.attached`` is the handle of the constraint, see `interp.attach`:
    ``model.attached.detach()`` takes it off the model. It is None where the weights hold it.

    Args:
        folder: a directory of ``interp export``, or the name of one on the hub (`from_hub`).
        model: the base model, in place of the one in the directory, or that it names: a spec as
            `interp.load_model` takes it, such as a directory. It must be the same weights.
        device: by default a GPU if there is one.
        dtype: by default that of the run.
        gate, detector, false_object, at: who finds the false object, and where it is, as
            `interp.attach` takes them; by default the directory's own gate and detector.
        transfer: ``model`` is a fine-tuned relative: its layers and heads must fit.
        allow_pickle: as of `interp.load_model`.

    Raises:
        UserError: no such directory, one that was changed or is not whole, another base model, or
            no way to find the false object.
    """
    place = Path(folder)
    if not place.is_dir() and names_repository(str(folder)):
        place = from_hub(str(folder))
        if place.is_file():
            raise UserError(
                f"{folder} holds heads and no model: give interp.from_hub({str(folder)!r}) to "
                "interp.attach"
            )
    exported = read_export(place)
    of_dtype = _DTYPES[check_choice("dtype", dtype or exported.model["dtype"], _DTYPES)]
    told: dict[str, Any] = {"gate": gate, "detector": detector}
    told |= {"false_object": false_object, "at": at}
    if exported.is_baked:
        _check_baked(exported, model, told)
        base = exported.folder
    else:
        base = _base_of(exported, model, allow_pickle=allow_pickle)
    with ThreadPoolExecutor(1) as beside:  # hashing frees the GIL; the answer is kept
        hashed = beside.submit(fingerprint_of_folder, base, cache=cache_root() / "fingerprints")
        hf_model, tokenizer = read_folder(
            base,
            spec=str(model or base),
            dtype=of_dtype,
            device=choose_device(device),
            quantization=cast(
                Any, None if exported.is_baked else exported.model.get("quantization")
            ),
        )
        found = quantized_fingerprint(hashed.result(), exported.model.get("quantization"))
    hf_model.eval().requires_grad_(False)
    if exported.is_baked:
        if found != exported.content.get("baked_fingerprint"):
            raise UserError(f"the weights in {place} were changed after the export: take them anew")
        hf_model.attached = None
        return hf_model, tokenizer
    if exported.is_transferred and not transfer:
        _check_same(exported, found, spec=str(model or base))
        transfer = True  # to this relative, as it was exported
    # Kept with the model: what is attached ends with its handle.
    hf_model.attached = _attached(exported, hf_model, tokenizer, transfer=transfer, told=told)
    return hf_model, tokenizer


def _attached(
    exported: ExportedFolder,
    hf_model: Any,
    tokenizer: Any,
    *,
    transfer: bool,
    told: dict[str, Any],
) -> Attached:
    intervention = exported.intervention
    has_words = told["false_object"] is not None or told["at"] is not None
    gate = told["gate"] or (None if has_words else intervention.gate)
    if gate == "oracle" and not has_words:
        raise UserError(
            f"{exported.folder} has no detector that finds false words: say where they are "
            "(false_object= or at=), or take gate='probe' with a detector"
        )
    if gate not in (None, "oracle") and told["detector"] is None and exported.detector is not None:
        told = {**told, "detector": load_detector(exported.detector)}
    return attach(hf_model, tokenizer, intervention, transfer=transfer, **told)


def _base_of(exported: ExportedFolder, model: str | Path | None, *, allow_pickle: bool) -> Path:
    """The directory of the base model."""
    spec = model or exported.base or exported.model["spec"]
    try:
        return resolve(spec, allow_pickle=allow_pickle)
    except UserError as error:
        if model is not None or exported.base is not None:
            raise
        raise UserError(
            f"the base model {spec!r} of {exported.folder} is not found ({error}): say where it "
            "is (model=)"
        ) from error


def _check_same(exported: ExportedFolder, found: str, *, spec: str) -> None:
    """Raise UserError for another base model than the one that was named in the export."""
    wanted = exported.model["fingerprint"]
    if found != wanted:
        raise UserError(
            f"{exported.folder} was exported for the model {exported.model['spec']!r} "
            f"({wanted[:12]}…), not for {spec!r} ({found[:12]}…): load that model or, for a "
            "fine-tuned relative of it, say so (transfer=True)"
        )


def _check_baked(exported: ExportedFolder, model: str | Path | None, told: dict[str, Any]) -> None:
    given = [name for name, value in {"model": model, **told}.items() if value is not None]
    if given:
        raise UserError(
            f"the intervention in {exported.folder} is in its weights, and acts everywhere: leave "
            f"{given[0]}= out"
        )
