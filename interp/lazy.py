"""Packages, and names of our own packages, that are imported when they are used.

scipy.stats and scikit-learn take some three seconds to import, pandas and plotly one. Whoever
attaches a constraint, asks a model, or detects false premises with what is trained uses none of
them, nor most of our own modules. An annotation that names one is a text, or it would import it.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any


class LazyPackage:
    """Stands for a package of others; its first attribute that is asked for imports it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"<{self._name}, when it is used>"


hierarchy: Any = LazyPackage("scipy.cluster.hierarchy")
integrate: Any = LazyPackage("scipy.integrate")
optimize: Any = LazyPackage("scipy.optimize")
distance: Any = LazyPackage("scipy.spatial.distance")
special: Any = LazyPackage("scipy.special")
stats: Any = LazyPackage("scipy.stats")
isotonic: Any = LazyPackage("sklearn.isotonic")
linear_model: Any = LazyPackage("sklearn.linear_model")
model_selection: Any = LazyPackage("sklearn.model_selection")
preprocessing: Any = LazyPackage("sklearn.preprocessing")
if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import plotly.io as pio
    from plotly import offline, subplots
    from rich import table as rich_tables
    from rich import text as rich_texts
else:
    pd = LazyPackage("pandas")
    go = LazyPackage("plotly.graph_objects")
    pio = LazyPackage("plotly.io")
    offline = LazyPackage("plotly.offline")
    subplots = LazyPackage("plotly.subplots")
    rich_tables = LazyPackage("rich.table")
    rich_texts = LazyPackage("rich.text")


class _Package(ModuleType):
    """A package whose names are imported when they are used."""

    _homes: dict[str, str]

    def __setattr__(self, name: str, value: Any) -> None:
        # A function may have the name of its module, which an import would put in its place.
        if not (name in self._homes and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def names_on_demand(
    package: str, otherwise: Callable[[str], Any] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that imports a name when it is asked for.

    Its names are those that its ``__init__`` imports under ``if TYPE_CHECKING``, and its modules.

    Args:
        otherwise: what finds any other name, or raises AttributeError.
    """
    module: Any = sys.modules[package]
    typed = _typed_imports(module.__spec__.loader.get_source(package))
    homes = {name: home for name, home in typed.items() if home != package}  # not its modules
    module.__dict__["_homes"] = homes
    module.__class__ = _Package

    def find(name: str) -> Any:
        if name in homes:
            found = getattr(importlib.import_module(homes[name]), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            found = importlib.import_module(f"{package}.{name}")
        elif otherwise is not None:
            return otherwise(name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        vars(module)[name] = found
        return found

    def names() -> list[str]:
        return sorted({*vars(module), *typed})

    return find, names


def _typed_imports(source: str) -> dict[str, str]:
    """The module of each name that a source imports under ``if TYPE_CHECKING``."""
    found = {}
    for block in ast.parse(source).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    found.update({name.name: line.module for name in line.names})
    return found
