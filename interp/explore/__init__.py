"""Ask a model questions with and without some of its heads: on a local page, or in a notebook.

``interp explore RUN`` opens the page; `page` returns it as a Panel object, which Jupyter shows.
Both use `Explorer`, which does not need Panel. Panel (the optional extra ``explore``) ships all
files that a browser loads, so that the page works offline.
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
from interp.premises.joint import AnySplit
from probes.detector.detections import Detector

__all__ = ["Answer", "Answers", "Explorer", "FoundPremise", "open_model", "open_run", "page"]


def page(
    source: Any,
    *,
    model: HookedModel | None = None,
    effects: HeadEffects | Iterable[HeadEffects] | None = None,
    split: AnySplit | None = None,
    detector: Detector | None = None,
) -> Any:
    """The page as a Panel object, which a notebook shows.

    Args:
        source: the directory of a run, a hooked model (then with ``effects``), or an Explorer.
        model: the run's model, if it is already loaded.
        effects, split: for a model, the effects of its heads and the premises they were found on.
        detector: finds the false words of a question; see `open_run` and `open_model`.

    Raises:
        UserError: the run does not exist, a model is given without effects, or Panel is not
            installed.
    """
    check_installed()
    if isinstance(source, str | Path):
        explorer = open_run(source, model=model, detector=detector)
    elif isinstance(source, Explorer):
        explorer = source
    elif effects is None:
        raise UserError(
            "effects is missing: call page(model, effects=effects), or give the directory of a run"
        )
    else:
        explorer = open_model(source, effects, split=split, detector=detector)
    # Panel is an optional package, imported only by this function.
    from interp.explore.view import View

    return View(explorer).layout


def check_installed() -> None:
    """Raise UserError if Panel is not installed."""
    try:
        import panel  # noqa: F401 (optional: this function checks that it is installed)
    except ImportError as error:
        raise UserError("exploring needs Panel: pip install 'faithlens[explore]'") from error
