"""LoRA, experts, and MoELoRA on real arithmetic and common-sense questions, at equal size.

    python benchmarks/moelora_training.py --tasks DIR --steps 100 --seeds 0 1 2

DIR has one directory for each set, with a file train.jsonl or train.csv (mawps-asdiv-a, ARC-Easy,
openbookqa, boolq, gsm8k; see docs/moelora.md for the formats). A fifth of the questions is held
out. Questions longer than --max-length tokens are dropped, so that two cores are enough. The same
command again goes on where it stopped.

Writes benchmarks/results/moelora_training.json, and the comparison's page into --out.
"""

import platform
import time
from pathlib import Path

import torch
import tyro

from interp.commands.compare import CompareSettings, compare_moelora
from interp.files.documents import write_json
from interp.moelora.training.training import TrainingSettings
from interp.report.comparison_page import summary
from interp.runs.manifest import versions

RESULTS = Path(__file__).parent / "results" / "moelora_training.json"
SETS = ("mawps-asdiv-a", "ARC-Easy", "openbookqa", "boolq")


def main(
    tasks: Path,
    sets: tuple[str, ...] = SETS,
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 100,
    batch: int = 8,
    learning_rate: float = 2e-3,
    load_balance: float = TrainingSettings.load_balance,
    contrastive: float = TrainingSettings.contrastive,
    max_length: int = 128,
    test_limit: int = 100,
    out: Path = Path("runs/moelora-training"),
) -> None:
    """Train and score what is not finished yet, then write the results.

    Args:
        tasks: directory of the data sets.
        sets: which of them.
        seeds: each method is trained once with each.
        steps: optimizer steps of each run.
        batch: examples of each step.
        learning_rate: of every method.
        load_balance: weight of the load-balance loss.
        contrastive: weight of MoELoRA's contrastive loss.
        max_length: longer questions, in tokens, are dropped.
        test_limit: held-out questions of each set.
        out: where the runs are kept.
    """
    begin = time.perf_counter()
    training = TrainingSettings(
        data=tuple(str(tasks / name) for name in sets),
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        load_balance=load_balance,
        contrastive=contrastive,
        max_length=max_length,
        too_long="drop",
        test_limit=test_limit,
        save_every=50,
    )
    content = compare_moelora(CompareSettings(training, seeds=seeds), out)
    content["settings"] = {**content["settings"], "data": list(sets)}
    content["machine"] = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        # Of this call; runs that were finished before are not in it.
        "seconds": round(time.perf_counter() - begin),
    }
    write_json(RESULTS, content)
    for sentence in summary(content):
        print(f"- {sentence}")


if __name__ == "__main__":
    tyro.cli(main)
