"""Whether the engine's answer is the reference's: yes, refused, or wrong."""

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from interp.errors import UserError

CLOSE = 1e-4
"""Of the largest value, or of 1: what float32 may round differently."""

Kind = Literal["yes", "refused", "FAIL"]

_INSIDE = re.compile(
    r"object has no attribute|out of (range|bounds)|shape '|sizes? of tensor|NoneType|must match"
    r"|unexpected keyword|required positional|not (subscriptable|iterable|callable)|grad_fn"
    r"|unsupported operand|Traceback|^'[^']*'$",
    re.IGNORECASE,
)
"""What exceptions from inside say, which tells a user nothing."""


@dataclass(frozen=True)
class Outcome:
    """Of one check: ``said`` is why it was refused, or what was wrong."""

    check: str
    kind: Kind
    said: str = ""


def judge(check: str, right: Callable[[], Any], ask: Callable[[], Any], close: float = CLOSE):
    """Compare what ``ask()`` gives with what ``right()`` gives.

    A LookupError of ``right`` says that the model has no such thing: then NaN everywhere is as good
    as a refusal, and a number is wrong.
    """
    try:
        wanted = right()
    except LookupError as error:
        wanted = error
    except Exception as error:
        return Outcome(check, "FAIL", f"the reference itself: {_where(error)}")
    try:
        got = ask()
    except UserError as error:
        line = str(error)
        clear = bool(line.strip()) and not _INSIDE.search(line)
        return Outcome(check, "refused" if clear else "FAIL", line if clear else f"unclear: {line}")
    except Exception as error:
        return Outcome(check, "FAIL", _where(error))
    wrong = _difference(got, wanted, close)
    return Outcome(check, "FAIL", wrong) if wrong else Outcome(check, "yes")


def _difference(got: Any, wanted: Any, close: float) -> str:
    """What is wrong, in words; empty if nothing is."""
    if isinstance(wanted, LookupError):
        if isinstance(got, Tensor) and bool(torch.isnan(got).all()):
            return ""
        return f"numbers, though {wanted.args[0]}"
    if not isinstance(wanted, Tensor):
        if isinstance(got, Tensor):
            return f"numbers, right: {wanted}"
        return "" if got == wanted else f"{got}, right: {wanted}"
    if not isinstance(got, Tensor):
        return f"{type(got).__name__}, right: numbers"
    if got.shape != wanted.shape:
        return f"shape {list(got.shape)}, right: {list(wanted.shape)}"
    got, wanted = got.detach().double(), wanted.detach().double()
    if not torch.equal(torch.isnan(got), torch.isnan(wanted)):
        return f"NaN at {torch.isnan(got).nonzero().tolist()}, right: at others"
    scale = float(wanted.nan_to_num().abs().max())
    off = float((got - wanted).nan_to_num().abs().max())
    # Small effects are not right by being small.
    allowed = min(close * max(1.0, scale), 0.02 * scale + 5e-6)
    return "" if off <= allowed else f"off by {off:.2g}, where the largest is {scale:.2g}"


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/interp/" in frame.filename]
    last = own[-1] if own else frames[-1]
    words = " ".join(str(error).split())
    place = f"{last.filename.rpartition('/interp/')[2].rpartition('/zoo/')[2]}:{last.lineno}"
    return f"{type(error).__name__} ({place}): {words[:160]}"
