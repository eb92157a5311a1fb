"""Old module paths and old names: they give what replaced them, with a deprecation warning.

``moved.txt`` has a line for each module that has moved: the old path and the new one. A package
that has renamed something says so with `old_names`. All of them go with version 0.3.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.resources import files
from types import ModuleType
from typing import Any


@cache
def new_paths() -> dict[str, str]:
    """The new path of every module that has moved, by its old one."""
    lines = files("interp").joinpath("moved.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split() for line in lines)


class _Moved(Loader):
    """Loads the module at the new path, and copies its names."""

    def __init__(self, new: str) -> None:
        self.new = new

    def exec_module(self, module: ModuleType) -> None:
        found = vars(import_module(self.new))
        module.__dict__.update({k: v for k, v in found.items() if not k.startswith("__")})
        if hasattr(import_module(self.new), "__path__"):
            module.__path__ = []  # type: ignore[attr-defined]
        text = f"{module.__name__} is now {self.new}; the old path goes with version 0.3"
        warnings.warn(text, DeprecationWarning, stacklevel=2)


class MovedFinder(MetaPathFinder):
    """Stands behind Python's own finders, so that only modules that are not there come to it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a moved module; None for any other name."""
        if not fullname.startswith(("interp.", "probes.")) or fullname not in new_paths():
            return None
        return ModuleSpec(fullname, _Moved(new_paths()[fullname]))


def keep_old_paths() -> None:
    """Make the old paths importable. A second call does nothing."""
    if not any(isinstance(one, MovedFinder) for one in sys.meta_path):
        sys.meta_path.append(MovedFinder())


def old_names(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` that gives what its old names are called now."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        text = f"{package}.{name} is now {names[name]}; the old name goes with version 0.3"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[package], names[name])

    return find
