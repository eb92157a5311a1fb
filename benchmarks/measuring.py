"""What benchmarks measure with: seconds, peak memory, the machine's own matrix-product rate."""

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch


class PeakMemory:
    """The largest resident size of this process while the context is open, in MiB above entry."""

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        self._process = psutil.Process()
        self.before = self.largest = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.largest = max(self.largest, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mib = (self.largest - self.before) / 2**20


@dataclass(frozen=True)
class Timed:
    """What a function returned, its seconds, and MiB above what was there before."""

    value: Any
    seconds: float
    mib: float


def timed(function: Callable[[], Any]) -> Timed:
    """Run once and measure."""
    with PeakMemory() as memory:
        begin = time.perf_counter()
        value = function()
        seconds = time.perf_counter() - begin
    return Timed(value, seconds, memory.mib)


def matrix_rate() -> float:
    """This machine's float32 matrix products at an MLP's shape, in GFLOP/s: the best of twenty."""
    x, w = torch.randn(2048, 576), torch.randn(576, 1536)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        x @ w
        times.append(time.perf_counter() - begin)
    return 2 * 2048 * 576 * 1536 / min(times) / 1e9
