"""What a process uses: memory by device, passes through the model, seconds, bytes on disk."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

POLL_SECONDS = 0.01
"""Between two looks at the resident size; batches that matter for the peak take longer."""
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Passes:
    """Passes of one row (a prompt, or a prompt under one edit) through the model or a part of it.

    Every step of a greedy answer is a pass, and so is a run of the layers from an edited one on.
    """

    forward: int = 0
    backward: int = 0

    def __sub__(self, other: "Passes") -> "Passes":
        return Passes(self.forward - other.forward, self.backward - other.backward)

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def times(self, factor: float) -> "Passes":
        """The passes of ``factor`` times as many prompts."""
        return Passes(round(self.forward * factor), round(self.backward * factor))


class PassCounter:
    """Counts the passes of every transformers model in this process while it is open.

    A model inside another (the decoder in a language model) is not counted by itself.
    """

    def __init__(self) -> None:
        self.passes = Passes()
        self._lock, self._inside = threading.Lock(), threading.local()

    def __enter__(self) -> "PassCounter":
        # Imported here because transformers' models take seconds, and reports need none.
        from transformers import PreTrainedModel

        self._class = PreTrainedModel
        call, self._before = PreTrainedModel.__call__, vars(PreTrainedModel).get("__call__")

        def counted(model: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "model", None) is not None:
                return call(model, *args, **kwargs)
            self._inside.model = model
            try:
                output = call(model, *args, **kwargs)
            finally:
                self._inside.model = None
            self._note(_result_of(output))
            return output

        # On the class: a sweep runs module objects that it makes itself, and a hook on all modules
        # would cost time in each of them.
        PreTrainedModel.__call__ = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del self._class.__call__  # what is inherited shows again
        else:
            self._class.__call__ = self._before  # type: ignore[method-assign]  # another counter's

    def _note(self, result: Tensor) -> None:
        self._add(Passes(forward=len(result)))
        if result.requires_grad:
            result.register_hook(lambda gradient: self._add(Passes(backward=len(gradient))))

    def _add(self, passes: Passes) -> None:
        with self._lock:
            self.passes = self.passes + passes


def _result_of(output: Any) -> Tensor:
    """The logits or hidden states [row …] in what a model returned."""
    for name in ("logits", "last_hidden_state"):
        if (found := getattr(output, name, None)) is not None:
            return found
    return output[0]


@dataclass
class Measured:
    """What a piece of work took. ``memory`` is the largest resident size, in bytes."""

    seconds: float = 0.0
    passes: Passes = Passes()
    memory: int = 0


@contextmanager
def measuring(counter: PassCounter) -> Iterator[Measured]:
    """Measure what runs while the context is open; the numbers are there when it is left."""
    process, found, stop = psutil.Process(), Measured(), threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            found.memory = max(found.memory, process.memory_info().rss)

    before, watcher = counter.passes, threading.Thread(target=watch, daemon=True)
    found.memory = process.memory_info().rss
    watcher.start()
    wait_for_devices()
    begin = time.perf_counter()
    try:
        yield found
    finally:
        wait_for_devices()
        found.seconds = time.perf_counter() - begin
        stop.set()
        watcher.join()
        found.passes = counter.passes - before


def wait_for_devices() -> None:
    """Until every GPU has done what it was given."""
    for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        torch.cuda.synchronize(index)


def peak_memory() -> dict[str, int]:
    """The most bytes that this process has held so far, by device.

    ``cpu`` is its resident size, libraries included; a GPU's is what torch had allocated there.
    """
    found = {"cpu": _resident_peak()}
    for index in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        if allocated := torch.cuda.max_memory_allocated(index):
            found[f"cuda:{index}"] = allocated
    return found


def _resident_peak() -> int:
    """The high-water mark of the resident size; where the system keeps none, the size now."""
    with suppress(OSError):
        if mark := re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE):
            return int(mark[1]) * 1024
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def process_seconds() -> float:
    """How long this process has been running."""
    return time.time() - psutil.Process().create_time()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and below; 0 where there is none."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total


def sized(n_bytes: int) -> str:
    """A number of bytes in words: ``512 bytes``, ``3.5 MiB``, ``1.25 GiB``."""
    if n_bytes < 2**10:
        return f"{n_bytes} bytes"
    if n_bytes < 2**20:
        return f"{n_bytes / 2**10:.1f} KiB"
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:.2f} GiB"


def in_use(written: int) -> str:
    """The most memory so far by device, and the bytes that were written, in words."""
    peaks = ", ".join(f"{device} {sized(peak)}" for device, peak in peak_memory().items())
    return f"{peaks}, disk {sized(written)}"
