"""Coverage-guided fuzzing of one reader with atheris (``pip install 'faithlens[fuzz]'``).

python benchmarks/fuzz_coverage.py "intervention, YAML" --seconds 60

atheris watches which lines of the package an input reaches, and keeps and changes the inputs that
reach new ones. The valid files are where it begins. What it did is added to
benchmarks/results/fuzz_coverage.json; a crash stops it, and counts as one.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "fuzz_coverage.json"
sys.path.insert(0, str(ROOT))


def child(name: str, corpus: Path, seconds: int) -> None:
    """One run of the fuzzer; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["interp", "probes"]):
        from interp.errors import UserError
        from tests.fuzz.readers import READERS, fresh
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    reader, folder = READERS[name], Path(tempfile.mkdtemp()) / "input"
    valid = fresh(reader, folder)
    names = sorted(valid)
    for number, file in enumerate(names):
        (corpus / f"valid-{number}").write_bytes(bytes([number]) + valid[file])

    def test_one_input(raw: bytes) -> None:
        file = names[raw[0] % len(names)] if raw else names[0]
        (folder / file).write_bytes(raw[1:])
        try:
            reader.read(folder)
        except UserError:
            pass
        finally:
            (folder / file).write_bytes(valid[file])

    options = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-seed=1"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={corpus.parent}/", str(corpus)],
                  test_one_input)  # fmt: skip
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.corpus is not None:
        child(options.reader, options.corpus, options.seconds)
        return
    from interp.runs.store import write_json

    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary) / "corpus"
        corpus.mkdir()
        begin = time.perf_counter()
        command = [sys.executable, __file__, options.reader, "--corpus", str(corpus)]
        done = subprocess.run(
            [*command, "--seconds", str(options.seconds)], capture_output=True, text=True,
            check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        lines = done.stderr.splitlines()
        runs = [line for line in lines if line.startswith("Done ")]
        found = {
            "runs": int(runs[-1].split()[1]) if runs else 0,
            "inputs_kept": len(list(corpus.iterdir())),
            "crashes": int(done.returncode != 0),
            "seconds": round(time.perf_counter() - begin, 1),
        }
    print(options.reader, found)
    if done.returncode:
        print("\n".join(lines[-15:]))
    kept = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    write_json(OUT, kept | {options.reader: found})


if __name__ == "__main__":
    main()
