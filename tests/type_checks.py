"""Types and shapes are checked while the tests run, at a cost that the tests can bear.

pytest's option ``--jaxtyping-packages`` puts ``jaxtyping.jaxtyped`` on every function of the
packages. Imported before them, this module puts `checked_types` in its place, which looks at the
same annotations, in the first four calls, the eighth and the sixteenth of each function in each
test, and in the first alone once it has looked at a hundred. It leaves out what took a third of
the time of the suite: compiling the checks of functions that are never called, and of a function
in a function anew each time that the outer one runs, binding the arguments of every call a second
time, and looking at the thousandth call of a function as at its first.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

_jaxtyped: Any = jaxtyping.jaxtyped
_check: Any = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_axes: Any = _jaxtyped("context")

CALLS = 16
"""The last call of a function that is looked at in each test."""
OFTEN = 100
"""After so many looks at a function, one in each test is enough."""
_test = 0


def begin_test() -> None:
    """Look at the first calls of every function again."""
    global _test
    _test += 1


class _Checks:
    """The checks of a function, compiled when it is first called, and how often it was looked at.

    Functions in functions share those of the same code and annotations.
    """

    __slots__ = ("calls", "looks", "made", "over", "test")

    def __init__(self) -> None:
        self.made: tuple[Any, Any, bool] | None = None
        """The function, its checks, and whether they name axes; at once, since threads share it."""
        self.test = -1
        self.calls = 0
        self.looks = 0
        """In all tests."""
        self.over = -1
        """The test in which enough calls were looked at."""

    def passes(self) -> bool:
        """Whether the next call of this test is not looked at."""
        if self.test != _test or self.calls < 4:
            return False
        if self.calls & (self.calls + 1) == 0:  # the 8th and 16th
            return False
        self.calls += 1
        return True

    def call(self, function: Any, args: Any, kwargs: Any) -> Any:
        """A call of the function, looked at."""
        __tracebackhide__ = True
        if self.test != _test:
            self.test, self.calls = _test, 0
        self.calls += 1
        self.looks += 1
        if self.calls >= CALLS or self.looks >= OFTEN:
            self.over = _test
        if self.made is None:
            self.made = function, _check(function), _has_any_axes(function)
        first, compiled, has_axes = self.made
        checks = compiled if first is function else _of_another(compiled, function)
        if not has_axes:
            return checks(*args, **kwargs)
        with _axes:  # axes of its own
            return checks(*args, **kwargs)


_inner: dict[Any, _Checks] = {}
"""The checks of functions in functions, by their code and annotations."""


def checked_types(function: Any = None, *, typechecker: Any = None) -> Any:
    """As a decorator ``jaxtyped(typechecker=...)``: the same checks, in less time."""
    if function is None:
        return functools.partial(checked_types, typechecker=typechecker)
    if typechecker is not None and _makes_its_init(function):
        function.__init__ = checked_types(function.__init__, typechecker=typechecker)
        return function
    if typechecker is None or not isinstance(function, types.FunctionType):
        return _jaxtyped(function, typechecker=typechecker)
    if inspect.isgeneratorfunction(function) and _has_any_axes(function):
        return _jaxtyped(function, typechecker=typechecker)  # its axes outlive the call
    if "<locals>" not in function.__qualname__:
        return _looked_at(function, _Checks())
    try:
        checks = _inner.setdefault(
            (function.__code__, tuple(function.__annotations__.items())), _Checks()
        )
    except TypeError:  # an annotation that cannot be a key
        checks = _Checks()
    return function if checks.over == _test else _looked_at(function, checks)


def _looked_at(function: Any, checks: _Checks) -> Any:
    """The function, which is looked at while its checks are not over."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if checks.over == _test or checks.passes():
            return function(*args, **kwargs)
        return checks.call(function, args, kwargs)

    return call


def _makes_its_init(value: Any) -> bool:
    """Whether it is a dataclass whose own ``__init__`` is not checked yet, and can be by types.

    An annotation that a base class inherited as a text is resolved by jaxtyping alone.
    """
    if not (inspect.isclass(value) and dataclasses.is_dataclass(value)):
        return False
    init = vars(value).get("__init__")
    if not isinstance(init, types.FunctionType) or hasattr(init, "__wrapped__"):
        return False
    return not any(isinstance(found, str) for found in init.__annotations__.values())


def _of_another(checks: Any, function: Any) -> Any:
    """Checks that were compiled for a function, around another one that differs in its closure."""
    if checks is function or "__beartype_func" not in (checks.__kwdefaults__ or {}):
        return _check(function)  # nothing to check, or a beartype that works in another way
    again = types.FunctionType(checks.__code__, checks.__globals__, function.__name__)
    again.__kwdefaults__ = {**checks.__kwdefaults__, "__beartype_func": function}
    return functools.update_wrapper(again, function)


def _has_any_axes(function: Any) -> bool:
    """Whether jaxtyping has a part in any annotation of a function."""
    return any(map(_has_axes, function.__annotations__.values()))


def _has_axes(annotation: Any) -> bool:
    """Whether jaxtyping has a part in it; of a text nobody knows."""
    if isinstance(annotation, str):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    inside = get_args(annotation)
    return any(_has_axes(one) for one in _flat(inside) if one is not annotation)


def _flat(values: Any) -> list[Any]:
    """Arguments of an annotation; those of a ``Callable`` are in a list, which is taken apart."""
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


installed: Callable[..., Any] = checked_types
jaxtyping.jaxtyped = installed  # type: ignore[assignment]
