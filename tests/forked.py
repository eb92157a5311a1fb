"""Work in a copy of this process, which has everything imported and may be changed or killed.

A new Python takes several seconds to import torch, transformers and TransformerLens; a copy takes
none. It must compute no gradients where this process has: autograd's threads are not copied.
"""

import contextlib
import json
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch


def in_child(work: Callable[[], Any], *, after: float | None = None) -> tuple[Any, bool]:
    """What ``work`` returned in a forked process, and whether that was killed instead.

    Args:
        work: returns what JSON can hold; runs on one thread.
        after: kill the process after so many seconds.

    Raises:
        AssertionError: with the traceback, if ``work`` raised.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns beside threads
        child = os.fork()
    if child == 0:
        os.close(reading)
        code = 0
        with os.fdopen(writing, "w") as pipe:
            try:
                torch.set_num_threads(1)  # those of a pool are not copied
                pipe.write(json.dumps(work()))
            except BaseException:
                pipe.write(traceback.format_exc())
                code = 1
        os._exit(code)
    os.close(writing)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"the child died of signal {status}"
        return None, True
    assert os.WEXITSTATUS(status) == 0, said
    return json.loads(said), False
