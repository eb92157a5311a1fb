"""An exported directory in an environment without TransformerLens, beside the hooked model's.

    python benchmarks/fresh_environment.py RUN --fresh VENV/bin/python [--questions 24] [--page]

RUN is a run that was evaluated with gate ``probe``, such as that of `interp demo`. VENV is a
virtual environment with what `interp.load_exported` needs and nothing else::

    python -m venv VENV
    VENV/bin/pip install torch transformers accelerate filelock gguf huggingface_hub jaxtyping \\
        jinja2 numpy packaging psutil pyyaml safetensors tqdm
    VENV/bin/pip install --no-deps faithlens

The run is exported. A new process there loads the directory and answers the run's held-out
questions and their twins; TransformerLens is neither imported nor installed. The answers are
compared with those of the hooked model, in this environment. New processes, in turn, then say how
long they take from their start until the model is ready, and how long torch and transformers alone
take to be imported there, which no program that runs the model can do without.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from export import PAGES, compare_answers, held_out
from marked import write_between

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "fresh_environment.json"
LIBRARIES = "import torch\nfrom transformers import AutoTokenizer, LlamaForCausalLM"
READY = {
    "libraries": LIBRARIES,
    "exported": "import interp\nmodel, tokenizer = interp.load_exported(sys.argv[1])",
    "hooked": "import interp\nmodel = interp.load_model('smollm2-135m')",
}
REPORT = """
print(json.dumps({
    "processor": time.process_time(),
    "transformer_lens": any(name.startswith("transformer_lens") for name in sys.modules),
}))
"""
ANSWER = """
import importlib.util
sys.path.insert(0, sys.argv[3])
from export import answers_of
assert importlib.util.find_spec("transformer_lens") is None
print(json.dumps(answers_of(model, tokenizer, json.load(open(sys.argv[2], encoding="utf-8")))))
"""


def run(python: Path, code: str, *words: object) -> tuple[list[Any], float]:
    """The lines of JSON that a new process prints, and its seconds by the clock."""
    began = time.perf_counter()
    done = subprocess.run(
        [str(python), "-c", f"import json, sys, time\n{code}", *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] in "[{"]
    return lines, time.perf_counter() - began


def measure(source: Path, fresh: Path, *, count: int, repeats: int) -> dict[str, Any]:
    from interp.commands.export import ExportSettings, export_run

    pythons = {"libraries": fresh, "exported": fresh, "hooked": Path(sys.executable)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "exported"
        export_run(source, folder, ExportSettings(gate="probe"))
        texts = held_out(source, count)
        file = Path(temporary) / "questions.json"
        file.write_text(json.dumps(texts), encoding="utf-8")
        code = READY["exported"] + REPORT + ANSWER
        (report, said), _ = run(fresh, code, folder, file, HERE)
        assert not report["transformer_lens"]
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in pythons}
        for _ in range(repeats):
            for way, python in pythons.items():
                (report,), wall = run(python, READY[way] + REPORT, folder)
                assert report["transformer_lens"] == (way == "hooked")
                seconds[way].append((wall, report["processor"]))
                print(way, seconds[way][-1], flush=True)
        answers = compare_answers(folder, said, texts)
    return {
        "answers": answers,
        "repeats": repeats,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "seconds": {
            way: {
                name: [statistics.median(column), min(column), max(column)]
                for name, column in zip(("wall", "processor"), zip(*each, strict=True), strict=True)
            }
            for way, each in seconds.items()
        },
    }


def ratios(seconds: dict[str, Any]) -> dict[str, list[float]]:
    """The exported model's seconds over the hooked one's, all and beyond the libraries' imports."""
    libraries, exported, hooked = (
        [seconds[way][kind][0] for kind in ("processor", "wall")] for way in READY
    )
    beyond = [
        (one - least) / (other - least)
        for least, one, other in zip(libraries, exported, hooked, strict=True)
    ]
    return {
        "ratio of the two models": [a / b for a, b in zip(exported, hooked, strict=True)],
        "ratio beyond those imports": beyond,
    }


def table(found: dict[str, Any]) -> str:
    lines = ["| | processor seconds | seconds by the clock |", "|---|---|---|"]
    names = {
        "libraries": "torch and transformers imported there, and nothing else",
        "exported": "`interp.load_exported`, an environment without TransformerLens",
        "hooked": "`interp.load_model`, the whole environment",
    }
    for way, name in names.items():
        cells = [
            "{:.1f} ({:.1f} to {:.1f})".format(*found["seconds"][way][kind])
            for kind in ("processor", "wall")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, ratio in ratios(found["seconds"]).items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in ratio) + " |")
    answers = found["answers"]
    lines += [
        "",
        f"From the start of a process until the embedded model is ready, imports included: medians "
        f"of {found['repeats']} processes each, in turn (least to most), {found['threads']} "
        "thread, on a busy machine; `benchmarks/fresh_environment.py`. Greedy answers there to "
        f"held-out questions and their twins: {answers['equal']} of {answers['n']} are those of "
        f"the hooked model under the same heads and detector, of which "
        f"{answers['changed_by_constraint']} differ from the unconstrained model's.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the table into docs/how-to/sharing.md."""
    parser = argparse.ArgumentParser(description="An exported directory in a fresh environment.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--fresh", type=Path, required=True, help="the Python of that environment")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="write the table into the docs")
    given = parser.parse_args()
    found = measure(given.run, given.fresh, count=given.questions, repeats=given.repeats)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    if given.page:
        write_between(PAGES / "sharing.md", "load times", table(found))


if __name__ == "__main__":
    main()
