"""Models: from what a user names to a hooked model with its tokenizer, chat format and fingerprint.

A *spec* names a model: ``"smollm2-135m"`` (the embedded one), a hub id, a local directory or a
``.gguf`` file. `resolve` turns it into a directory on disk, `load_model` into a TransformerLens
model, `render_chat` puts a question into the words the model was trained to be asked in.
"""

from typing import TYPE_CHECKING, Any

from interp.models.chat import RenderedChat, render_chat
from interp.models.fingerprint import fingerprint_of_folder, fingerprint_of_model
from interp.models.load import ModelInfo, fingerprint, from_hf, load_model, loader_of, model_info
from interp.models.spec import EMBEDDED, cache_root, resolve
from interp.models.versions import hooked_class

if TYPE_CHECKING:
    from interp.models.hooked_model import HookedModel

__all__ = [
    "EMBEDDED",
    "HookedModel",
    "ModelInfo",
    "RenderedChat",
    "cache_root",
    "fingerprint",
    "fingerprint_of_folder",
    "fingerprint_of_model",
    "from_hf",
    "load_model",
    "loader_of",
    "model_info",
    "render_chat",
    "resolve",
]


def __getattr__(name: str) -> Any:
    """``HookedModel``, as a class of which isinstance can be asked, imports TransformerLens."""
    if name == "HookedModel":
        return hooked_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
