"""How many tokens one plain pass over whole prompts takes: by the device's memory and its rate.

On a CPU the sizes are fixed: more tokens gain nothing there, and the batch in which a prompt runs
decides the last bits of its values. On a GPU a pass takes what keeps every multiprocessor at work,
if that fits into the memory budget; a run keeps its budget (`interp.runs.resources`), so that it is
cut in the same way when it is taken up.
"""

from collections.abc import Sequence

import torch

from interp.forward.memory import decide_budget
from interp.forward.prompts import device_of
from interp.forward.sizes import sizes_of
from interp.models.hooked_model import HookedModel

MULTIPROCESSOR_TOKENS = 128
"""Tokens for each multiprocessor: one row of tiles of a product, of which there are several then
whatever the width. More tokens in a pass take longer in proportion."""


def pass_tokens(
    model: HookedModel, width: int, *, least: int, kept: Sequence[str] | None = None
) -> int:
    """Tokens of a pass, padding included.

    Args:
        width: of the prompts.
        least: on a CPU, and on a GPU whose memory allows it.
        kept: components whose values are recorded in every layer, besides the layers' inputs; None
            where nothing is.
    """
    device = device_of(model)
    if device.type != "cuda":
        return least
    sizes, (batches, _) = sizes_of(model), decide_budget(None, device).now
    of_prompt = sizes.row(width, width, eager=True)
    of_prompt += 0 if kept is None else sizes.kept(width, width, *kept)
    at_rate = MULTIPROCESSOR_TOKENS * torch.cuda.get_device_properties(device).multi_processor_count
    return max(width, min(max(least, at_rate), batches // of_prompt * width))
