"""Injects faults into runs and says what survived: ``python benchmarks/faults.py``, as root.

Kills at 200 random points and at every call that changes a file (``tests/runs/killing.py``), a
second process, a disk that fills up and one that becomes read-only (a small tmpfs, which is what
root is needed for), damaged and foreign files, Ray workers that are killed, and the memory of 16
and 1,600 prompts. Writes ``results/faults.json`` and the table of ``docs/survival.md``.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from marked import write_between

from interp.commands.locate import EFFECTS, SHARDS, LocateSettings, load_run, locate_run
from interp.errors import UserError
from interp.files.documents import write_json
from interp.models import load_model
from interp.runs.engines import opened_engine
from interp.runs.lock import holding
from interp.runs.manifest import versions
from interp.runs.shards import InProcess
from tests.fixtures import (
    make_planted_hf_model,
    make_word_tokenizer,
    planted_relation,
)
from tests.runs.killing import LOCATED, write_premises
from tests.runs.stopping import Stopping

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "survival.md"
GROUPS = ("kills", "disk", "damage", "ray", "memory")
Row = dict[str, Any]


class Bench:
    """The tiny model, its facts, and an undisturbed run to compare with."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        torch.set_num_threads(1)
        self.folder, self.random = folder, random.Random(seed)
        tokenizer = make_word_tokenizer(planted_relation())
        make_planted_hf_model(tokenizer).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        self.model = load_model(folder / "model", device="cpu")
        premises = str(write_premises(folder))
        self.settings = LocateSettings(premises=premises, method="activation", shard=2)
        engine = Stopping(self.model)
        self.locate(folder / "undisturbed", engine)
        self.shards, self.hashes = engine.made, self.hashes_of(folder / "undisturbed")

    def locate(self, run: Path, engine: Any = None, settings: Any = None) -> int:
        """Run or take up; returns how many shards were made."""
        engine = engine or Stopping(self.model)
        locate_run(self.model, settings or self.settings, run, engine=engine, progress=False)
        return engine.made

    def hashes_of(self, run: Path) -> dict[str, str]:
        return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in LOCATED}

    def same(self, run: Path) -> bool:
        return self.hashes_of(run) == self.hashes and not (run / "shards").exists()

    def begun(self, name: str, shards: int, settings: Any = None) -> Path:
        """A run that was interrupted with so many finished shards."""
        run = self.folder / name
        with contextlib.suppress(KeyboardInterrupt):
            self.locate(run, Stopping(self.model, shards), settings)
        return run


def row(fault: str, times: int, survived: int, lost: str = "nothing", **more: Any) -> Row:
    return {"fault": fault, "times": times, "survived": survived, "lost": lost, **more}


