"""Products of experts' outputs, computed from the outputs themselves."""

from einops import rearrange
from torch import Tensor


def products_of_outputs(outputs: Tensor) -> Tensor:
    """Dot products [... pair pair] of outputs [... token slot d_out], slots fastest."""
    flat = rearrange(outputs, "... token slot d_out -> ... (token slot) d_out")
    return flat @ flat.mT
