"""Device maps: which part of a model goes to which device, checked before any weight is read.

A map is a word for accelerate's way of dividing the layers, or names modules and their devices:
``{"model.embed_tokens": "cuda:0", "model.layers.0": "cuda:0", "model.layers.1": "disk", ...}``. As
text, for the command line, it is ``model.embed_tokens=cuda:0,model.layers.0=cuda:0,...``. Besides
torch's devices there is ``disk``: weights that are read each time they are used.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import (
    compute_module_sizes,
    convert_file_size_to_int,
    get_balanced_memory,
    get_max_memory,
    infer_auto_device_map,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from interp.errors import UserError
from interp.files.text import one_line
from interp.models.placement import as_device

WORDS = ("auto", "balanced", "balanced_low_0", "sequential")
DISK = "disk"
SHARE = 0.9
"""Of the free memory, for the weights; the rest is for what runs."""
GIVE = "give a word (auto, balanced, sequential) or module=device for every part of the model"

DeviceMap = str | Mapping[str, Any]
MaxMemory = str | Mapping[Any, Any]


def choose_device(name: str | None) -> torch.device:
    """The device named, by default a GPU if there is one. Raises UserError if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # the only sure way to learn that a device is there
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            there.append("mps")
        raise UserError(
            f"device {name!r} is not there: choose one of {', '.join(there)}"
        ) from error
    return device


def read_device_map(given: DeviceMap) -> str | dict[str, str]:
    """A device map as a word, or as the names of devices by module.

    Raises:
        UserError: neither, a device that is not there, or a module that two entries place
            differently.
    """
    if isinstance(given, str):
        if given in WORDS:
            return given
        given = _pairs(given, "device_map") if "=" in given else {"": _word(given)}
    if not isinstance(given, Mapping) or not given:
        raise UserError(f"device_map is {given!r:.60}: {GIVE}")
    placed = {str(name): _place(place) for name, place in given.items()}
    for inner, place in placed.items():
        for outer in _above(inner):
            if placed.get(outer, place) != place:
                raise UserError(
                    f"device_map places {inner or 'the model'} twice: on {place}, and as a part of "
                    f"{outer or 'the whole model'} on {placed[outer]}; name each part once"
                )
    return {name: place for name, place in placed.items() if not placed.keys() & _above(name)}


def read_max_memory(given: MaxMemory | None) -> dict[int | str, int] | None:
    """Bytes by device: numbers of GPUs, ``cpu`` and ``disk``.

    Raises:
        UserError: an unknown device, or what is no amount of memory.
    """
    if given is None:
        return None
    content = _pairs(given, "max_memory") if isinstance(given, str) else given
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f"max_memory is {given!r:.60}: give amounts, such as cuda:0=20GiB,cpu=60GiB"
        )
    found: dict[int | str, int] = {}
    for name, amount in content.items():
        place = str(name).removeprefix("cuda:")
        key: int | str = int(place) if place.isdigit() else place
        if not isinstance(key, int) and key not in ("cpu", "mps", DISK):
            raise UserError(f"max_memory names {name!r}: devices are cuda:0, …, mps, cpu and disk")
        if key != DISK:
            choose_device(f"cuda:{key}" if isinstance(key, int) else key)
        try:
            found[key] = convert_file_size_to_int(amount)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"max_memory of {name} is {amount!r}: give an amount such as 20GiB or 500MB"
            ) from error
    return found


def check_placing(device: Any, device_map: DeviceMap | None, max_memory: MaxMemory | None) -> None:
    """Raise UserError for options that say two things, or for a map or amounts that are wrong."""
    if device is not None and device_map is not None:
        raise UserError("device and device_map are two ways to place a model: leave one out")
    if max_memory is not None and device_map is None:
        raise UserError("max_memory divides a model over devices: give device_map too, auto, say")
    limits = read_max_memory(max_memory)
    wanted = None if device_map is None else read_device_map(device_map)
    if limits is not None and not isinstance(wanted, str):
        raise UserError("max_memory has no effect with a device for each module: leave one out")


def plan(
    folder: Path,
    given: DeviceMap,
    *,
    spec: str,
    dtype: torch.dtype,
    max_memory: MaxMemory | None = None,
) -> dict[str, str]:
    """The device of every part of the model in a directory, from its configuration alone.

    Raises:
        UserError: see ``read_device_map``; a module that the model does not have, a part without a
            device, or a model that is larger than the memory of all devices.
    """
    wanted, limits = read_device_map(given), read_max_memory(max_memory)
    model = _skeleton(folder, spec=spec, dtype=dtype)
    if isinstance(wanted, str):
        return _divided(model, wanted, limits, spec=spec)
    check_covers(model, wanted, spec=spec)
    # Tables that are made from the configuration have no place in the map, and go with the tokens.
    first = wanted.get("") or next(iter(wanted.values()))
    tables = [name for name, module in model.named_modules() if module._buffers]
    left = [name for name in tables if not wanted.keys() & {name, *_above(name)}]
    return {**wanted, **dict.fromkeys(left, "cpu" if first == DISK else first)}


