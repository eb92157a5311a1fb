"""One architecture of the zoo, and how its tiny random model is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from tests.zoo.words import TOKENS

SIZES: Mapping[str, Any] = {
    **TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
"""Two layers of four heads, as most configurations name them. Effects are large at this width."""
GROUPED: Mapping[str, Any] = {**SIZES, "num_key_value_heads": 2}
"""The same, two query heads to a key and value."""


@dataclass(frozen=True)
class Species:
    """An architecture: transformers' class, a tiny configuration, what its layers are.

    Attributes:
        name: as people call it.
        model: transformers' class of the causal language model.
        layers: what its layers are made of, in a few words.
        settings: of the configuration.
        attention: the layers that have attention heads; None for all.
        gain: by which every matrix is multiplied, where effects would be too small to compare.
    """

    name: str
    model: str
    layers: str
    settings: Mapping[str, Any] = field(repr=False)
    attention: tuple[int, ...] | None = None
    gain: float = 1.0

    def make(self) -> Any:
        """The model, with the same weights on every call, in evaluation mode."""
        model_class = getattr(transformers, self.model)
        torch.manual_seed(0)
        config = model_class.config_class(**self.settings)
        config._attn_implementation = "eager"
        model = model_class(config)
        _disturb(model, self.gain)
        return model.eval()


@torch.no_grad()
def _disturb(model: Any, gain: float) -> None:
    """Give biases and norms, which begin as zeros and ones, values that matter."""
    for _, parameter in sorted(model.named_parameters()):
        flat = parameter.flatten()
        if len(flat) > 1 and bool((flat == flat[0]).all()):
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif parameter.dim() == 2:
            parameter.mul_(gain)
