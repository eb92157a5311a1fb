"""Old paths, names and arguments: they give what replaced them, with a deprecation warning.

``moved.txt`` has a line for each module that has moved, the old path and the new one, and for each
name (``module:name``). A module that stays and has lost names finds them with `old_names`, and a
function its old arguments with `old_arguments`. All of them go with version 0.3.
"""

import sys
import warnings
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.resources import files
from types import ModuleType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def new_paths() -> dict[str, str]:
    """The new path of everything that has moved, by its old one."""
    lines = files("interp").joinpath("moved.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split() for line in lines)


class _Moved(Loader):
    """Loads the module at the new path, and copies its names."""

    def __init__(self, new: str) -> None:
        self.new = new

    def exec_module(self, module: ModuleType) -> None:
        found = import_module(self.new)
        names = {name: it for name, it in vars(found).items() if not name.startswith("__")}
        vars(module).update(names, __getattr__=old_names(module.__name__))
        if hasattr(found, "__path__"):
            module.__path__ = []  # type: ignore[attr-defined]
        _warn(module.__name__, self.new, "path")


class MovedFinder(MetaPathFinder):
    """Stands behind Python's own finders, so that only modules that are not there come to it."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a moved module; None for any other name.

        A namespace package's path is no Sequence, though the standard library says so.
        """
        if not fullname.startswith(("interp.", "probes.")) or fullname not in new_paths():
            return None
        return ModuleSpec(fullname, _Moved(new_paths()[fullname]))


def keep_old_paths() -> None:
    """Make the old paths importable. A second call does nothing."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())


def old_names(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose names have moved or changed, as ``moved.txt`` says."""

    def find(name: str) -> Any:
        new = new_paths().get(f"{module}:{name}")
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, renamed = new.partition(":")
        _warn(f"{module}.{name}", f"{place}.{renamed}", "name")
        return getattr(import_module(place), renamed)

    return find


def old_arguments(**new: str) -> Callable[[Function], Function]:
    """A decorator: arguments (old name = new name) may be given by their old names too."""

    def decorate(function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in new.keys() & kwargs.keys():
                if new[old] not in kwargs:  # else the function says that it does not know the old
                    _warn(f"{old} of {function.__name__}", new[old], "name")
                    kwargs[new[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def _warn(old: str, new: str, what: str) -> None:
    text = f"{old} is now {new}; the old {what} goes with version 0.3"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
