"""Whether lm-evaluation-harness is there, and how it gets to know the model type."""

import logging

from interp.errors import UserError

MODEL_TYPE = "faithlens"
_CLASS = "interp.harness.model:FaithlensLM"


def check_installed() -> None:
    """Raise UserError if lm-evaluation-harness is not installed."""
    try:
        import lm_eval  # noqa: F401 (optional: this function checks that it is installed)
    except ImportError as error:
        raise UserError(
            "this needs lm-evaluation-harness: pip install 'faithlens[harness]'"
        ) from error


def quiet() -> None:
    """Let lm-evaluation-harness report errors only."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def register() -> None:
    """Tell lm-evaluation-harness the model type; a second call does nothing.

    Its version 0.4.13 reads no entry points for models, so somebody has to call this: our own
    commands do, and so does `interp.harness.documents` when a task names it.
    """
    check_installed()
    import lm_eval.models  # noqa: F401 (its own types first: it fills an empty registry only)
    from lm_eval.api.registry import model_registry

    if MODEL_TYPE not in model_registry:
        model_registry.register(MODEL_TYPE, target=_CLASS)
