"""Packages that are imported when something of them is used.

scipy.stats and scikit-learn take some three seconds to import. Whoever attaches a constraint, asks
a model, or detects false premises with what is trained uses neither.
"""

import importlib
from typing import Any


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
