"""Task sets: where they come from, and which of their examples a run trains and tests on.

Two subjects that differ only in case, white space or composed accents are one
(`interp.files.cells.name_key`).

A source is the name of a shipped set (`list_tasks`), a JSONL, CSV or Parquet file, a directory with
one file for each split, or a hub data set ``owner/name``, with ``@revision`` and ``:subset`` behind
it if need be. Files are read by `interp.moelora.data.reading`.

What is chosen depends on the sources and the limits alone, never on the seed, so that runs over
several seeds and methods see the same questions.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from interp.errors import UserError
from interp.files.cells import name_key
from interp.files.row_files import SUFFIXES
from interp.moelora.data.encoding import (
    EncodedExample,
    TooLong,
    encode_example,
    encode_examples,
    end_token,
)
from interp.moelora.data.examples import Example
from interp.moelora.data.formats import ColumnMapping
from interp.moelora.data.reading import read_examples
from interp.premises.registry import data_dir

Split = Literal["train", "test"]

HELD_OUT_SHARE = 0.2
VALIDATION_SHARE = 0.1
_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<subset>[\w.-]+))?", re.ASCII
)


@dataclass(frozen=True)
class TaskSplit:
    """Examples to train on and examples to test on; they share no subject."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]


def list_tasks() -> tuple[str, ...]:
    """The names of the task sets that ship with the package, sorted."""
    return tuple(sorted(path.parent.name for path in (data_dir() / "tasks").glob("*/train.jsonl")))


def load_split(
    source: str | Path, *, columns: ColumnMapping | None = None, held_out: float = HELD_OUT_SHARE
) -> TaskSplit:
    """Training and test examples of a source.

    A source without a test file of its own has a share `held_out` of its subjects set apart, chosen
    by a hash of the subject alone: the same ones for every seed and every run. A test example whose
    subject is trained on is dropped. Raises `UserError` for every fault.
    """
    train = load_examples(source, split="train", columns=columns)
    if _file_of(source, "test") is None:
        train, test = _set_apart(train, held_out)
    else:
        seen = _subjects(train)
        read = load_examples(source, split="test", columns=columns)
        test = tuple(example for example in read if name_key(example.subject) not in seen)
    if not train or not test:
        purpose = "test on" if train else "train on"
        raise UserError(f"{source}: no examples are left to {purpose}; give more data")
    return TaskSplit(train, test)


def load_validation_split(
    source: str | Path,
    *,
    columns: ColumnMapping | None = None,
    held_out: float = HELD_OUT_SHARE,
    share: float = VALIDATION_SHARE,
) -> TaskSplit:
    """The training examples of a source, a share of whose subjects is set apart for validation.

    The test examples of `load_split` are in neither part, so that what is chosen here can be scored
    there. The subjects are chosen by a hash, as there. Raises `UserError` for every fault.
    """
    train = load_split(source, columns=columns, held_out=held_out).train
    # Another hash than that of the held-out subjects, whose lowest values are taken already.
    fit, test = _set_apart(train, share, salt="validation ")
    if not fit or not test:
        raise UserError(f"{source}: too few training examples to set some apart for validation")
    return TaskSplit(fit, test)


def _subjects(examples: Sequence[Example]) -> set[str]:
    return {name_key(example.subject) for example in examples}


def _set_apart(
    examples: Sequence[Example], share: float, *, salt: str = ""
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The examples that stay, and those of a share of the subjects, chosen by a hash."""
    spelling: dict[str, str] = {}  # the first in the alphabet, whatever the order of the rows
    for subject in sorted(example.subject for example in examples):
        spelling.setdefault(name_key(subject), subject)
    apart = {key for key, subject in spelling.items() if _share(f"{salt}{subject}") < share}
    stay = tuple(example for example in examples if name_key(example.subject) not in apart)
    return stay, tuple(example for example in examples if name_key(example.subject) in apart)


def load_examples(
    source: str | Path, *, split: Split = "train", columns: ColumnMapping | None = None
) -> tuple[Example, ...]:
    """The examples of one split of a source. Raises `UserError` for every fault."""
    path = _file_of(source, split)
    if path is None:
        raise UserError(f"{source}: has no {split} split")
    return read_examples(path, columns=columns, task=_task_name(source, path))


def _file_of(source: str | Path, split: Split) -> Path | None:
    """The file of a split; None where there is no test file. Raises for an unknown source."""
    text = str(source).strip()
    path = Path(os.path.expanduser(text))
    if text in list_tasks():
        return data_dir() / "tasks" / text / f"{split}.jsonl"
    if text and os.path.isdir(path):
        files = [path / f"{split}{suffix}" for suffix in SUFFIXES]
        found = next((file for file in files if file.is_file()), None)
        if found is None and split == "train":
            raise UserError(f"{path}: a directory of data needs a file train.jsonl or train.csv")
        return found
    if os.path.isfile(path):
        return path if split == "train" else None
    match = _HUB_ID.fullmatch(text)
    if match and path.suffix.lower() not in SUFFIXES:
        return _from_hub(match, split)
    raise UserError(
        f"no data at {text!r}: give a set that ships ({', '.join(list_tasks())}), a file "
        f"({', '.join(SUFFIXES)}), a directory, or a hub data set owner/name"
    )


def _from_hub(match: re.Match[str], split: Split) -> Path | None:
    """The split's one file in a hub data set, downloaded."""
    repo, revision, subset = match["repo"], match["revision"], match["subset"]
    try:
        names = huggingface_hub.list_repo_files(repo, revision=revision, repo_type="dataset")
        found = sorted(name for name in names if _is_split(name, split, subset))
        if not found and split == "test":
            return None
        if len(found) != 1:
            listed = ", ".join(found[:4]) or ", ".join(sorted(names)[:8])
            raise UserError(
                f"the hub data set {repo!r} has {len(found)} files for split {split!r} "
                f"({listed}); name a subset as {repo}:SUBSET, or download a file and give its path"
            )
        return Path(
            huggingface_hub.hf_hub_download(repo, found[0], revision=revision, repo_type="dataset")
        )
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no data set {repo!r}: check its name") from error
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot get the data set {repo!r} from the hub ({type(error).__name__}): check the "
            "name and the connection, or give a local file"
        ) from error


