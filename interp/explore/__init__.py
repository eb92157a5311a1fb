"""Asking a model questions with and without some of its heads: on a local page, or in a notebook.

``interp explore RUN`` opens the page; `page` gives the same as a Panel object, which Jupyter shows.
`Explorer` is what stands behind both, and needs no Panel. The page is Panel's (the optional extra
``explore``), since Panel brings everything that a browser loads along, so that it works with the
network off.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.explore.answers import Answer, Answers, FoundPremise
from interp.explore.explorer import Explorer
from interp.explore.opening import open_model, open_run
from interp.heads.effects import HeadEffects
from interp.models.hooked_model import HookedModel
from interp.premises.questions import Split
from probes.detector.detections import Detector

__all__ = ["Answer", "Answers", "Explorer", "FoundPremise", "open_model", "open_run", "page"]


def page(
    source: Any,
    *,
    model: HookedModel | None = None,
    effects: HeadEffects | Iterable[HeadEffects] | None = None,
    split: Split | None = None,
    detector: Detector | None = None,
) -> Any:
    """The page as a Panel object; as the last line of a cell it is shown.

    Args:
        source: the directory of a run, a hooked model (then with ``effects``), or an Explorer.
        model: of a run, if it is loaded already.
        effects, split: of a model: of its heads, and the premises they were found on.
        detector: finds the false words of a question; see `open_run` and `open_model`.

    Raises:
        UserError: no such run, a model without effects, or Panel is not installed.
    """
    check_installed()
    if isinstance(source, str | Path):
        explorer = open_run(source, model=model, detector=detector)
    elif isinstance(source, Explorer):
        explorer = source
    elif effects is None:
        raise UserError(
            "a model is explored with the effects of its heads: page(model, effects=effects); or "
            "give the directory of a run"
        )
    else:
        explorer = open_model(source, effects, split=split, detector=detector)
    from interp.explore.view import View

    return View(explorer).layout


def check_installed() -> None:
    """Raise UserError if Panel is not installed."""
    try:
        import panel  # noqa: F401
    except ImportError as error:
        raise UserError("exploring needs Panel: pip install 'faithlens[explore]'") from error
