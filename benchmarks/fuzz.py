"""Hostile input by the thousand: mutated files for every reader, and what came of them.

python benchmarks/fuzz.py [--inputs 10000] [--only NAME …] [--seed 0]

Each input is a directory of valid files of which one or two are changed (see tests/fuzz). A reader
may read it or raise the package's own error; anything else, a run of more than `TIME` seconds, or
memory beyond `MEMORY` counts as foreign. Results go to benchmarks/results/fuzz.json.
"""

import argparse
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import interp.report.page  # noqa: E402
from interp.errors import UserError  # noqa: E402
from interp.files.documents import write_json  # noqa: E402
from tests.fuzz.mutations import mutate  # noqa: E402
from tests.fuzz.readers import READERS, Reader, fresh  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "fuzz.json"
TIME = 10
MEMORY = 12 * 2**30
SHOWN = 5


class TooSlow(BaseException):
    """An input on which the reader does not come to an end; no reader may catch it."""


def fuzz(name: str, reader: Reader, *, inputs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Feed a reader and count what came of it."""
    valid = fresh(reader, folder)
    reader.read(folder)
    counts: Counter[str] = Counter()
    foreign: dict[str, dict[str, Any]] = {}
    slowest = 0.0
    begin = time.perf_counter()
    for number in range(inputs):
        draw = random.Random(f"{seed}/{name}/{number}")
        changed = draw.sample(sorted(valid), min(len(valid), draw.choice((1, 1, 1, 2))))
        for file in changed:
            (folder / file).write_bytes(mutate(valid[file], reader.kinds[file], draw))
        before = time.perf_counter()
        outcome = _outcome(reader, folder)
        slowest = max(slowest, time.perf_counter() - before)
        if isinstance(outcome, str):
            counts[outcome] += 1
        else:
            counts["foreign"] += 1
            place = f"{type(outcome).__name__} at {_place(outcome)}"
            found = foreign.setdefault(place, {"n": 0, "first": number, "says": str(outcome)[:200]})
            found["n"] += 1
        for file in changed:
            (folder / file).write_bytes(valid[file])
    return {
        "inputs": inputs,
        "read": counts["read"],
        "refused": counts["refused"],
        "foreign": counts["foreign"],
        "seconds": round(time.perf_counter() - begin, 1),
        "slowest": round(slowest, 2),
        "exceptions": foreign,
    }


def _outcome(reader: Reader, folder: Path) -> str | BaseException:
    signal.setitimer(signal.ITIMER_REAL, TIME)
    try:
        reader.read(folder)
        return "read"
    except UserError as error:
        if "\n" in str(error):
            return ValueError(f"a message of several lines: {str(error)[:150]!r}")
        return "refused"
    except (Exception, TooSlow) as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _place(error: BaseException) -> str:
    """The last line of the package, or of the fuzzer, that the exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        one for one in frames if str(ROOT) in one.filename and "site-packages" not in one.filename
    ]
    return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "nowhere"


def _too_slow(*_: Any) -> None:
    raise TooSlow(f"more than {TIME} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(READERS))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, _too_slow)
    # The page's script is the same in every page; without it a page is made in a tenth of the time.
    interp.report.page.get_plotlyjs = lambda: ""
    for name in options.only:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "input"
            found = fuzz(
                name, READERS[name], inputs=options.inputs, seed=options.seed, folder=folder
            )
        print(
            f"{name}: {json.dumps({k: v for k, v in found.items() if k != 'exceptions'})}",
            flush=True,
        )
        for place, one in list(found["exceptions"].items())[:30]:
            print(
                f"  {one['n']:5} × {place}: {one['says'][:110]!r} (input {one['first']})",
                flush=True,
            )
        if options.inputs >= 1000 and not os.environ.get("FUZZ_DRY"):
            kept = json.loads(OUT.read_text("utf-8")) if OUT.is_file() else {"readers": {}}
            kept["seed"] = options.seed
            kept["readers"][name] = found
            write_json(OUT, kept)


if __name__ == "__main__":
    main()
