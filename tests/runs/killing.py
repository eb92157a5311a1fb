"""Kill a tiny search for heads at many moments, take it up again, compare with an undisturbed one.

``python -m tests.runs.killing --points 12 --out FILE.json``, a process of its own: it forks, which
a process with threads must not. Half of the points are random moments, the other half stand right
before, right after or in the middle of a random call to the system that changes a file (``open``,
``write``, ``fsync``, ``replace``, ``unlink``, ``mkdir``, ``rmdir``).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import interp.runs.locate as locate
from interp.runs.locate import LocateSettings, locate_run
from tests.conftest import make_planted_model, make_word_tokenizer, planted_relation

CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "rmdir")
COMPARED = ("effects.safetensors", "heads.csv", "known.json", "premises.jsonl", "knowledge.csv")


def write_premises(folder: Path) -> Path:
    """The planted model's facts and sentences as a user would write them."""
    relation = planted_relation()
    facts = "".join(f"{fact.subject},{fact.object}\n" for fact in relation.facts)
    (folder / "planted.csv").write_text(f"subject,object\n{facts}", encoding="utf-8")
    description = {
        "name": relation.name, "description": "Made up.", "subject_kind": relation.subject_kind,
        "object_kind": relation.object_kind,
        "templates": {one.name: one.text for one in relation.templates},
        "search_templates": list(relation.search_templates),
        "cloze": relation.cloze, "direct": relation.direct,
    }  # fmt: skip
    text = json.dumps(description)  # which is YAML too
    (folder / "planted.yaml").write_text(text, encoding="utf-8")
    return folder / "planted.csv"


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


def in_child(work: Callable[[], Any], *, after: float | None = None) -> tuple[Any, bool]:
    """What ``work`` returned in a forked process, and whether that was killed instead."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "w") as pipe:
                pipe.write(json.dumps(work()))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    if not killed and os.WEXITSTATUS(status):
        raise SystemExit("a run failed: see above")
    return (None if killed else json.loads(said)), killed


class Trials:
    """One undisturbed run, and others that are killed."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        torch.set_num_threads(1)
        self.folder, self.random = folder, random.Random(seed)
        self.model = make_planted_model(make_word_tokenizer(planted_relation()))
        premises = str(write_premises(folder))
        self.settings = LocateSettings(premises=premises, method="activation", shard=4)
        begin = time.perf_counter()
        (self.calls, self.boundaries), _ = in_child(self.run_in(folder / "undisturbed"))
        self.seconds = time.perf_counter() - begin
        self.files = self.listing(folder / "undisturbed")
        self.hashes = self.hashes_of(folder / "undisturbed")

    def run_in(self, run: Path, boundary: int = 0) -> Callable[[], tuple[int, int]]:
        """A run, as a function that returns how many shards it made and boundaries it passed."""

        def work() -> tuple[int, int]:
            real, made = locate.locate_shard, 0

            def counted(model: Any, job: Any) -> Any:
                nonlocal made
                made += 1
                return real(model, job)

            locate.locate_shard = counted  # type: ignore[assignment]
            passed = kill_at(boundary)
            locate_run(self.model, self.settings, run, progress=False)
            return made, passed()

        return work

    def listing(self, run: Path) -> list[str]:
        """All files of a run, hidden ones too."""
        return sorted(str(path.relative_to(run)) for path in run.rglob("*"))

    def hashes_of(self, run: Path) -> dict[str, str]:
        """SHA-256 of the files that must be the same."""
        return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in COMPARED}

    def trial(self, number: int, *, boundary: int = 0) -> dict[str, Any]:
        """Kill one run, once, take it up again, and say what came of it."""
        run = self.folder / f"run{number}"
        after = None if boundary else self.random.uniform(0, self.seconds)
        _, killed = in_child(self.run_in(run, boundary), after=after)
        whole = len(list(run.glob("shards/locate/[!.]*.safetensors")))
        finished = (run / "effects.safetensors").is_file()
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
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--every", action="store_true", help="and once at every boundary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), options.seed)
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
