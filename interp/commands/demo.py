"""``interp demo``: the whole way on the embedded model, at a size that takes a few minutes.

Premises, knowledge filter, search by attribution at both sites, a check of the ranking by exact
path patching on some prompts, the constraint scored on held-out subjects and templates, a report.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import (
    DEFAULT_FRACTION,
    IDENTITY,
    LocateSettings,
    load_run,
    locate_run,
)
from interp.evaluation.evaluate import Evaluation
from interp.files.documents import read_json, write_json
from interp.heads.effects import agreement
from interp.heads.locate import as_encoded, locate_heads
from interp.models.hooked_model import HookedModel
from interp.premises.questions import Split
from interp.runs.clock import one_moment
from interp.runs.lock import one_process

logger = logging.getLogger(__name__)

TOP_K = 10


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demo: how many facts are tried, and how many prompts path patching checks."""

    premises: str = "capitals"
    """A relation that ships (see `interp premises ls`), or a CSV or YAML file."""
    limit: int = 90
    """How many facts are tried, best known first."""
    heads: float = DEFAULT_FRACTION
    """A fraction of all heads (below 1), or a count."""
    path_prompts: int = 4
    """On how many search prompts exact path patching checks the ranking; 0 for none."""
    seed: int = 0
    """Draws false objects, splits, random head sets and resamples."""

    def __post_init__(self) -> None:
        _ = self.evaluation  # which refuses a number of heads that is none

    @property
    def search(self) -> LocateSettings:
        """How heads are searched for."""
        return LocateSettings(premises=self.premises, limit=self.limit, seed=self.seed)

    @property
    def evaluation(self) -> EvaluateSettings:
        """How they are scored."""
        return EvaluateSettings(heads=self.heads, seed=self.seed, counts=(3, 8))


@one_process
@one_moment(IDENTITY)
def demo_run(
    model: HookedModel, settings: DemoSettings, run: Path, *, progress: bool = True
) -> list[Evaluation]:
    """Run the demo into ``run``; what an earlier call finished is taken from there."""
    effects = locate_run(model, settings.search, run, progress=progress)
    _, split, _ = load_run(run)
    if settings.path_prompts:
        check_by_path(model, split, settings.path_prompts, run, progress)
    return evaluate_run(model, split, effects, settings.evaluation, run, progress=progress)


def check_by_path(
    model: HookedModel,
    split: Split,
    n_prompts: int,
    run: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Exact path patching of every head against its first-order estimate, on some search prompts.

    Both take values from the masked run. The prompts are spread evenly over the search part.
    Writes agreement.json.
    """
    path = run / "agreement.json"
    encoded = as_encoded(model, split.search)
    step = max(1, len(encoded) // n_prompts)
    # An odd step walks through the templates too.
    step += 1 - step % 2
    prompts = encoded.take(list(range(0, len(encoded), step))[:n_prompts])
    if path.is_file() and read_json(path).get("n_prompts") == len(prompts):
        return read_json(path)
    estimate = locate_heads(model, prompts, source="masked", progress=progress)
    exact = locate_heads(model, prompts, method="path", progress=progress)
    found = agreement(estimate, exact, top_k=TOP_K)
    n_heads = estimate.values.shape[2]
    x, y = estimate.mean.flatten().tolist(), exact.mean.flatten().tolist()
    content = {
        **found,
        "x": "attribution",
        "y": "path",
        "n_prompts": len(prompts),
        "points": [[i // n_heads, i % n_heads, x[i], y[i]] for i in range(len(x))],
    }
    write_json(path, content)
    return content
