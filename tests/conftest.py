"""Takes in `tests.fixtures`, where a test runs.

The process that hands tests out to others (pytest-xdist's) runs none, and need not wait for torch,
transformers and TransformerLens.
"""

import os
import sys


def hands_out() -> bool:
    """Whether this process was asked for others that run the tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return False
    return any(
        option in ("-n", "--numprocesses") and count != "0"
        for option, count in zip(sys.argv, sys.argv[1:], strict=False)
    )


if not hands_out():
    pytest_plugins = ["tests.fixtures"]
