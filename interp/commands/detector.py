"""The detector of a run: it saw the run's search part and nothing that is scored or shown later."""

from pathlib import Path

from interp.models.hooked_model import HookedModel
from interp.premises.questions import Split
from interp.runs.clock import run_clock
from probes.detector.detections import Detector
from probes.detector.detector import PremiseDetector
from probes.detector.train import train_detector

FOLDER = "detector"
"""Where in a run directory the detector lies."""
SEARCH = "search.json"
"""The file of a run that says at which moment its prompts are rendered."""
LAST_WRITTEN = "detector.json"
"""The file of a saved detector without which it is not whole."""


def has_detector(run: Path) -> bool:
    """Whether a run holds a detector already."""
    return (run / FOLDER / LAST_WRITTEN).is_file()


def run_detector(
    model: HookedModel, split: Split, run: Path, *, seed: int = 0, progress: bool = True
) -> Detector:
    """The run's own detector: read from the run or, the first time, trained and left there.

    The model's general detector would not do: it may have been trained on what is held out here.
    Raises UserError for a damaged detector, or one of another model, tokenizer or chat template.
    """
    folder = run / FOLDER
    if has_detector(run):
        return PremiseDetector.load(folder, model=model)
    with run_clock(run, SEARCH):
        detector = train_detector(model, [split.search], known=False, seed=seed, progress=progress)
    detector.save(folder)
    return detector