def _is_split(name: str, split: Split, subset: str | None) -> bool:
    """Whether a repository's file holds the split: ``main/train-00000-of-00001.parquet``."""
    path = PurePosixPath(name)
    if path.suffix.lower() not in SUFFIXES or (subset and subset not in path.parts[:-1]):
        return False
    return re.split(r"[-_.]", path.stem)[0] == split


def _task_name(source: str | Path, path: Path) -> str:
    """What a source's examples are called: the set, not the split."""
    text = str(source).strip()
    if not os.path.exists(os.path.expanduser(text)):
        return text.split("@")[0].split(":")[0].rpartition("/")[2]
    return path.parent.name if path.stem in ("train", "test") else path.stem


def _share(subject: str) -> float:
    """A subject's place in [0, 1), the same in every process."""
    return int.from_bytes(_digest(subject)[:8], "big") / 2**64


SPARE_TOKENS = 8
"""How much longer than the longest right response an answer may get."""


@dataclass(frozen=True)
class TaskData:
    """Training and test examples as text and as tokens.

    Attributes:
        train: encoded training examples.
        test: the test examples.
        encoded_test: the same with their right responses, encoded.
        max_new_tokens: how long an answer may get.
        sha256: of all examples, to tell whether a run's data are still the same.
    """

    train: tuple[EncodedExample, ...]
    test: tuple[Example, ...]
    encoded_test: tuple[EncodedExample, ...]
    max_new_tokens: int
    sha256: str


def load_task_data(
    tokenizer: Any,
    sources: Sequence[str],
    *,
    max_length: int,
    columns: str = "",
    held_out: float = HELD_OUT_SHARE,
    limit: int | None = None,
    test_limit: int | None = None,
    too_long: TooLong = "error",
) -> TaskData:
    """Read, draw and encode the examples of all sources.

    `limit` is a number of training examples per source, `test_limit` one of test examples per task.
    A subject that one source trains on is not tested in another. Raises `UserError` for every fault
    in the data, and for an example longer than `max_length` unless `too_long` is "drop".
    """
    mapping = ColumnMapping.parse(columns) if columns else None
    train: list[Example] = []
    test: list[Example] = []
    for source in sources:
        split = load_split(source, columns=mapping, held_out=held_out)
        train += draw(split.train, limit)
        test += split.test
    seen = _subjects(train)
    by_task: dict[str, list[Example]] = defaultdict(list)
    for example in test:
        if name_key(example.subject) not in seen:
            by_task[example.task].append(example)
    drawn = [example for some in by_task.values() for example in draw(some, test_limit)]
    if not drawn:
        raise UserError("every subject that is tested is also trained on: give other test data")
    end = end_token(tokenizer)
    pairs = [(example, encode_example(tokenizer, example, end=end)) for example in drawn]
    kept = [(example, code) for example, code in pairs if len(code.tokens) <= max_length]
    if len(kept) < len(pairs) and (too_long == "error" or not kept):
        encode_examples(tokenizer, drawn, max_length=max_length)  # says which
    text = json.dumps([asdict(example) for example in (*train, *drawn)], sort_keys=True)
    longest = max(len(code.tokens) - code.n_prompt for _, code in kept)
    return TaskData(
        train=encode_examples(tokenizer, train, max_length=max_length, too_long=too_long),
        test=tuple(example for example, _ in kept),
        encoded_test=tuple(code for _, code in kept),
        max_new_tokens=longest + SPARE_TOKENS,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def draw(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """`limit` of the examples, chosen by a hash of their prompts, in their order."""
    if limit is None or limit >= len(examples):
        return list(examples)
    order = sorted(range(len(examples)), key=lambda index: _digest(examples[index].prompt))
    return [examples[index] for index in sorted(order[:limit])]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
