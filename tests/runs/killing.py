"""Kill a tiny run at many moments, take it up again, compare with an undisturbed one.

``python -m tests.runs.killing --command locate --points 12 --out FILE.json`` (or ``evaluate``, or
``patch``); ``test_locate.py`` does it for a few points. Half of the points are random moments, the
other half stand right before, right after or in the middle of a random call to the system that
changes a file (``open``, ``write``, ``fsync``, ``replace``, ``unlink``, ``mkdir``, ``rmdir``).
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import LocateSettings, load_run, locate_run
from interp.commands.patch import PatchSettings, patch_run
from tests.fixtures import make_planted_model, make_word_tokenizer, planted_relation
from tests.forked import in_child
from tests.runs.conftest import write_pairs
from tests.runs.stopping import Stopping

CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "rmdir")
LOCATED = ("effects.safetensors", "heads.csv", "known.json", "premises.jsonl", "knowledge.csv")
COMPARED = {
    "locate": LOCATED,
    "evaluate": (
        *LOCATED,
        "evaluation.json",
        "settings.csv",
        "null.csv",
        "generations.jsonl",
    ),
    "patch": ("effects.safetensors", "units.csv", "summary.json", "pairs.jsonl"),
}


def write_premises(folder: Path, name: str = "planted", *, first: int = 0) -> Path:
    """The planted model's facts, from a ``first`` one on, and sentences as a user writes them."""
    relation = planted_relation()
    facts = "".join(f"{fact.subject},{fact.object}\n" for fact in relation.facts[first:])
    (folder / f"{name}.csv").write_text(f"subject,object\n{facts}", encoding="utf-8")
    description = {
        "name": name,
        "description": "Made up.",
        "subject_kind": relation.subject_kind,
        "object_kind": relation.object_kind,
        "templates": {one.name: one.text for one in relation.templates},
        "search_templates": list(relation.search_templates),
        "cloze": relation.cloze,
        "direct": relation.direct,
    }
    text = json.dumps(description)  # which is YAML too
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{name}.csv"


def kill_at(boundary: int) -> Callable[[], int]:
    """Let the process die at its so-manieth boundary of a call; returns how many there were."""
    passed = 0

    def reach() -> bool:
        nonlocal passed
        passed += 1
        return passed == boundary

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*arguments, **options)
            if reach():
                die()
            if name == "write" and reach():
                real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                die()
            value = real(*arguments, **options)
            if reach():
                die()
            return value

        setattr(os, name, call)

    for name in CALLS:
        wrap(name)
    return lambda: passed


class Trials:
    """One undisturbed run of a command, and others that are killed."""

    def __init__(self, folder: Path, seed: int = 0, command: str = "locate") -> None:
        self.folder, self.random, self.command = folder, random.Random(seed), command
        self.model = make_planted_model(make_word_tokenizer(planted_relation()))
        premises = str(write_premises(folder))
        self.settings = LocateSettings(
            premises=premises, method="activation", limit=12, minimum=12, shard=4
        )
        self.pairs = str(write_pairs(folder / "pairs.jsonl"))
        if command == "evaluate":
            in_child(lambda: [len(self.locate(folder / "located", None))])
        # Here, so that no child imports and tries for itself what every run needs once.
        getattr(self, command)(self.made("before"), None)
        begin = time.perf_counter()
        (self.calls, self.boundaries), _ = in_child(self.run_in(self.made("undisturbed")))
        self.seconds = time.perf_counter() - begin
        self.files = self.listing(folder / "undisturbed")
        self.hashes = self.hashes_of(folder / "undisturbed")

    def made(self, name: str) -> Path:
        """Where a run of the command begins: nowhere, or where a search has been finished."""
        if self.command == "evaluate":
            shutil.copytree(self.folder / "located", self.folder / name)
        return self.folder / name

    def run_in(self, run: Path, boundary: int = 0) -> Callable[[], tuple[int, int]]:
        """A run, as a function that returns how many shards it made and boundaries it passed."""

        def work() -> tuple[int, int]:
            engine = Stopping(self.model)
            passed = kill_at(boundary)
            getattr(self, self.command)(run, engine)
            return engine.made, passed()

        return work

    def locate(self, run: Path, engine: Any) -> Any:
        """``interp locate``."""
        return locate_run(self.model, self.settings, run, engine=engine, progress=False)

    def evaluate(self, run: Path, engine: Any) -> None:
        """``interp evaluate``, with answers."""
        _, split, effects = load_run(run)
        settings = EvaluateSettings(heads=1.0, counts=(1,), mode="zero")
        evaluate_run(
            self.model, split, effects, settings=settings, run=run, engine=engine, progress=False
        )

    def patch(self, run: Path, engine: Any) -> None:
        """``interp patch``."""
        settings = PatchSettings(pairs=self.pairs, shard=2)
        patch_run(self.model, settings, run, engine=engine, progress=False)

    def listing(self, run: Path) -> list[str]:
        """All files of a run, hidden ones too."""
        return sorted(str(path.relative_to(run)) for path in run.rglob("*"))

    def hashes_of(self, run: Path) -> dict[str, str]:
        """SHA-256 of the files that must be the same."""
        return {
            name: hashlib.sha256((run / name).read_bytes()).hexdigest()
            for name in COMPARED[self.command]
        }

    def trial(self, number: int, *, boundary: int = 0) -> dict[str, Any]:
        """Kill one run, once, take it up again, and say what came of it."""
        run = self.made(f"run{number}")
        after = None if boundary else self.random.uniform(0, self.seconds)
        _, killed = in_child(self.run_in(run, boundary), after=after)
        whole = len(list(run.glob("shards/*/[!.]*.safetensors")))
        # An evaluation keeps its shards when it is finished.
        finished = self.command != "evaluate" and (run / "effects.safetensors").is_file()
        (made, _), _ = in_child(self.run_in(run))
        return {
            "boundary": boundary,
            "after": after,
            "killed": killed,
            "finished_shards": whole,
            "made_again": made - (0 if finished else self.calls - whole),
            "same": self.hashes_of(run) == self.hashes and self.listing(run) == self.files,
        }

    def every(self) -> list[dict[str, Any]]:
        """One trial at each boundary."""
        return [
            self.trial(-boundary, boundary=boundary) for boundary in range(1, self.boundaries + 1)
        ]

    def several(self, points: int) -> list[dict[str, Any]]:
        """Half of the points at boundaries, half at moments."""
        population = range(1, self.boundaries + 1)
        boundaries = self.random.sample(population, min(points // 2, self.boundaries))
        return [
            self.trial(number, boundary=boundary)
            for number, boundary in enumerate([*boundaries, *[0] * (points - len(boundaries))])
        ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--command", choices=tuple(COMPARED), default="locate")
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--every", action="store_true", help="and once at every boundary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), options.seed, options.command)
        content = {
            "boundaries": trials.boundaries,
            "shards": trials.calls,
            "seconds": trials.seconds,
            "trials": trials.several(options.points),
            "every": trials.every() if options.every else [],
        }
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
