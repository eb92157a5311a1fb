"""Tensors of a GGUF file that have no place in the model that was read from it.

transformers takes the tensors that it knows out of a GGUF file and passes over the others without
a word: the layers beyond the block count, biases or norms that its class does not have, and the
factors of a scaled rotary embedding. How many numbers the file holds, against how many the model
has, says whether anything was passed over; the ``gguf`` package's table of names says what.
"""

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from interp.errors import UserError

_FACTORS = re.compile(r"(?:^|\.)rope_(?:freqs|factors_\w+)\.weight$")
"""What the rotary embedding's frequencies are divided by: one each where nothing is scaled."""
_TABLES = re.compile(r"(?:^|\.)attn_rot_embd\.")
_BLOCK = re.compile(r"^blk\.(\d{1,9})\.")


def check_gguf_places(path: Path, model: Any, spec: str) -> None:
    """Raise UserError for a tensor of the file that the model was read without.

    Args:
        model: the transformers model that was read from the file, each of its weights found there.
        spec: what the user called the model, for messages.
    """
    sizes: dict[str, int] = {}
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        name = str(tensor.name)
        if _FACTORS.search(name):
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            if not np.all(values == 1):
                raise UserError(
                    f"{spec}: {name} scales the rotary embedding, which transformers does not read "
                    "from GGUF: the model would compute something else; use it in safetensors"
                )
        elif not _TABLES.search(name):
            sizes[name] = int(tensor.n_elements)
    weights = {id(one): one.numel() for one in model.state_dict(keep_vars=True).values()}
    if sum(sizes.values()) <= sum(weights.values()):
        return
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    known = _known_names(_architecture(reader), model, n_layers)
    beyond = [name for name in sizes if (found := _BLOCK.match(name)) and int(found[1]) >= n_layers]
    unplaced = beyond or [name for name in sizes if name not in known]
    if unplaced:
        raise UserError(
            f"{spec}: {len(unplaced)} tensors of the file have no place in the model, such as "
            f"{unplaced[0]}: its header says fewer layers ({n_layers}) than it holds, or it is "
            "damaged; get the file again"
        )


def _architecture(reader: gguf.GGUFReader) -> str:
    found = reader.get_field("general.architecture")
    return "" if found is None else str(found.contents())


def _known_names(architecture: str, model: Any, n_layers: int) -> set[str]:
    """The names that the model's weights have in a GGUF file of its architecture."""
    of_name = {name: one for one, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in of_name:
        return set()
    names = gguf.get_tensor_name_map(of_name[architecture], n_layers)
    found = (names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict())
    return {name for name in found if name is not None}
