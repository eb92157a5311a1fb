"""The manifest of a run: model, versions, seeds and prompts, to check and to repeat it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from interp.errors import UserError
from interp.files.documents import file_hash, read_json, write_json
from interp.files.shape import check_shape
from interp.models import model_info
from interp.models.device_map import describe
from interp.models.hooked_model import HookedModel
from interp.models.placement import input_device
from interp.models.quantization import NAMES
from interp.models.spec import folder_of
from interp.runs.prompting import (
    asking_identity,
    comparable,
    first_difference,
    noted_prompts,
    warn_of_older,
)
from interp.runs.shards import versions


def write_manifest(
    run: Path,
    model: HookedModel | Mapping[str, Any],
    *,
    prompts: str | None = "premises.jsonl",
    identity: str | None = None,
    **more: Any,
) -> Path:
    """Write manifest.json.

    Args:
        model: a hooked model, or a description, such as `describe_hf_model` returns.
        prompts: the file of the run that holds its prompts, for their hash; None if there is none.
        identity: the file of the run's identity, of which the prompts' entries are copied.
        more: further entries, such as the run's settings.
    """
    described = model if isinstance(model, Mapping) else describe_model(model)
    folder = folder_of(described["model"]["spec"])
    content = {
        **described,
        "model": {**described["model"], **({} if folder is None else {"folder": folder})},
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "command": " ".join(["interp", *sys.argv[1:]]),
    }
    if prompts is not None:
        content["prompts_sha256"] = file_hash(run / prompts)
    if identity is not None:
        more |= noted_prompts(read_json(run / identity))
    return write_json(run / "manifest.json", {**content, **more})


def describe_model(model: HookedModel) -> dict[str, Any]:
    """The entries for a hooked model: which one it is, how it runs, how it is prompted."""
    info = {**asdict(model_info(model)), **_anatomy(model.original_model)}
    if info["quantization"] is None:
        del info["quantization"]
    how = {key: info.pop(key) for key in ("dtype", "device", "attn_implementation", "device_map")}
    if how["device_map"] is None:
        del how["device_map"]
    return {"model": info, **how, **asking_identity(model.original_model, model.tokenizer)}


def _anatomy(hf_model: Any) -> dict[str, Any]:
    """Class and number of parameters of a model, and its adapter, as far as it says them."""
    found: dict[str, Any] = {"architecture": hf_model.config.architectures[0]}
    # Counts packed weights in full, and those of an adapter too.
    if (count := getattr(hf_model, "num_parameters", None)) is not None:
        found["parameters"] = int(count())
    adapters = getattr(hf_model, "peft_config", None)
    if isinstance(adapters, Mapping) and len(adapters) == 1:
        (config,) = adapters.values()
        sizes = {key: getattr(config, key, None) for key in ("r", "num_experts", "top_k")}
        found["adapter"] = {
            "type": str(getattr(config.peft_type, "value", config.peft_type)),
            **{key: value for key, value in sizes.items() if isinstance(value, int)},
        }
    return found


def describe_hf_model(
    hf_model: Any, tokenizer: Any, *, spec: str, fingerprint: str
) -> dict[str, Any]:
    """The entries for a transformers model, which does not know its own spec."""
    return {
        "model": {"spec": spec, "fingerprint": fingerprint},
        "dtype": str(hf_model.dtype).removeprefix("torch."),
        "device": str(input_device(hf_model)),
        **({} if (placed := describe(hf_model)) is None else {"device_map": placed}),
        "attn_implementation": str(hf_model.config._attn_implementation),
        **asking_identity(hf_model, tokenizer),
    }


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run. Raises UserError where there is none."""
    path = run / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{run} is not a run: it has no manifest.json; make one with `interp locate`"
        )
    return read_json(path)


def recorded_model(run: Path) -> dict[str, Any]:
    """The model in a run's manifest. Raises UserError if it is missing there."""
    shape = {"model": {"spec": str, "fingerprint": str}}
    return check_shape(read_manifest(run), shape, str(run / "manifest.json"))["model"]


def recorded_quantization(run: Path) -> str | None:
    """The name of the quantization that a run's model was loaded with, if it can be asked for."""
    found = recorded_model(run).get("quantization")
    return found if found in NAMES else None


def recorded_spec(run: Path) -> str:
    """By what to load a run's model: the directory that it was in, else its name.

    Raises UserError where the manifest has no model, or that directory is no longer there.
    """
    model = recorded_model(run)
    folder = model.get("folder")
    if not isinstance(folder, str):
        return model["spec"]
    for path in (folder, os.path.expanduser(model["spec"])):
        if os.path.exists(path):
            return path
    raise UserError(
        f"the model of {run} was in {folder}, where it is no longer: say where it is (--model)"
    )


def check_same_model(run: Path, model: HookedModel) -> None:
    """Raise UserError if a run was made with another model, tokenizer or chat template.

    A run of an older version did not record the last two: a warning says so, and they are not
    compared.
    """
    recorded = recorded_model(run)
    info = model_info(model)
    if recorded.get("fingerprint") != info.fingerprint:
        raise UserError(
            f"{run} was made with the model {recorded.get('spec')!r} "
            f"({str(recorded.get('fingerprint'))[:12]}…), not with {info.spec!r} "
            f"({info.fingerprint[:12]}…): choose another run directory or model"
        )
    check_same_asking(run, asking_identity(model.original_model, model.tokenizer))


def check_same_asking(run: Path, now: Mapping[str, Any]) -> None:
    """Raise UserError if a run's manifest has other values of these entries.

    Args:
        now: entries of a manifest; one that the manifest of an older version lacks gives a warning.
    """
    manifest = read_manifest(run)
    warn_of_older(run, manifest, now)
    if difference := first_difference(manifest, comparable(manifest, now)):
        raise UserError(
            f"{run} was made with other prompts or ends of answers ({difference}): load the model "
            "as it was then, or make the run again in another directory"
        )
