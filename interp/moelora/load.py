"""Loading a saved adapter.

``peft.PeftModel.from_pretrained`` loads MoELoRA adapters too. `load_adapter` checks the files
first: a damaged adapter, or one for another model, raises an error and leaves the model as it was.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from interp.checked import checked
from interp.errors import UserError
from interp.files.links import plain_name
from interp.files.shape import Maybe, check_shape
from interp.files.tensors import tensor_shapes
from interp.files.text import one_line, read_json_object
from interp.models.placement import without_map
from interp.models.quiet import quiet_libraries
from interp.moelora.config import MOELORA, MoELoRAConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
_AGAIN = "save the adapter again"
MOST_QUANTIFIERS = 4
MOST_UNUSED = 64
"""Experts that the settings may give a layer of which there are no weights."""
_NAMES = Maybe((str, [str]))
_SHAPE = {
    "peft_type": str,
    "r": Maybe(int),
    "num_experts": Maybe((int, [int])),
    **dict.fromkeys(("base_model_name_or_path", "revision", "task_type"), Maybe(str)),
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), _NAMES),
    "modules_to_save": Maybe([str]),
    "layers_to_transform": Maybe((int, [int])),
    "base": Maybe({"weights": Maybe([float]), "quantization": Maybe(str)}),
}
"""What of the settings is used before `MoELoRAConfig` checks them."""


@checked
def load_adapter(
    hf_model: Any, folder: str | Path, *, adapter_name: str = "default", is_trainable: bool = False
) -> PeftModel:
    """Put the MoELoRA adapter saved in `folder` on a transformers model, or on a PEFT model.

    A PEFT model gets it as a further adapter, which ``set_adapter`` activates; a transformers model
    is wrapped and its modules are replaced. Raises UserError if `folder` holds no whole MoELoRA
    adapter, or one for another base model.
    """
    folder = Path(folder)
    shapes = _checked(folder)
    plain_name(adapter_name, "the adapter")  # it becomes a directory when it is saved
    further = isinstance(hf_model, PeftModel)
    if further and adapter_name in hf_model.peft_config:
        raise UserError(
            f"the model has an adapter {adapter_name!r} already: choose another adapter_name"
        )
    # Mismatched sizes are refused below, with both shapes, and the adapter is taken off again.
    options: dict[str, Any] = {"is_trainable": is_trainable, "ignore_mismatched_sizes": True}
    with _as_it_was_after_an_error(hf_model):
        try:
            base = hf_model.get_base_model() if further else hf_model
            with quiet_libraries(), without_map(base):  # PEFT would divide the model anew
                if further:
                    model = hf_model
                    model.load_adapter(str(folder), adapter_name, **options)
                else:
                    model = PeftModel.from_pretrained(
                        hf_model, str(folder), adapter_name, **options
                    )
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"cannot load the adapter in {folder}: {one_line(error)}") from error
        try:
            _check_whole(model, folder, adapter_name, found=shapes)
        except UserError:
            if further:
                model.delete_adapter(adapter_name)
            else:
                model.unload()
            raise
    return model


@contextmanager
def _as_it_was_after_an_error(model: nn.Module) -> Iterator[None]:
    """After an error, what is trained and in which mode each module is are as before."""
    trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    except BaseException:
        for weight, requires_grad in trained:
            weight.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training
        raise


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says. Raises UserError where there is none, or none whole."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is no saved adapter: it has no readable {CONFIG_FILE}")
    try:
        return read_json_object(folder / CONFIG_FILE, advice=_AGAIN)
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged ({error})") from error


def _checked(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of the adapter in `folder`, if it is one."""
    where = str(folder / CONFIG_FILE)
    settings = check_shape(read_adapter_config(folder), _SHAPE, where, advice=_AGAIN)
    kind = settings["peft_type"]
    if kind != MOELORA:
        raise UserError(f"{folder} holds a {kind} adapter, not MoELoRA: load it with PEFT")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        advice = _AGAIN
        if (folder / PICKLED_FILE).is_file():
            advice = (
                f"{PICKLED_FILE} is a pickle file, which can run code and is not read; load it "
                "with PEFT if you trust it, and save it as safetensors"
            )
        raise UserError(f"{folder} has no {WEIGHTS_FILE}: {advice}")
    for name in ("target_modules", "exclude_modules"):
        check_pattern(settings.get(name), f"{where}: {name}")
    try:
        shapes = tensor_shapes(weights)
        _check_size(settings, shapes)
        return shapes
    except UserError as error:
        raise UserError(
            f"{weights} is damaged or cut short ({error}): copy or save the adapter again"
        ) from error


def check_pattern(pattern: object, what: str) -> None:
    """Raise UserError for a regex from a file that could be tried for ever on a module's name."""
    if not isinstance(pattern, str):
        return
    quantifiers = re.findall(r"(?<!\\)[*+{]|(?<![\\(])\?", pattern)
    if len(quantifiers) > MOST_QUANTIFIERS or re.search(r"\)[*+?{]", pattern):
        raise UserError(
            f"{what} is a regex that may take for ever: at most {MOST_QUANTIFIERS} quantifiers, "
            "none of them behind a group; name the modules in a list"
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{what} is no regex ({one_line(error)})") from error


def _check_size(settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise UserError if the settings ask for larger experts than the weights are.

    The experts are allocated before the weights are read.
    """
    counts: Any = settings.get("num_experts") or MoELoRAConfig.num_experts
    rank = settings.get("r") or MoELoRAConfig.r
    there: dict[int, int] = {}
    for name, shape in shapes.items():
        if name.endswith("moelora_A") and shape:
            found = re.search(r"\.(\d+)\.", name)
            layer = int(found[1]) if found and isinstance(counts, list) else 0
            there[layer] = max(there.get(layer, 0), shape[0])
    by_layer = dict(enumerate(counts)) if isinstance(counts, list) else {0: counts}
    for layer, count in by_layer.items() if there else ():
        # A layer without weights may not be adapted; its number of experts still has a bound.
        most = there.get(layer, rank * max(MOST_UNUSED, max(there.values()) // rank))
        if rank * count > most:
            raise UserError(
                f"its settings ask for rank {rank * count} in all, the weights have {most}"
            )


def _check_whole(
    model: PeftModel, folder: Path, adapter_name: str, *, found: dict[str, tuple[int, ...]]
) -> None:
    """Raise UserError unless the file holds the adapter's tensors, in their shapes, and no more."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if missing := sorted(set(wanted) - set(found)):
        raise UserError(
            f"the adapter in {folder} lacks {len(missing)} of {len(wanted)} tensors, such as "
            f"{missing[0]}: it was made for another model, or saved incompletely"
        )
    # PEFT loads tensors of the model itself, such as an embedding that was trained too.
    if unplaced := sorted(set(found) - set(wanted) - set(model.state_dict())):
        raise UserError(
            f"the adapter in {folder} holds {len(unplaced)} tensors that have no place in the "
            f"model, such as {unplaced[0]}: its settings name fewer modules, or it was made for "
            "another model"
        )
    if name := next((name for name in sorted(wanted) if found[name] != wanted[name]), None):
        raise UserError(
            f"the adapter in {folder} has {name} in the shape {list(found[name])}, but its "
            f"settings and the model ask for {list(wanted[name])}: it was made for another model, "
            "or its rank was changed"
        )
