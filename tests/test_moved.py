"""Old module paths and names still work, and say what replaced them."""

import importlib
import importlib.util
import sys

import pytest

import interp.files
import interp.patching
import probes.detector
from interp.moved import new_paths


@pytest.mark.parametrize("new", sorted(set(new_paths().values())))
def test_everything_is_at_its_new_path(new: str) -> None:
    module, _, name = new.partition(":")
    assert importlib.util.find_spec(module) is not None
    assert not name or hasattr(importlib.import_module(module), name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("old", sorted(one for one in new_paths() if ":" in one))
def test_an_old_name_is_found_where_it_was(old: str) -> None:
    module, _, name = old.partition(":")
    loaded = module in sys.modules
    try:
        found = getattr(importlib.import_module(module), name)
    finally:
        if not loaded:
            del sys.modules[module]
    place, _, renamed = new_paths()[old].partition(":")
    assert found is getattr(importlib.import_module(place), renamed)


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("interp.patching.batch", "TokenBatch"),
        ("interp.answering", "generate"),
        ("interp.models.majors", "VERSION"),
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
        (interp.patching, "PatchingResult", "interp.patching.result.PatchEffects"),
        (interp.files, "write_whole", "interp.files.whole.write_whole"),
        (probes.detector, "PremiseDetector", "probes.detector.detector.PremiseDetector"),
    ],
)
def test_an_old_name_says_what_it_is_now(package: object, old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"\.{old} is now {new}; the old name goes"):
        getattr(package, old)
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = package.nothing  # type: ignore[attr-defined]
