"""Where the seconds of ``interp locate`` go beside its sweeps, by phase: a table and a JSON file.

    python benchmarks/startup.py [--method attribution] [--limit 48] [--device cpu] [--cold]
                                 [--evaluate] [--out benchmarks/results/startup.json]

A new process runs the command line on the embedded model. Each function in ``PHASES`` has a clock;
what it calls in another phase counts there only, and what no phase has is "everything else".
Processor seconds are those of all threads of the process. On a GPU, a phase waits for the device.

``--cold`` forgets the model's fingerprint and self-check, as at the first time; ``--evaluate`` adds
the phases of ``interp evaluate``. The commands ``interp --help``, ``interp locate --help``,
``interp premises ls``, ``interp doctor`` and ``interp report`` are timed as they are.
``--before FILE`` keeps an earlier state's figures beside the new ones, and ``--page`` writes both
into docs/how-to/gpu.md.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from marked import write_between

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "gpu.md"
IMPORTS: dict[str, tuple[str, ...]] = {
    "import torch": ("torch",),
    "import interp": ("interp.cli.options", "interp.cli.commands"),
    "import transformers' models": ("transformers.modeling_utils",),
    "import TransformerLens": ("transformer_lens.model_bridge",),
}
"""In this order; what was imported before counts there."""
PHASES: dict[str, tuple[str, ...]] = {
    "find or convert the weights": ("interp.models.load:resolve",),
    "fingerprint of the weights": (
        "interp.models.load:fingerprint_of_folder",
        "interp.models.converted:fingerprint_of_folder",
    ),
    "read the tokenizer": ("interp.models.folder:read_tokenizer",),
    "read the weights": ("interp.models.load:read_folder",),
    "build the hooked model": ("interp.models.load:wrap",),
    "self-check": ("interp.models.load:trial_logits", "interp.models.load:check_model"),
    "render and hash the prompts": (
        "interp.commands.known:prompts_identity",
        "interp.commands.known:premise_rows",
        "interp.commands.locate:check_same_prompts",
        "interp.commands.locate:premise_rows",
        "interp.commands.locate:as_encoded",
    ),
    "ask for the facts": ("interp.commands.known:check_knowledge",),
    "sweeps": ("interp.runs.shards:InProcess.run",),
    "statistics": ("interp.heads.effects:effect_statistics",),
    "intervals": ("interp.statistics.significance:mean_interval",),
    "write the manifest": ("interp.commands.locate:write_manifest",),
}
COMMANDS = {
    "interp --help": ("--help",),
    "interp locate --help": ("locate", "--help"),
    "interp premises ls": ("premises", "ls"),
    "interp doctor": ("doctor",),
}
REST = "everything else"
SHOWN = 0.05
"""Phases of fewer seconds are not on the page."""


class Clock:
    """Processor and wall seconds by phase, each without the phases inside it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.inside = [REST]
        self.last = self._now()

    def _now(self) -> tuple[float, float]:
        if "torch" in sys.modules and self.device.startswith("cuda"):
            torch = sys.modules["torch"]
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()

    def note(self) -> None:
        """Give the time since the last call to the innermost phase."""
        now = self._now()
        for index in range(2):
            self.seconds[self.inside[-1]][index] += now[index] - self.last[index]
        self.last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.note()
        self.inside.append(name)
        try:
            yield
        finally:
            self.note()
            self.inside.pop()

    def clocked(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function with a clock; of a generator, each of its steps."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                value = function(*args, **kwargs)
            return self._steps(value, name) if isinstance(value, Iterator) else value

        return call

    def _steps(self, values: Iterator[Any], name: str) -> Iterator[Any]:
        while True:
            with self.phase(name):
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value


def measure(command: list[str], device: str) -> dict[str, list[float]]:
    """Run a command line in this process, and give each phase's seconds."""
    clock = Clock(device)
    for name, modules in IMPORTS.items():
        with clock.phase(name):
            for module in modules:
                importlib.import_module(module)
    for name, places in PHASES.items():
        for place in places:
            module, _, path = place.partition(":")
            *parents, attribute = path.split(".")
            owner: Any = importlib.import_module(module)
            for parent in parents:
                owner = getattr(owner, parent)
            setattr(owner, attribute, clock.clocked(getattr(owner, attribute), name))
    from interp.cli.main import main as run

    try:
        run(command)
    finally:
        clock.note()
    return dict(clock.seconds)


def in_new_process(command: list[str], device: str) -> dict[str, list[float]]:
    """``measure`` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        words = [
            sys.executable,
            __file__,
            "--device",
            device,
            "--measure",
            str(out),
            "--",
            *command,
        ]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text(encoding="utf-8"))


def as_it_is(command: tuple[str, ...]) -> list[float]:
    """Processor and wall seconds of a whole process."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "interp", *command], stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return [after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall]


def forget() -> None:
    """Remove remembered fingerprints and self-checks from the cache."""
    from interp.models import cache_root

    for folder in ("fingerprints", "checks"):
        for file in (cache_root() / folder).glob("*"):
            file.unlink()


def table(seconds: dict[str, list[float]]) -> str:
    """Phases by processor seconds, and the sum beside the sweeps."""
    order = sorted(seconds, key=lambda name: -seconds[name][0])
    width = max(map(len, seconds))
    lines = [f"{'':{width}}  processor   wall"]
    for name in order:
        lines.append(f"{name:{width}}  {seconds[name][0]:9.2f} {seconds[name][1]:6.2f}")
    return "\n".join(lines)


def beside_sweeps(seconds: dict[str, list[float]]) -> list[float]:
    """The sum of all phases but the sweeps."""
    return [sum(it[i] for name, it in seconds.items() if name != "sweeps") for i in range(2)]


def page_table(result: dict[str, Any]) -> str:
    """Processor seconds by phase and by command, beside the earlier state's, as Markdown."""
    before = result.get("before", {})
    then, now = before.get("interp locate", {}), result["interp locate"]
    rows = {f"`locate`: {name}": (then.get(name), now.get(name)) for name in {**now, **then}}
    beside = "interp locate beside its sweeps"
    rows = dict(sorted(rows.items(), key=lambda row: -max(it[0] for it in row[1] if it)))
    rows = {name: row for name, row in rows.items() if any(it and it[0] >= SHOWN for it in row)}
    rows["**`locate`: all but its sweeps**"] = (before.get(beside), result[beside])
    for name in (*COMMANDS, "interp report"):
        if name in result:
            rows[f"`{name}`"] = (before.get(name), result[name])
    lines = ["| | before | now |", "|---|---|---|"]
    for name, row in rows.items():
        was, seconds = (f"{it[0]:.1f}" if it else "–" for it in row)
        lines.append(f"| {name} | {was} | {seconds} |")
    lines.append("")
    lines.append(
        f"Processor seconds ({result['device']}, {result['threads']} thread), embedded model, "
        f"{result['limit']} facts, {result['method']} at both sites; `benchmarks/startup.py`."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="attribution")
    parser.add_argument("--limit", type=int, default=48, help="only the first so many facts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cold", action="store_true", help="forget fingerprint and self-check")
    parser.add_argument("--evaluate", action="store_true", help="also interp evaluate")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    parser.add_argument("--before", type=Path, help="the figures of an earlier state")
    parser.add_argument("--page", action="store_true", help="write the table into the docs")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        seconds = measure([*options.command, "--device", options.device], options.device)
        options.measure.write_text(json.dumps(seconds), encoding="utf-8")
        return
    if options.cold:
        forget()
    result: dict[str, Any] = {
        "device": options.device,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "limit": options.limit,
        "method": options.method,
        "cold": options.cold,
        "unit": "seconds: processor, wall",
    }
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        locate = ["locate", "--out", run, "--site", "both", "--method", options.method]
        locate += ["--limit", str(options.limit), "--minimum", "1"]
        runs = {"interp locate": locate}
        if options.evaluate:
            runs["interp evaluate"] = ["evaluate", run, "--answers", "none"]
        for name, words in runs.items():
            result[name] = seconds = in_new_process(words, options.device)
            result[f"{name} beside its sweeps"] = beside = beside_sweeps(seconds)
            print(f"{name}\n{table(seconds)}")
            print(f"beside the sweeps: {beside[0]:.2f} processor, {beside[1]:.2f} wall\n")
        commands = dict(COMMANDS)
        if options.evaluate:
            commands["interp report"] = ("report", run)
        for name, words in commands.items():
            result[name] = as_it_is(words)
            print(f"{name}: {result[name][0]:.2f} processor, {result[name][1]:.2f} wall")
    if options.before:
        result["before"] = json.loads(options.before.read_text(encoding="utf-8"))
    if options.page:
        write_between(PAGE, "start-up", page_table(result))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
