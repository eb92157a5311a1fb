"""How many functions stand between `interp.evaluate` and the model."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import interp
from interp.heads import HeadSet
from interp.models import HookedModel
from interp.premises import Premises

MOST = 9
OURS = [str(Path(interp.__file__).parent), str(Path(interp.__file__).parent.parent / "probes")]


@contextmanager
def stacks(model: Any) -> Iterator[set[tuple[str, ...]]]:
    """The names of our functions that are open whenever the first layer runs.

    The wrapper of ``@checked`` is not counted: it belongs to the function that it is put on.
    """
    seen: set[tuple[str, ...]] = set()

    def note(module: Any, args: Any) -> None:
        frames = [
            frame for frame in traceback.extract_stack() if frame.filename.startswith(tuple(OURS))
        ]
        seen.add(tuple(frame.name for frame in frames if Path(frame.filename).name != "checked.py"))

    handle = model.hook_dict["blocks.0.hook_resid_pre"].register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.bridge_only  # TransformerLens 3 has the face of a transformers model between
def test_evaluate_is_near_the_model(planted: HookedModel, planted_premises: Premises) -> None:
    held_out = planted_premises.split(seed=0).held_out
    with stacks(planted) as seen:
        interp.evaluate(
            planted, held_out, heads=HeadSet(((1, 2),), "attention"), random_sets=20, progress=False
        )
    assert {names[0] for names in seen} == {"evaluate"}
    assert max(map(len, seen)) <= MOST, max(seen, key=len)
