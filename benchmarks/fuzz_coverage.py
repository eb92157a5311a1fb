"""Coverage-guided fuzzing of the readers with atheris (``pip install 'faithlens[fuzz]'``).

python benchmarks/fuzz_coverage.py ["head set" …] [--seconds 60]

atheris watches which lines of the package an input reaches, and keeps and changes the inputs that
reach new ones: half the time by bytes, as libFuzzer does, half the time by structure, as
benchmarks/fuzz.py does, and checksums inside a file are made right. The valid files are where it
begins. What it did goes to benchmarks/results/fuzz_coverage.json; a foreign exception stops a
reader's run, and is shown.
"""

import argparse
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "fuzz_coverage.json"
SHOWN = 15
sys.path.insert(0, str(ROOT))


def child(name: str, corpus: Path, seconds: int) -> None:
    """One run of the fuzzer; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["interp", "probes"]):
        import interp.report.page
        from interp.errors import UserError
        from tests.fuzz.mutations import mutate, signed
        from tests.fuzz.readers import READERS, fresh
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    interp.report.page.get_plotlyjs = lambda: ""  # as in benchmarks/fuzz.py
    reader, folder = READERS[name], Path(tempfile.mkdtemp(dir=corpus.parent)) / "input"
    valid = fresh(reader, folder)
    reader.read(folder)
    names = sorted(valid)
    for number, file in enumerate(names):
        (corpus / f"valid-{number}").write_bytes(bytes([number]) + valid[file])
    longest = 2 * max(map(len, valid.values()))

    def file_of(raw: bytes) -> str:
        return names[raw[0] % len(names)] if raw else names[0]

    def by_structure(raw: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if not raw or draw.random() < 0.5:
            return atheris.Mutate(raw, most)
        return (raw[:1] + mutate(raw[1:], reader.kinds[file_of(raw)], draw))[:most]

    def test_one_input(raw: bytes) -> None:
        file = file_of(raw)
        (folder / file).write_bytes(signed(raw[1:], reader.kinds[file]))
        try:
            reader.read(folder)
        except UserError:
            pass
        finally:
            (folder / file).write_bytes(valid[file])

    options = [f"-max_total_time={seconds}", f"-max_len={longest}", "-timeout=10", "-seed=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={corpus.parent}/", str(corpus)],
                  test_one_input, custom_mutator=by_structure)  # fmt: skip
    atheris.Fuzz()


def covered(name: str, seconds: int) -> dict[str, Any]:
    """Fuzz one reader in a process of its own, and what came of it."""
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary) / "corpus"
        corpus.mkdir()
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, name, "--corpus", str(corpus), "--seconds", str(seconds)],
            capture_output=True, text=True, errors="replace", check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        kept = len(list(corpus.iterdir()))
        crashed = any(Path(temporary).glob("*-*"))  # crash-…, timeout-… or oom-…, the input
    runs = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    places = [int(number) for number in re.findall(r" cov: (\d+) ", done.stderr)]
    if done.returncode:
        print("\n".join((done.stdout + done.stderr).splitlines()[-SHOWN:]))
        if not crashed:
            raise SystemExit(f"the fuzzer of {name!r} did not run")
    return {
        "runs": int(runs[1]) if runs else 0,
        "places_first": places[0] if places else 0,
        "places": max(places, default=0),
        "inputs_kept": kept,
        "crashes": int(crashed),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", help="by default all")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.corpus is not None:
        child(*options.readers, options.corpus, options.seconds)
        return
    from interp.files.documents import write_json
    from tests.fuzz.readers import READERS

    if unknown := set(options.readers) - set(READERS):
        raise SystemExit(f"unknown reader {min(unknown)!r}; known: {', '.join(READERS)}")
    for name in options.readers or READERS:
        found = covered(name, options.seconds)
        print(f"{name}: {json.dumps(found)}", flush=True)
        kept = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
        write_json(OUT, kept | {name: found})


if __name__ == "__main__":
    main()
