"""Old module paths and names still work, and say what replaced them."""

import importlib
import importlib.util
import sys

import pytest

import interp.experts.heads
import interp.interventions
import interp.patching
from interp.moved import new_paths


@pytest.mark.parametrize("new", sorted(set(new_paths().values())))
def test_every_new_path_is_a_module(new: str) -> None:
    assert importlib.util.find_spec(new) is not None


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("interp.patching.batch", "TokenBatch"),
        ("interp.answering", "generate"),
        ("interp.untrusted", "read_text"),
        ("interp.runs.locate", "locate_run"),
        ("interp.evaluation.attention", "attention_pattern"),
        ("probes.words", "word_spans"),
    ],
)
def test_an_old_path_gives_the_names_of_the_new_one(old: str, name: str) -> None:
    new = new_paths()[old]
    try:
        with pytest.warns(DeprecationWarning, match=f"{old} is now {new}; the old path goes"):
            found = importlib.import_module(old)
    finally:
        sys.modules.pop(old, None)
    assert getattr(found, name) is getattr(importlib.import_module(new), name)


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"interp\.patching\.nothing"):
        importlib.import_module("interp.patching.nothing")


@pytest.mark.parametrize(
    ("package", "old", "new"),
    [
        (interp.patching, "PatchingResult", "PatchEffects"),
        (interp.experts.heads, "experts_feeding", "rank_expert_contributions"),
        (interp.interventions, "Places", "ObjectPositions"),
    ],
)
def test_an_old_name_gives_what_it_is_called_now(package: object, old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(package, old) is getattr(package, new)
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = package.nothing  # type: ignore[attr-defined]
