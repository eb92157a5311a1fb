"""A MoELoRA adapter of the embedded model, and its heads, as run directories for the atlas.

    interp locate --premises capitals --site attention --limit 60 --out runs/float32
    python benchmarks/atlas_adapter.py --base runs/float32

The adapter is trained for a few steps on the shipped sets, without the rows that name a subject
that the base model's run knows (RUNS/moelora). Its heads are then searched and scored as those of
the base model were (RUNS/adapted); the command line loads no adapters for that.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from adapted_faith import SETS, training_data

from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import load_run, locate_run
from interp.commands.train import train_moelora
from interp.moelora import hooked, load_adapter
from interp.moelora.training.pretrained import load_pretrained
from interp.moelora.training.training import TrainingSettings


@dataclass(frozen=True)
class Options:
    """How long the adapter is trained, and where the runs are."""

    base: Path = Path("runs/float32")
    """The base model's run of `interp locate`, whose settings are used again."""
    runs: Path = Path("runs")
    model: str = "smollm2-135m"
    steps: int = 30
    batch: int = 4
    test_limit: int = 4
    """Held-out questions of each task that the adapter answers after training."""


def main(options: Options) -> None:
    """Train, search and score; what is there already is taken up."""
    settings, split, _ = load_run(options.base)
    subjects = (*split.search.subjects, *split.held_out.subjects)
    data = options.runs / "moelora-data"
    training_data(data, subjects)
    training = TrainingSettings(
        model=options.model,
        data=tuple(str(data / name) for name in SETS),
        steps=options.steps,
        batch=options.batch,
        test_limit=options.test_limit,
    )
    trained = train_moelora(training, options.runs / "moelora")
    pretrained = load_pretrained(options.model)
    adapter = load_adapter(pretrained.model, trained / "adapter").eval()
    model = hooked(adapter, pretrained.tokenizer, spec=f"{options.model} with MoELoRA")
    run = options.runs / "adapted"
    locate_run(model, settings, run)
    _, split, effects = load_run(run)
    evaluate_run(
        model, split, effects, settings=EvaluateSettings(answers="none", counts=(3,)), run=run
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
