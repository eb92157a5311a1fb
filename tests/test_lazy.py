"""Names of a package that are imported when they are used."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from interp.lazy import _typed_imports

PACKAGES = (
    *("interp.heads", "interp.interventions", "interp.patching", "interp.premises"),
    *("interp.evaluation", "interp.report", "probes"),
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there(package: str) -> None:
    """A function keeps its name although a module has the same one."""
    module = importlib.import_module(package)
    homes = _typed_imports(module.__spec__.loader.get_source(package))  # type: ignore[union-attr]
    for home in homes.values():
        importlib.import_module(home)  # an import puts a module into its package
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        found = getattr(module, name)
        assert not isinstance(found, ModuleType)
        assert found is getattr(importlib.import_module(homes[name]), name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        module.nothing_of_the_kind  # noqa: B018


def test_typed_imports() -> None:
    source = """
from typing import TYPE_CHECKING
from a import b
if TYPE_CHECKING:
    from c import d, e
"""
    assert _typed_imports(source) == {"d": "c", "e": "c"}


def test_loading_and_asking_import_no_tables_and_no_figures() -> None:
    heavy = ("pandas", "plotly", "scipy.stats", "sklearn", "rich.table", "transformer_lens")
    code = (
        "import sys, transformers.models.llama.modeling_llama\n"
        f"before = [name for name in {heavy} if name in sys.modules]\n"
        "import interp.exported, interp.asking\n"
        f"print([name for name in {heavy} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
