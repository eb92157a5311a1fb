"""What is known to be right of a hooked model, and the refusal of what is not.

The self-check (`interp.models.self_check`) finds it when a model is loaded; whoever needs a part
asks for it with `require`. It is kept on disk: a model is checked once for each state of weights
and libraries.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from interp.errors import UserError
from interp.files.whole import write_whole
from interp.models.hooked_model import HookedModel

Part = Literal["logits", "output", "attention", "residual", "continuation", "padding"]
CHECK_VERSION = 3
"""Raised when the self-check looks at something else."""
_LIBRARIES = ("faithlens", "torch", "transformers", "transformer-lens")


@dataclass(frozen=True)
class ModelCheck:
    """What a self-check found.

    Attributes:
        problems: why a part is refused, by part; a part that is not named is right.
        tuple_outputs: for each block how many values it returns as a tuple; 0 for a bare tensor.
        unhooked_tuple_outputs: the same for the blocks of the transformers model itself.
    """

    problems: Mapping[str, str] = field(default_factory=dict)
    tuple_outputs: tuple[int, ...] = ()
    unhooked_tuple_outputs: tuple[int, ...] = ()

    def has(self, part: Part) -> bool:
        """Whether a part is right."""
        return part not in self.problems


_CHECKS: "weakref.WeakKeyDictionary[Any, ModelCheck]" = weakref.WeakKeyDictionary()
_UNCHECKED = ModelCheck()
_REFUSALS: Mapping[str, str] = {
    "logits": "TransformerLens does not compute {name} as transformers does",
    "output": "the outputs of the heads of {name} cannot be read or written at hook_z",
    "attention": "the attention pattern of {name} cannot be read, cut or patched",
    "residual": "what attention and MLP of {name} add to the residual stream cannot be told apart",
    "continuation": "{name} cannot go on from a cache of keys and values, which beams need",
    "padding": "{name} does not leave padding out: give prompts of one length",
}


def keep_check(model: HookedModel, check: ModelCheck) -> None:
    """Remember what the self-check of a hooked model found."""
    _CHECKS[model] = check


def check_of(model: HookedModel) -> ModelCheck:
    """What the self-check of a hooked model found; nothing against a model without one."""
    return _CHECKS.get(model, _UNCHECKED)


def require(model: HookedModel, part: Part) -> None:
    """Raise UserError, with the reason, if a part of a hooked model failed its self-check."""
    problem = check_of(model).problems.get(part)
    if problem is not None:
        name = type(getattr(model, "original_model", model)).__name__
        raise UserError(
            f"{_REFUSALS[part].format(name=name)} (found when the model was loaded: {problem})"
        )


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
