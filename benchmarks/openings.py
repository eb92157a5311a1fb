"""At how many questions of a task of lm-evaluation-harness the gate opens.

    python benchmarks/openings.py [FILE.jsonl …]

Each file has one object a line with a ``question``; by default the files of the shipped tasks whose
questions are honest or false. Where the gate stays closed, the answers are those without a
constraint.
"""

import json
from pathlib import Path

import tyro

import interp
from interp.harness.documents import tasks_folder
from probes.detector.train import detector_for

SHIPPED = ("capitals", "honest", "false_premises", "neutral_continued")


def main(files: tyro.conf.Positional[tuple[Path, ...]] = (), model: str = "smollm2-135m") -> None:
    """Count the detections in each file, and show them."""
    loaded = interp.load_model(model)
    detector = detector_for(loaded)
    for file in files or [Path(tasks_folder()) / f"{name}.jsonl" for name in SHIPPED]:
        lines = file.read_text(encoding="utf-8").splitlines()
        questions = [json.loads(line)["question"] for line in lines]
        found = detector.detect(loaded, questions, progress=False)
        fired = [question for question, part in zip(questions, found, strict=True) if part.fired]
        print(f"{file.name}: {len(fired)} of {len(questions)}", *fired[:10], sep="\n  ")


if __name__ == "__main__":
    tyro.cli(main)
