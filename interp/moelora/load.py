"""Loading a saved adapter, with every mistake told in one line.

``peft.PeftModel.from_pretrained`` loads MoELoRA adapters too; this looks at the files first, so
that a damaged one, or one for another model, is named as such and leaves the model as it was.
"""

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from interp.errors import UserError
from interp.models.quiet import quiet_libraries
from interp.moelora.layer import MoELoRALinear
from interp.moelora.peft_type import MOELORA
from interp.untrusted import check_shape, plain_name, read_json_object, tensor_names

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
_AGAIN = "save the adapter again"


def load_adapter(
    hf_model: Any,
    folder: str | Path,
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
) -> PeftModel:
    """Put the MoELoRA adapter saved in `folder` on a transformers model, or on a PEFT model.

    A PEFT model gets it as a further adapter, which ``set_adapter`` activates; a transformers model
    is wrapped and its modules are replaced. Raises UserError if `folder` holds no whole MoELoRA
    adapter, or one for another base model.
    """
    folder = Path(folder)
    names = _checked(folder)
    plain_name(adapter_name, "the adapter")  # it becomes a directory when it is saved
    if isinstance(hf_model, PeftModel) and adapter_name in hf_model.peft_config:
        raise UserError(
            f"the model has an adapter {adapter_name!r} already: choose another adapter_name"
        )
    try:
        if isinstance(hf_model, PeftModel):
            model = hf_model
            model.load_adapter(str(folder), adapter_name, is_trainable=is_trainable)
        else:
            with quiet_libraries():
                model = PeftModel.from_pretrained(
                    hf_model, str(folder), adapter_name=adapter_name, is_trainable=is_trainable
                )
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load the adapter in {folder}: {first}") from error
    _check_names(model, folder, adapter_name, names)
    return model


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says. Raises UserError where there is none, or none whole."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is no saved adapter: it has no readable {CONFIG_FILE}")
    try:
        return read_json_object(folder / CONFIG_FILE, advice=_AGAIN)
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged ({error})") from error


def _checked(folder: Path) -> set[str]:
    """The names of the tensors of the adapter in `folder`, if it is one."""
    kind = check_shape(
        read_adapter_config(folder), {"peft_type": str}, str(folder / CONFIG_FILE), advice=_AGAIN
    )["peft_type"]
    if kind != MOELORA:
        raise UserError(f"{folder} holds a {kind} adapter, not MoELoRA: load it with PEFT")
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        pickled = (
            f": {PICKLED_FILE} is a pickle file, which can run code and is not read; load it with "
            "PEFT if you trust it, and save it as safetensors"
            if (folder / PICKLED_FILE).is_file()
            else ": save the adapter again"
        )
        raise UserError(f"{folder} has no {WEIGHTS_FILE}{pickled}")
    try:
        return tensor_names(weights)
    except UserError as error:
        raise UserError(
            f"{weights} is damaged or cut short ({error}): copy or save the adapter again"
        ) from error


def _check_names(model: nn.Module, folder: Path, adapter_name: str, found: set[str]) -> None:
    wanted = {
        f"base_model.model.{module.name}.{weights}"
        for module in model.modules()
        if isinstance(module, MoELoRALinear) and adapter_name in module.experts
        for weights in module.adapter_layer_names
    }
    if missing := sorted(wanted - found):
        raise UserError(
            f"the adapter in {folder} lacks {len(missing)} of {len(wanted)} tensors, such as "
            f"{missing[0]}: it was made for another model, or saved incompletely"
        )
