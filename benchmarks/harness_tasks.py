"""Tasks for lm-evaluation-harness from local copies of ARC-Easy and OpenBookQA.

    python benchmarks/harness_tasks.py --data DIR --out FOLDER
    lm_eval --model faithlens … --tasks FOLDER/arc_easy_local.yaml,FOLDER/openbookqa_local.yaml

DIR holds ``ARC-Easy/train.jsonl`` and ``openbookqa/train.jsonl`` as LLM-Adapters has them: one
object a line, whose ``instruction`` lists a question and its answers and whose ``answer`` names the
right one. They are questions in their own words: each answer is scored as a continuation.
"""

import json
import re
from pathlib import Path
from typing import Any

import tyro
import yaml

from interp.errors import UserError
from interp.files.documents import write_jsonl

SETS = {"arc_easy_local": "ARC-Easy", "openbookqa_local": "openbookqa"}
_QUESTION = re.compile(r"question: (.*?)\n\nAnswer1: (.*)\n\nAnswer format:", re.DOTALL)
_NEXT = re.compile(r" Answer\d+: ")


def main(data: Path, out: Path, limit: int | None = None) -> None:
    """Write documents and a YAML file for each set.

    Args:
        data: directory with the two sets.
        out: directory that receives the files; it is made.
        limit: only the first so many questions of each.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in SETS.items():
        lines = (data / folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [document(json.loads(line)) for line in lines[:limit]]
        documents = write_jsonl(out / f"{name}.jsonl", rows)
        target = out / f"{name}.yaml"
        text = yaml.safe_dump(task(name, documents), sort_keys=False)
        target.write_text(text.replace("'!LOAD'", "!function interp.harness.documents.load"))
        print(f"{target}: {len(rows)} questions")


def document(row: dict[str, Any]) -> dict[str, Any]:
    """The question, its answers and the index of the right one. Raises UserError if unreadable."""
    found = _QUESTION.search(row["instruction"])
    if found is None:
        raise UserError(f"no question with answers in {row['instruction'][:80]!r}")
    choices = _NEXT.split(found[2])
    return {
        "question": found[1].strip(),
        "choices": [choice.strip() for choice in choices],
        "answer": int(row["answer"].removeprefix("answer")) - 1,
    }


def task(name: str, documents: Path) -> dict[str, Any]:
    """The YAML of a task."""
    metrics = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True}
        for metric in ("acc", "acc_norm")
    ]
    return {
        "task": name,
        "custom_dataset": "!LOAD",
        "dataset_kwargs": {"file": str(documents.absolute())},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": metrics,
        "metadata": {"version": 1.0},
    }


if __name__ == "__main__":
    tyro.cli(main)
