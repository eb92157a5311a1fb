"""Public functions whose arguments are looked at before anything runs.

``@checked`` reads a function's annotations. An argument that is plainly no such thing (a text for a
list, None for a number, a result of another kind) is refused by its name; what is plainly meant is
taken: numpy's and torch's numbers as numbers, generators and arrays as lists. What cannot be told
from the annotation (``Any``, the values of a tensor, a name among the known ones) is left to the
function. It computes in the model's own dtype, without an autocast or inference mode around it.

Arguments that are taken by name only may for one version still be given by position, in their
order, with a DeprecationWarning.
"""

import functools
import inspect
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

import numpy as np
import torch

from interp.arguments import listed, real_number, shown, whole_number
from interp.errors import UserError

Given = ParamSpec("Given")
Result = TypeVar("Result")
_UNIONS = (Union, types.UnionType)
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}


def checked(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function, which refuses arguments of the wrong kind by their names."""
    signature, hints = inspect.signature(function), None
    named = by_name(function, signature)

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        nonlocal hints
        if hints is None:
            hints = _hints_of(function)
        args, kwargs = named(args, kwargs)
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if name in hints and kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD):
                bound.arguments[name] = fitting(name, value, hints[name])
        with torch_by_itself():
            return function(*bound.args, **bound.kwargs)

    return call


def by_position(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function, whose arguments by name may still be given by position, with a warning."""
    named = by_name(function, inspect.signature(function))

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        args, kwargs = named(args, kwargs)
        return function(*args, **kwargs)

    return call


def by_name(
    function: Callable[..., Any], signature: inspect.Signature
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Gives a call's arguments beyond the positional ones by their names, and warns."""
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    n_positional = sum(
        kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD) for kind in kinds.values()
    )
    keywords = [name for name, kind in kinds.items() if kind is kind.KEYWORD_ONLY]
    takes_all = any(kind is kind.VAR_POSITIONAL for kind in kinds.values())

    def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        extra = dict(zip(keywords, args[n_positional:], strict=False))
        too_many = len(args) - n_positional > len(keywords)
        if not extra or takes_all or too_many or set(extra) & set(kwargs):
            return args, kwargs  # where something is wrong, the signature says it
        warnings.warn(
            f"{function.__name__} takes {', '.join(extra)} by name: "
            f"{function.__name__}(..., {', '.join(f'{name}=...' for name in extra)})",
            DeprecationWarning,
            stacklevel=3,
        )
        return args[:n_positional], {**kwargs, **extra}

    return named


@contextmanager
def torch_by_itself() -> Iterator[None]:
    """Without the autocast and the inference mode that a caller may be in."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations; without those that are names for type checkers only."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        found = inspect.unwrap(function).__annotations__
        return {name: hint for name, hint in found.items() if not isinstance(hint, str)}


def fitting(name: str, value: Any, hint: Any) -> Any:
    """The value, as the annotation wants it. Raises UserError, with the name, if it is none."""
    origin = typing.get_origin(hint)
    if origin in _UNIONS:
        return _one_of(name, value, typing.get_args(hint))
    if hint is None or hint is type(None):
        return _require(value is None, name, value, "None")
    if origin is Literal:  # which names are known says the function itself
        return _require(isinstance(value, str | int), name, value, "a name")
    if hint is bool:
        return bool(_require(isinstance(value, bool | np.bool_), name, value, _WORDS[bool]))
    if hint is int:
        return whole_number(name, value)
    if hint is float:
        return float(value) if isinstance(value, int | float) else real_number(name, value)
    if hint is Path:
        return _require(isinstance(value, PathLike), name, value, "a path")
    if origin is not None:
        return _container(name, value, origin, typing.get_args(hint))
    array = getattr(hint, "array_type", hint)  # jaxtyping's annotations know of what they are
    return _instance(name, value, array)


def _instance(name: str, value: Any, kind: Any) -> Any:
    if not isinstance(kind, type) or kind is object:
        return value
    try:
        fits = isinstance(value, kind)
    except TypeError:  # a protocol that is not looked at while running
        return value
    return _require(fits, name, value, _WORDS.get(kind, f"a {kind.__name__}"))


def _one_of(name: str, value: Any, hints: Sequence[Any]) -> Any:
    # Paths before numbers and texts as they are: the first that fits is what was meant.
    problems = []
    for hint in hints:
        try:
            return fitting(name, value, hint)
        except UserError as error:
            problems.append(str(error))
    wanted = [problem for problem in problems if not problem.startswith(f"{name} is None")]
    if isinstance(value, list | tuple):  # what is wrong in it says more than what else it could be
        wanted.sort(key=lambda problem: not problem.startswith("an entry of"))
    raise UserError(wanted[0])


def _container(name: str, value: Any, origin: Any, inside: Sequence[Any]) -> Any:
    if origin is Callable or origin is type:
        return _require(callable(value), name, value, "a function")
    if not isinstance(origin, type):
        return value
    if issubclass(origin, Mapping):
        return _require(isinstance(value, Mapping), name, value, "a mapping")
    if not issubclass(origin, Iterable):
        return _instance(name, value, origin)
    if isinstance(value, origin) and not isinstance(value, str | bytes | list | tuple):
        # A class of its own that is such a thing, or a generator, which can be read once only.
        return value if isinstance(value, Sized) else listed(name, value)
    pair = origin is tuple and Ellipsis not in inside
    entries = listed(name, value, f"{len(inside)} values" if pair else "entries")
    if pair and len(entries) != len(inside):
        raise UserError(f"{name} has {len(inside)} entries, not {len(entries)}")
    of_each = inside if pair else [inside[0] if inside else Any] * len(entries)
    found = [fitting(f"an entry of {name}", *entry) for entry in zip(entries, of_each, strict=True)]
    return tuple(found) if origin is tuple or isinstance(value, tuple) else found


def _require(fits: bool, name: str, value: Any, wanted: str) -> Any:
    if not fits:
        raise UserError(f"{name} is {wanted}, not {shown(value)}")
    return value
