"""An exported directory beside the hooked model, and baked weights beside the constraint.

    python benchmarks/export.py RUN [--baked DIR] [--repeats 3] [--questions 68] [--page]

RUN is a run that was evaluated with gate ``probe``, such as that of `interp demo`. It is exported;
new processes then load the directory, or the hooked model, and say how long that took, by the
clock and in processor seconds, from the start of the process and without the imports of torch and
transformers, which any program has. A process that never imports TransformerLens answers the run's
held-out questions and their twins, and so does the hooked model: the answers are compared.

``--baked DIR`` adds the figures of ``interp export --bake`` (its baked.json). ``--page`` writes the
tables into docs/how-to/sharing.md and docs/how-to/serving.md.
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

from marked import write_between

PAGES = Path(__file__).resolve().parents[1] / "docs" / "how-to"
RESULTS = Path(__file__).parent / "results" / "export.json"
TOKENS, BATCH = 24, 8
WAYS = ("exported", "hooked")


class Clock:
    """Wall and processor seconds since the last look; the first one since the process began."""

    def __init__(self) -> None:
        self.last = (0.0, 0.0)

    def since(self) -> list[float]:
        now = (time.perf_counter() - BEGAN, time.process_time())
        passed = [now[i] - self.last[i] for i in range(2)]
        self.last = now
        return passed


BEGAN = time.perf_counter()


def load_here(way: str, folder: str, questions: str | None) -> dict[str, Any]:
    """Load in this process, with the seconds of each step; then answer, if there are questions."""
    clock = Clock()
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    found: dict[str, Any] = {"torch and transformers": clock.since()}
    import interp

    if way == "hooked":
        interp.load_model("smollm2-135m")
        found["the rest"] = clock.since()
        return found
    model, tokenizer = interp.load_exported(folder)
    found["the rest"] = clock.since()
    if questions is not None:
        texts = json.loads(Path(questions).read_text(encoding="utf-8"))
        found["answers"] = answers_of(model, tokenizer, texts)
    found["transformer_lens"] = any(name.startswith("transformer_lens") for name in sys.modules)
    return found


def answers_of(model: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    """Greedy answers of a transformers model, in batches."""
    said: list[str] = []
    for begin in range(0, len(texts), BATCH):
        chats = [[{"role": "user", "content": text}] for text in texts[begin : begin + BATCH]]
        batch = tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        ids = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False)
        new = ids[:, batch["input_ids"].shape[1] :]
        said += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return said


def in_new_process(way: str, folder: Path, questions: Path | None) -> dict[str, Any]:
    words = [sys.executable, __file__, "--load", way, "--folder", str(folder)]
    words += [] if questions is None else ["--file", str(questions)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def held_out(run: Path, count: int) -> list[str]:
    """Questions with the false object and with the true one, in turn."""
    from interp.commands.locate_joint import load_search

    _, split, _ = load_search(run)
    premises: Any = split.held_out
    texts = [
        premises.fill(question, kind).text
        for question in premises.questions()
        for kind in ("false", "twin")
    ]
    return texts[:count]


def compare_answers(folder: Path, said: list[str], texts: list[str]) -> dict[str, Any]:
    """The answers of the other process beside those of the hooked model."""
    import interp
    from interp.exported import read_export
    from probes.detector.support_detector import load_detector

    exported = read_export(folder)
    assert exported.detector is not None
    model = interp.load_model(exported.model["spec"])
    options: Any = {"max_new_tokens": TOKENS}
    free = interp.generate(model, texts, **options)
    detector = load_detector(exported.detector)
    options |= {"heads": exported.intervention, "gate": "probe", "detector": detector}
    expected = [text.strip() for text in interp.generate(model, texts, **options)]
    return {
        "n": len(texts),
        "equal": sum(a == b for a, b in zip(said, expected, strict=True)),
        "changed_by_constraint": sum(a.strip() != b for a, b in zip(free, expected, strict=True)),
    }


def timing_table(result: dict[str, Any]) -> str:
    lines = [
        "| | wall, whole process | processor, whole process | processor, beside torch and "
        "transformers |",
        "|---|---|---|---|",
    ]
    for way in WAYS:
        name = {"exported": "`interp.load_exported`", "hooked": "`interp.load_model`"}[way]
        wall, cpu, rest = (result["seconds"][way][key] for key in ("wall", "processor", "rest"))
        lines.append(f"| {name} | {wall:.1f} s | {cpu:.1f} s | {rest:.1f} s |")
    ratios = [result["seconds"]["ratio"][key] for key in ("wall", "processor", "rest")]
    lines.append("| ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    found = result["answers"]
    lines += [
        "",
        f"Medians of {result['repeats']} new processes each, in turn, {result['threads']} thread, "
        "embedded model, everything in the disk's cache; `benchmarks/export.py`. Answers to "
        f"held-out questions and twins in a process without TransformerLens: {found['equal']} of "
        f"{found['n']} equal those of the hooked model under the same heads and detector "
        f"({found['changed_by_constraint']} differ from the unconstrained model's).",
    ]
    return "\n".join(lines)


def baked_table(baked: dict[str, Any]) -> str:
    from interp.exported.bake_cost import RUNS
    from interp.exported.card import BAKED_COLUMNS, baked_cells

    names = ("no constraint", "constraint at the false words, told where", "baked: everywhere")
    lines = [f"| | {' | '.join(BAKED_COLUMNS)} |", "|---" * (1 + len(BAKED_COLUMNS)) + "|"]
    for name, _, cells in zip(names, RUNS, baked_cells(baked), strict=True):
        lines.append(f"| {name} | {' | '.join(cells)} |")
    n = baked["false_premise"]["unconstrained"]["n"]
    lines += [
        "",
        f"{baked['intervention']}, embedded model, `capitals`, {n} held-out false premises and as "
        "many twins, 95 % intervals over subjects: what `interp export --bake` measures.",
    ]
    return "\n".join(lines)


def measure(run: Path, *, repeats: int, count: int) -> dict[str, Any]:
    from interp.commands.export import ExportSettings, export_run

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "exported"
        export_run(run, folder, ExportSettings(gate="probe"))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        texts = held_out(run, count)
        questions = Path(temporary) / "questions.json"
        questions.write_text(json.dumps(texts), encoding="utf-8")
        said = in_new_process("exported", folder, questions)  # warms the caches too
        assert not said["transformer_lens"]
        seconds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way in WAYS:
                seconds[way].append(in_new_process(way, folder, None))
        answers = compare_answers(folder, said["answers"], texts)
    found: dict[str, Any] = {}
    for way, runs in seconds.items():
        both = [[one["torch and transformers"], one["the rest"]] for one in runs]
        found[way] = {
            "wall": statistics.median(a[0] + b[0] for a, b in both),
            "processor": statistics.median(a[1] + b[1] for a, b in both),
            "rest": statistics.median(b[1] for _, b in both),
        }
    found["ratio"] = {
        key: found["exported"][key] / found["hooked"][key] for key in ("wall", "processor", "rest")
    }
    return {"seconds": found, "answers": answers, "directory_bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="a run with gate probe")
    parser.add_argument("--baked", type=Path, help="a directory of interp export --bake")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", type=int, default=68)
    parser.add_argument("--page", action="store_true", help="write the tables into the docs")
    parser.add_argument("--load", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load_here(options.load, options.folder, options.file)))
        return
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if options.run is not None:
        result |= measure(options.run, repeats=options.repeats, count=options.questions)
        result |= {"repeats": options.repeats}
        result["threads"] = os.environ.get("OMP_NUM_THREADS", "all")
        print(timing_table(result), end="\n\n")
    if options.baked is not None:
        result["baked"] = json.loads((options.baked / "baked.json").read_text(encoding="utf-8"))
        print(baked_table(result["baked"]))
    if options.page:
        if "seconds" in result:
            write_between(PAGES / "sharing.md", "load times", timing_table(result))
        if "baked" in result:
            write_between(PAGES / "serving.md", "baked", baked_table(result["baked"]))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
