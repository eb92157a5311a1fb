"""What a run was: model, versions, seeds and prompts, so that it can be checked and repeated."""

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from interp.errors import UserError
from interp.models import model_info
from interp.runs.store import file_hash, read_json, write_json

PACKAGES = ("faithlens", "torch", "transformer-lens", "transformers", "numpy", "scipy", "pandas")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_manifest(run: Path, model: Any, **more: Any) -> Path:
    """Write manifest.json; ``more`` is added as it is."""
    info = model_info(model)
    content = {
        "model": {
            "spec": info.spec,
            "fingerprint": info.fingerprint,
            "n_layers": info.n_layers,
            "n_heads": info.n_heads,
            "n_kv_heads": info.n_kv_heads,
            "d_head": info.d_head,
        },
        "dtype": info.dtype,
        "device": info.device,
        "attn_implementation": info.attn_implementation,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "command": " ".join(["interp", *sys.argv[1:]]),
        "prompts_sha256": file_hash(run / "premises.jsonl"),
        **more,
    }
    return write_json(run / "manifest.json", content)


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run. Raises UserError where there is none."""
    path = run / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{run} is not a run: it has no manifest.json; make one with `interp locate`"
        )
    return read_json(path)


def check_same_model(run: Path, model: Any) -> None:
    """Raise if a run directory was made with another model than this one."""
    recorded = read_manifest(run).get("model", {})
    info = model_info(model)
    if recorded.get("fingerprint") != info.fingerprint:
        raise UserError(
            f"{run} was made with the model {recorded.get('spec')!r} "
            f"({str(recorded.get('fingerprint'))[:12]}…), not with {info.spec!r} "
            f"({info.fingerprint[:12]}…): choose another run directory or model"
        )
