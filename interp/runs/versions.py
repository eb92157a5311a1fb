"""Versions that a run's figures depend on."""

import importlib.metadata
import platform
from functools import cache

PACKAGES = (
    *("faithlens", "torch", "transformer-lens", "transformers", "peft", "accelerate"),
    *("numpy", "scipy", "pandas"),
)


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    return dict(_versions())