def kills(points: int) -> list[Row]:
    """Of a search: as many as asked for, and at every call; of other commands, a fifth of it."""
    rows = kills_of("locate", points, every=True)
    for command in ("evaluate", "patch"):
        rows += kills_of(command, max(1, points // 5))
    return rows


def kills_of(command: str, points: int, *, every: bool = False) -> list[Row]:
    """In a process of its own, which may fork."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        words = [sys.executable, "-m", "tests.runs.killing", "--command", command]
        words += ["--points", str(points), *(["--every"] if every else [])]
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
        subprocess.run([*words, "--out", file.name], cwd=ROOT, env=env, check=True)
        found = json.loads(Path(file.name).read_text())
    rows = []
    for name, trials in (
        (f"{command}: `kill -9` at a random moment or call ({found['shards']} shards)",
         found["trials"]),
        (f"{command}: `kill -9` before, after or within each call that changes a file",
         found["every"]),
    ):  # fmt: skip
        if not trials:
            continue
        again = sum(one["made_again"] for one in trials)
        good = sum(one["same"] and not one["made_again"] for one in trials)
        rows.append(
            row(name, len(trials), good, "nothing" if not again else f"{again} shards",
                killed=sum(one["killed"] for one in trials))
        )  # fmt: skip
    return rows


def second_process(bench: Bench, times: int = 20) -> Row:
    """Another process holds the run; then it is killed, and must not be in the way."""
    code = (
        "import sys, time; from pathlib import Path; from interp.runs.lock import holding\n"
        "with holding(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    run, survived = bench.begun("locked", 3), 0
    words = [sys.executable, "-c", code, str(run)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(times):
            try:
                with holding(run):
                    pass
            except UserError as error:
                survived += f"process {process.pid}" in str(error) and "\n" not in str(error)
        process.send_signal(signal.SIGKILL)
        process.wait()
    made = bench.locate(run)
    good = bench.same(run) and made == bench.shards - 3
    return row("a second process on the same run: refused; then its holder killed", times,
               survived if good else 0)  # fmt: skip


@contextlib.contextmanager
def mounted(place: Path, kib: int) -> Iterator[None]:
    place.mkdir()
    options = f"size={kib}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def one_line(bench: Bench, run: Path, said: str) -> bool:
    """Whether the run stops with one line that says this."""
    try:
        bench.locate(run)
    except UserError as error:
        return said in str(error) and "\n" not in str(error)
    return False


def full_disk(bench: Bench) -> Row:
    """Disks of growing sizes, each of which fills up somewhere; then there is room again."""
    times = survived = 0
    for kib in range(4, 200, 4):
        place = bench.folder / f"full{kib}"
        with mounted(place, kib):
            run = place / "run"
            try:
                bench.locate(run)
                continue  # this disk was large enough
            except UserError as error:
                told = "No space left on device" in str(error) and "\n" not in str(error)
            times += 1
            kept = len(list(run.glob(f"{SHARDS}/[!.]*.safetensors")))
            done = (run / EFFECTS).is_file()
            remount(place, "size=8m")
            made = bench.locate(run)
            survived += told and bench.same(run) and made == (0 if done else bench.shards - kept)
    return row("the disk is full (tmpfs of 4 KiB and more); then there is room", times, survived)


def read_only(bench: Bench) -> Row:
    """The disk becomes read-only with some shards there; then it can be written again."""
    times = survived = 0
    for shards in range(bench.shards):
        place = bench.folder / f"ro{shards}"
        with mounted(place, 8192):
            run = place / "run"
            with contextlib.suppress(KeyboardInterrupt):
                bench.locate(run, Stopping(InProcess(bench.model), shards) if shards else None)
            kept = len(list(run.glob(f"{SHARDS}/[!.]*.safetensors")))
            done = (run / EFFECTS).is_file()
            remount(place, "ro")
            told = one_line(bench, run, "Read-only file system")
            remount(place, "rw")
            made = bench.locate(run)
            times += 1
            survived += told and bench.same(run) and made == (0 if done else bench.shards - kept)
    return row("the directory is read-only; then it is not", times, survived)


def damaged_shards(bench: Bench, times: int = 20) -> list[Row]:
    """One shard cut off, altered, exchanged: it alone is made again."""
    rows = []
    other = dataclasses.replace(bench.settings, seed=1)
    strangers = sorted(bench.begun("other", bench.shards - 1, other).glob(f"{SHARDS}/*"))
    for harm, name in (
        ("cut", "a shard is cut off"), ("altered", "one bit of a shard is altered"),
        ("foreign", "a shard of another run lies in its place"),
    ):  # fmt: skip
        survived = 0
        for number in range(times):
            shards = bench.random.randrange(1, bench.shards)
            run = bench.begun(f"{harm}{number}", shards)
            path = bench.random.choice(sorted(run.glob(f"{SHARDS}/*")))
            path.write_bytes(harmed(path.read_bytes(), harm, bench, strangers))
            made = bench.locate(run)
            survived += bench.same(run) and made == bench.shards - shards + 1
        rows.append(row(f"{name}: said, made again", times, survived, "the damaged shard"))
    return rows


def harmed(content: bytes, harm: str, bench: Bench, strangers: list[Path]) -> bytes:
    if harm == "foreign":
        return bench.random.choice(strangers).read_bytes()
    place = bench.random.randrange(len(content))
    if harm == "cut":
        return content[:place]
    altered = bytearray(content)
    altered[place] ^= 1 << bench.random.randrange(8)
    return bytes(altered)


def damaged_effects(bench: Bench, times: int = 20) -> list[Row]:
    """The file of all effects: refused where it is read, made again by the command itself."""
    rows = []
    other = bench.folder / "others_effects"
    bench.locate(other, settings=dataclasses.replace(bench.settings, seed=1))
    for harm, name in (("cut", "is cut off"), ("altered", "has one altered bit"),
                       ("foreign", "is another run's")):  # fmt: skip
        survived = 0
        for number in range(times):
            run = bench.folder / f"effects_{harm}{number}"
            bench.locate(run)
            path = run / EFFECTS
            path.write_bytes(harmed(path.read_bytes(), harm, bench, [other / EFFECTS]))
            try:
                load_run(run)
                refused = False
            except UserError as error:
                refused = "\n" not in str(error)
            survived += refused and bench.locate(run) == bench.shards and bench.same(run)
        rows.append(row(f"`effects.safetensors` {name}: refused, made again", times, survived,
                        "the damaged file"))  # fmt: skip
    return rows


def ray_workers(bench: Bench, times: int = 5) -> list[Row]:
    """Two local workers; then one of them is killed in the middle, at different shards."""
    same = killed = 0
    with opened_engine("ray", bench.model, workers=2) as engine:
        for number in range(times):
            run = bench.folder / f"ray{number}"
            same += bench.locate(run, Stopping(engine)) == bench.shards and bench.same(run)

    def kill(inner: Any) -> None:
        os.kill(inner.processes()[0], signal.SIGKILL)

    for number in range(times):
        with opened_engine("ray", bench.model, workers=2) as engine:
            run = bench.folder / f"ray_killed{number}"
            made = bench.locate(run, Stopping(engine, 1 + 2 * number, kill))
            killed += made == bench.shards and bench.same(run)
    return [
        row("two Ray workers in place of one process: same bytes", times, same),
        row("one of two Ray workers killed in mid-sweep: replaced", times, killed,
            "its unfinished shard"),
    ]  # fmt: skip


def memory() -> list[dict[str, Any]]:
    """16 and 1,600 prompts by either method, each in a process of its own (sweep_memory.py)."""
    script = ROOT / "benchmarks" / "sweep_memory.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = []
    for method, prompts in itertools.product(("attribution", "activation"), (16, 1600)):
        words = [sys.executable, str(script), "--prompts", str(prompts), "--method", method]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return found


def table(result: dict[str, Any]) -> str:
    """The page's table and its sentence on memory."""
    lines = ["| fault | injected | survived | lost |", "|---|---|---|---|"]
    lines += [
        "| {fault} | {times} | {survived} | {lost} |".format(**one) for one in result["faults"]
    ]
    of_sweeps = ["| sweep | 16 prompts | 1,600 prompts | budget of a pass |", "|---|---|---|---|"]
    for few, many in zip(result["memory"][::2], result["memory"][1::2], strict=True):
        of_sweeps.append(
            f"| {many['method']} | {few['mib']:.0f} MiB | {many['mib']:.0f} MiB "
            f"| {many['budget_mib']:.0f} MiB |"
        )
    any_of = result["memory"][-1]
    text = (
        f"Memory above the loaded model, at its peak ({any_of['model']}; {any_of['tokens']} tokens "
        f"a prompt). Shards lie on the disk, but for the {any_of['result_mib']:.1f} MiB of values "
        "that 1,600 prompts' outcome is put together from:"
    )
    versions_of = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join(
        [*lines, "", text, "", *of_sweeps, "", f"{result['seconds']:.0f} s; {versions_of}."]
    )


def measure(group: str, points: int) -> list[Any]:
    """The rows of one group of faults."""
    if group == "kills":
        return kills(points)
    if group == "memory":
        return memory()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        if group == "disk":
            return [second_process(bench), full_disk(bench), read_only(bench)]
        if group == "damage":
            return [*damaged_shards(bench), *damaged_effects(bench)]
        return ray_workers(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=GROUPS)
    options = parser.parse_args()
    if os.geteuid() and "disk" in options.groups:
        raise SystemExit("a small tmpfs is mounted: run this as root, or leave out the group disk")
    logging.getLogger("interp").setLevel(logging.ERROR)  # each fault is said, hundreds of times
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    groups = before.get("groups", {})
    for group in options.groups:
        begin = time.perf_counter()
        rows = measure(group, options.points)
        groups[group] = {"rows": rows, "seconds": time.perf_counter() - begin}
        write_json(RESULTS, {"groups": groups, "versions": versions()})
    faults = [one for name in GROUPS[:-1] if name in groups for one in groups[name]["rows"]]
    for one in faults:
        print(f"{one['survived']:4} of {one['times']:4}  {one['fault']}")
    if set(groups) == set(GROUPS):
        result = {"faults": faults, "memory": groups["memory"]["rows"], "versions": versions()}
        result["seconds"] = sum(one["seconds"] for one in groups.values())
        write_between(PAGE, "faults", table(result))
    if any(one["survived"] < one["times"] for one in faults):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