def check_covers(model: nn.Module, placed: Mapping[str, str], *, spec: str) -> None:
    """Raise UserError for a module that a model does not have, and for a part without a device."""
    known = {name for name, _ in model.named_modules()}
    known |= {name for name, _ in model.named_parameters()}
    if unknown := [name for name in placed if name not in known]:
        raise UserError(
            f"device_map names {unknown[0]!r}, which {spec} does not have; its parts are "
            f"{_listed(_parts(model))}"
        )
    if left := [name for name in model.state_dict() if not placed.keys() & {name, *_above(name)}]:
        parts = [part for part in _parts(model) if any(part in _above(name) for name in left)]
        raise UserError(f"device_map leaves out {_listed(parts or left)} of {spec}: {GIVE}")


def _divided(
    model: Any, word: str, limits: dict[int | str, int] | None, *, spec: str
) -> dict[str, str]:
    """What accelerate makes of a word."""
    sizes = compute_module_sizes(model)
    needed = sizes[""]
    there: dict[Any, Any] = get_max_memory(None if limits is None else {**limits})
    if limits is None:
        there = {name: int(SHARE * size) for name, size in there.items()}
    room: Any = dict(there)
    whole: list[str] = list(model._no_split_modules or ())
    if word != "sequential":
        disk = {DISK: room.pop(DISK)} if DISK in room else {}
        room = get_balanced_memory(model, room, whole, low_zero=word == "balanced_low_0")
        room = {**room, **disk}
    found = infer_auto_device_map(model, room, whole)
    left = [name for name, place in found.items() if place == DISK]
    if left and DISK not in there:
        # Layers stay whole, so that more can be missing than the sums say, or some although none.
        missing = needed - sum(there.values())
        missing = missing if missing > 0 else sum(sizes[name] for name in left)
        raise UserError(
            f"{spec} takes {_gib(needed)}, and there is room for {_gib(sum(there.values()))} "
            f"({_listed(map(as_name, there))}): at least {_gib(missing)} are missing; give more in "
            "max_memory, or let the rest stay on the disk with max_memory disk=AMOUNT"
        )
    return {name: as_name(place) for name, place in found.items()}


def as_name(place: Any) -> str:
    """The name of a device of accelerate's."""
    return f"cuda:{place}" if isinstance(place, int) else str(place)


def describe(hf_model: Any) -> dict[str, str] | None:
    """The devices of the parts of a model that is divided; None for a model on one device."""
    placed = getattr(hf_model, "hf_device_map", None) or {}
    names = {str(name): as_name(place) for name, place in placed.items()}
    return names if len(set(names.values())) > 1 or DISK in names.values() else None


def _skeleton(folder: Path, *, spec: str, dtype: torch.dtype) -> Any:
    """The model of a directory's configuration, without numbers."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        model.tie_weights()
    except Exception as error:  # a damaged configuration makes its classes raise anything
        raise UserError(f"cannot load {spec}: its config.json: {one_line(error)}") from error
    return model


def _word(word: str) -> str:
    """A device alone, for the whole model. Raises UserError for any other word."""
    if word != DISK and word.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"device_map is {word!r}: {GIVE}")
    return word


def _place(place: Any) -> str:
    if place == DISK:
        return DISK
    if isinstance(place, bool) or not isinstance(place, str | int | torch.device):
        raise UserError(f"device_map holds {place!r:.60}, which is no device: {GIVE}")
    name = str(as_device(place) if isinstance(place, int) else place)
    if name.partition(":")[0] == "meta":
        raise UserError("device_map holds 'meta', where weights have no numbers: use disk or cpu")
    if name.isdigit():
        name = f"cuda:{name}"
    return str(choose_device(name))


def _pairs(text: str, what: str) -> dict[str, str]:
    """``a=b,c=d`` as a mapping. Raises UserError for a name that stands there twice."""
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = (part.strip() for part in pair.partition("="))
        if not separator or not value:
            raise UserError(f"{what} has {pair!r}: give name=value pairs with commas between them")
        if name in found:
            raise UserError(f"{what} names {name} twice: {found[name]} and {value}")
        found[name] = value
    return found


def _above(name: str) -> set[str]:
    """The names of all modules that a module or weight is a part of."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(len(parts))} if name else set()


def _parts(model: nn.Module) -> list[str]:
    """The modules that a map usually names: layers, and what stands beside them."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{part}.") for part in found)
        if not inside and not any(isinstance(part, nn.ModuleList) for part in module.modules()):
            found.append(name)
    return found


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _gib(size: float | int) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 2**27 else f"{size / 2**20:.3g} MiB"
