"""``interp doctor`` as a function: what this machine has, and what is missing.

torch and the package's own code for models are imported only when they are looked at, so that an
installation that cannot be imported is a row of the table and no traceback.
"""

import importlib
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from interp.files.text import one_line

DISTRIBUTION = "faithlens"
EXTRAS = ("ray", "export", "explore", "notebook")
"""Extras that a user may want; those of tests and docs are left out."""
GIB = 2**30
DTYPES = ("float32", "bfloat16", "float16")
SIDE = 256
"""Rows and columns of the product that shows whether a dtype works, and how fast."""
TRIALS = 3
LEAST_FREE = 2 * GIB
"""Of a cache's disk: the embedded model and its conversion take 0.9 GiB."""


@dataclass(frozen=True)
class Finding:
    """One row of the diagnosis.

    Attributes:
        topic: what was looked at, such as ``"torch"`` or ``"cuda:0"``.
        found: what is there, in a few words.
        ok: False if something that is needed is missing or does not work.
        remedy: the command or the change that mends it, if anything is to be mended.
    """

    topic: str
    found: str
    ok: bool = True
    remedy: str = ""


def diagnose(cache_dir: Path | None = None) -> list[Finding]:
    """Versions, devices with their free memory and dtypes, the cache, and optional packages.

    Args:
        cache_dir: in place of the usual cache folder.
    """
    return [
        Finding("Python", f"{platform.python_version()} at {sys.executable}"),
        *_packages(),
        *_devices(),
        *_cache(cache_dir),
        *_extras(),
    ]


def _requirements() -> list[Requirement]:
    """What the installed package says that it needs; nothing for a bare checkout."""
    try:
        return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return []


def _packages() -> Iterator[Finding]:
    for needed in _requirements():
        if _is_always_needed(needed):
            yield _package(needed)


def _is_always_needed(needed: Requirement) -> bool:
    """Whether a package is needed here without any extra."""
    return needed.marker is None or needed.marker.evaluate({"extra": ""})


def _version(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(needed: Requirement) -> Finding:
    install = f"pip install '{needed.name}{needed.specifier}'"
    version = _version(needed.name)
    if version is None:
        return Finding(needed.name, "not installed", ok=False, remedy=install)
    if not needed.specifier.contains(version, prereleases=True):
        return Finding(
            needed.name, f"{version}, needed is {needed.specifier}", ok=False, remedy=install
        )
    return Finding(needed.name, version)


def _devices() -> Iterator[Finding]:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken installation raises anything
        found = f"cannot be imported: {one_line(error)}"
        yield Finding("torch", found, ok=False, remedy="pip install --force-reinstall torch")
        return
    free, total = _memory_of_machine()
    memory = f", {_gib(free)} of {_gib(total)} free" if total else ""
    threads = f"{torch.get_num_threads()} threads"
    yield _attempt("cpu", lambda: f"{threads}{memory}; {_dtypes(torch, 'cpu')}")
    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        yield _attempt(name, lambda name=name: _gpu(torch, name))
    if torch.backends.mps.is_available():
        yield _attempt("mps", lambda: _dtypes(torch, "mps"))
    if not torch.cuda.device_count() and torch.version.cuda:
        yield Finding(
            "cuda",
            f"torch is built for CUDA {torch.version.cuda}, and no GPU is seen",
            remedy="nvidia-smi shows whether the driver works; CUDA_VISIBLE_DEVICES may hide it",
        )


def _gpu(torch: Any, name: str) -> str:
    free, total = torch.cuda.mem_get_info(name)
    return (
        f"{torch.cuda.get_device_name(name)}, {_gib(free)} of {_gib(total)} free; "
        f"{_dtypes(torch, name)}"
    )


def _attempt(topic: str, look: Callable[[], str]) -> Finding:
    """What ``look`` finds; a device that does not answer is a finding too."""
    try:
        return Finding(topic, look())
    except Exception as error:  # drivers raise anything
        return Finding(
            topic, f"does not work: {one_line(error)}", ok=False, remedy="choose another --device"
        )


def _dtypes(torch: Any, device: str) -> str:
    """The dtypes in which a product of matrices works, with its rate relative to float32's.

    Raises RuntimeError if it does not work in float32.
    """
    full, *narrow = (_seconds_of_product(torch, device, name) for name in DTYPES)
    if full is None:
        raise RuntimeError("no product of matrices in float32")
    rates = [
        f"{name} ({full / taken:.2g} × its rate)"
        for name, taken in zip(DTYPES[1:], narrow, strict=True)
        if taken is not None
    ]
    return ", ".join([DTYPES[0], *rates])


def _seconds_of_product(torch: Any, device: str, dtype: str) -> float | None:
    """The shortest of several products of two square matrices; None if it fails or is wrong."""
    try:
        ones = torch.ones(SIDE, SIDE, dtype=getattr(torch, dtype), device=device)
        shortest, right = math.inf, False
        for _ in range(TRIALS):
            begin = time.perf_counter()
            product = torch.nn.functional.linear(ones, ones)  # as models do
            right = float(product[0, 0]) == SIDE  # which also waits for the device
            shortest = min(shortest, time.perf_counter() - begin)
        return shortest if right else None
    except (RuntimeError, TypeError):  # a device without this dtype raises either
        return None


def _memory_of_machine() -> tuple[int, int]:
    """Bytes that are free and bytes in all; zeros where the system does not say."""
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return 0, 0
    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def _cache(cache_dir: Path | None) -> Iterator[Finding]:
    try:
        # Here, since one of the packages behind it may be what is broken.
        from interp.models import spec
        from interp.models.versions import hooked_class

        hooked_class()  # with TransformerLens
    except Exception as error:
        yield Finding("models", f"cannot be imported: {one_line(error)}", ok=False)
        return
    root: Path = spec.cache_root(cache_dir)
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    elsewhere = "set FAITHLENS_CACHE to a folder with room for models"
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Finding("cache", f"{root} cannot be written", ok=False, remedy=elsewhere)
    elif free < LEAST_FREE:
        yield Finding("cache", f"{root}, only {_gib(free)} free", ok=False, remedy=elsewhere)
    else:
        yield Finding("cache", f"{root}, {_gib(free)} free")
    if spec.embedded_folder(root).is_dir():
        yield Finding("embedded model", "converted, ready without a network")
    else:
        yield Finding(
            "embedded model", "not here yet", remedy="interp premises check downloads it (93 MB)"
        )


def _extras() -> Iterator[Finding]:
    """Optional packages: never needed, so never a fault."""
    optional = [needed for needed in _requirements() if not _is_always_needed(needed)]
    for extra in EXTRAS:
        missing = [
            needed.name
            for needed in optional
            if needed.marker and needed.marker.evaluate({"extra": extra})
            if _version(needed.name) is None
        ]
        found = f"missing: {', '.join(missing)}" if missing else "installed"
        remedy = f"pip install '{DISTRIBUTION}[{extra}]'" if missing else ""
        yield Finding(f"extra {extra}", found, remedy=remedy)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.1f} GiB"
