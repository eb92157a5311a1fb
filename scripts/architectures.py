"""Check every architecture against transformers alone, and write docs/architectures.md.

    python scripts/architectures.py [--list] [--only NAME …] [--check] [--jobs N]

What is checked, and how, is in ``tests/zoo``. A check that comes out wrong, or ends in anything but
the right value or a clear ``UserError``, is printed as FAIL, and the exit code is 1. Without
``--only`` the page is written; ``--check`` writes nothing, and exits with code 1 if the page is out
of step (whatever its date).
"""

import argparse
import difflib
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.zoo.checks import run_checks
from tests.zoo.outcome import Outcome
from tests.zoo.page import failures, render
from tests.zoo.registry import ZOO

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architectures.md"
Row = dict[str, list[Outcome]]


def quiet() -> None:
    """What libraries say about tiny random models is not about the checks."""
    import torch
    import transformers

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def row_of(name: str) -> tuple[str, Row, float]:
    """One architecture's row, whatever happens, and the seconds it took."""
    begin = time.perf_counter()
    try:
        row = run_checks(ZOO[name])
    except Exception as error:
        traceback.print_exc()
        row = {"hooks": [Outcome("hooks", "FAIL", f"{type(error).__name__}: {error}")]}
    return name, row, time.perf_counter() - begin


def rows_of(names: Sequence[str], jobs: int) -> Iterator[tuple[str, Row, float]]:
    """The rows as they are done, each in one of several processes."""
    if jobs == 1:
        quiet()
        yield from map(row_of, names)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=quiet) as pool:
        for done in as_completed([pool.submit(row_of, name) for name in names]):
            yield done.result()


def said_of(row: Row) -> str:
    """A row in one line: what is right, what is refused, what is wrong."""
    outcomes = [one for column in row.values() for one in column]
    kinds = [one.kind for one in outcomes]
    words = {"yes": "right", "refused": "refused", "FAIL": "FAIL"}
    return ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words.items() if kind in kinds)


def out_of_step(page: str) -> list[str]:
    """How the page on disk differs from this one, but for its date."""
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    was, now = (
        [line for line in text.splitlines() if "Made by" not in line] for text in (old, page)
    )
    return list(difflib.unified_diff(was, now, "on disk", "now", lineterm="", n=0))


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="list the architectures and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these; no page is written")
    parser.add_argument("--check", action="store_true", help="compare with the page on disk")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--verbose", action="store_true", help="print why things are refused")
    options = parser.parse_args(words)
    if options.list:
        print("\n".join(f"{one.name:32} {one.model:32} {one.layers}" for one in ZOO.values()))
        return 0
    if unknown := [name for name in options.only or () if name not in ZOO]:
        parser.error(f"unknown architecture {unknown[0]!r}: --list names all")
    if options.check and options.only:
        parser.error("--check compares the whole page: leave --only out")
    names, begin = options.only or list(ZOO), time.perf_counter()
    rows: dict[str, Row] = {}
    for name, row, seconds in rows_of(names, max(1, options.jobs)):
        rows[name] = row
        print(f"{name:32} {said_of(row)} ({seconds:.0f} s)", flush=True)
        for line in failures({name: row}):
            print(f"  FAIL {line}", flush=True)
        for column, outcomes in row.items() if options.verbose else ():
            for one in outcomes:
                if one.kind == "refused":
                    print(f"  refused {column} / {one.check}: {one.said}", flush=True)
    wrong = len(failures(rows))
    print(f"{len(rows)} architectures, {wrong} wrong, {time.perf_counter() - begin:.0f} s")
    if options.only:
        return int(wrong > 0)
    page = render(rows, date=date.today().isoformat())
    if options.check:
        changes = out_of_step(page)
        print("\n".join(changes) or f"{PAGE.name} is in step")
        return int(wrong > 0 or bool(changes))
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
