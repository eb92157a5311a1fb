"""Head effects as TransformerLens 4 gives them, to compare the two major versions with each other.

``python scripts/head_effects_reference.py`` writes ``tests/models/head_effects.safetensors`` (on
TransformerLens 4); with ``--check``, on either version, it prints how far this installation's
effects are from it, and the seconds they took, as the table of ``docs/transformer-lens.md``.
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from interp.models import fingerprint
from interp.models.versions import MAJOR, VERSION
from tests.models.head_effects import (
    REFERENCE,
    cases,
    read_reference,
    same_top_ten,
)


def write() -> None:
    """Compute and store the reference."""
    if MAJOR < 4:
        sys.exit(f"error: the reference is made on TransformerLens 4, this is {VERSION}")
    effects, fingerprints = {}, {}
    for case in cases():
        model = case.make()
        fingerprints[case.name] = fingerprint(model)
        effects.update((name, values.contiguous()) for name, values in case.effects(model))
    made_with = f"transformer-lens {VERSION}, torch {torch.__version__}"
    metadata = {"fingerprints": json.dumps(fingerprints), "made_with": made_with}
    save_file(effects, REFERENCE, metadata=metadata)


def check() -> None:
    """Print how far this installation is from the reference."""
    reference, fingerprints = read_reference()
    print(f"transformer-lens {VERSION}, torch {torch.__version__}\n")
    print(
        "| model | method | site | largest effect | largest difference | same top ten | seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in cases():
        model = case.make()
        if fingerprint(model) != fingerprints[case.name]:
            sys.exit(f"error: the weights of {case.name} are not those of the reference")
        begin = time.perf_counter()
        for name, values in case.effects(model):
            seconds = time.perf_counter() - begin
            expected = reference[name]
            same = "yes" if same_top_ten(values, expected) else "no"
            largest = float((values - expected).abs().max())
            cells = [*name.split("/"), f"{float(expected.abs().max()):.3g}", f"{largest:.1e}", same]
            print("| " + " | ".join([*cells, f"{seconds:.1f}"]) + " |", flush=True)
            begin = time.perf_counter()


if __name__ == "__main__":
    check() if "--check" in sys.argv[1:] else write()
