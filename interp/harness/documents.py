"""Documents of tasks: those that ship, and a user's own files.

A task's YAML names ``interp.harness.documents.load`` as its ``custom_dataset``. Reading such a YAML
imports this module, by which lm-evaluation-harness gets to know the model type ``faithlens``.
"""

from pathlib import Path
from typing import Any

from interp.errors import UserError, errors_in
from interp.files.rows import json_rows
from interp.harness.installed import register
from interp.premises.registry import data_dir

FOLDER = "harness"

register()


def tasks_folder() -> Path:
    """Where the tasks that ship are."""
    return data_dir() / FOLDER


def load(documents: str | None = None, file: str | Path | None = None, **_: Any) -> dict[str, Any]:
    """The documents of a task, as its split ``test``.

    Args:
        documents: the name of a file that ships.
        file: the path of a JSON-lines file, in place of that.
        _: what else lm-evaluation-harness passes on, such as the arguments of the model.

    Raises:
        UserError: no such file, or one that does not hold a JSON object a line.
    """
    from datasets import Dataset  # comes with lm-evaluation-harness

    if file is None:
        if documents is None:
            raise UserError("a task needs documents: name them, or a file")
        file = tasks_folder() / f"{documents}.jsonl"
    with errors_in(file):
        rows = [dict(row) for _, row in json_rows(Path(file), such_as='{"question": …}')]
    return {"test": Dataset.from_list(rows)}


def continuation_results(doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """Log-likelihood of a continuation with its number of words and of bytes."""
    log_likelihood = results[0][0]
    words, size = len(doc["text"].split()), len(doc["text"].encode())
    return {
        "word_perplexity": (log_likelihood, words),
        "byte_perplexity": (log_likelihood, size),
    }
