"""Self-checks kept on disk: a model is checked once for each state of weights and libraries."""

import contextlib
import hashlib
import importlib.metadata
import json
from pathlib import Path

from interp.errors import UserError
from interp.files.whole import write_whole
from interp.models.model_check import ModelCheck

CHECK_VERSION = 3
"""Raised when the self-check looks at something else."""
_LIBRARIES = ("faithlens", "torch", "transformers", "transformer-lens")


def check_path(root: Path, *, fingerprint: str, dtype: str, device: str) -> Path:
    """Where the self-check of such a model is kept, with these versions of the libraries."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES]
    key = "\n".join([fingerprint, dtype, device, str(CHECK_VERSION), *versions])
    return root / "checks" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def read_check(path: Path) -> ModelCheck | None:
    """The self-check kept in a file; None if there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        problems = {str(part): str(problem) for part, problem in content["problems"].items()}
        hooked, unhooked = (tuple(map(int, content[name])) for name in ("hooked", "unhooked"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return ModelCheck(problems, hooked, unhooked)


def write_check(path: Path, check: ModelCheck) -> None:
    """Keep a self-check; not being able to only costs time."""
    content = {
        "problems": dict(check.problems),
        "hooked": list(check.tuple_outputs),
        "unhooked": list(check.unhooked_tuple_outputs),
    }
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content).encode())
