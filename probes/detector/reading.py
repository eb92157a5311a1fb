"""What a pass over questions left behind, from which another pass goes on."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from interp.forward.transfer import upload
from probes.activation_reader import KeysValues


@dataclass(frozen=True, eq=False)
class Reading:
    """What a pass over questions left behind.

    Attributes:
        keys_values: of the prompts that ran, padded on the right.
        rows: which of them each question is.
    """

    keys_values: KeysValues
    rows: Int[Tensor, " question"]

    def before(
        self,
        first: int,
        offsets: Int[Tensor, " question"],
        cache: DynamicCache | None = None,
    ) -> DynamicCache:
        """The cache of positions before ``first`` of padded prompts.

        Args:
            offsets: where each prompt begins behind its padding on the left.
            cache: an empty one to fill; by default a new one.
        """
        cache = DynamicCache() if cache is None else cache
        # Where the padding is, anything may stand.
        places = (torch.arange(first) - offsets[:, None]).clamp(min=0)
        for layer, pair in enumerate(self.keys_values):
            of_layer = []
            for part in pair:
                row, place = upload(self.rows[:, None], part.device), upload(places, part.device)
                of_layer.append(part.transpose(1, 2)[row, place].transpose(1, 2))
            cache.update(*of_layer, layer)
        return cache
