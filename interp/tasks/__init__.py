"""Tasks for patching: clean and corrupted texts with two answers, from a file or made here.

::

    model = interp.load_model("smollm2-135m")
    pairs = interp.tasks.ioi_pairs(32, tokenizer=model.tokenizer)
    result = interp.tasks.patch_pairs(model, pairs, component="z", method="exact")
"""

from interp.tasks.encoding import EncodedPairs, answered_right, encode_pairs
from interp.tasks.ioi import ioi_pairs
from interp.tasks.pairs import Pair, Pairs, read_pairs
from interp.tasks.patching import patch_pairs

__all__ = [
    "EncodedPairs",
    "Pair",
    "Pairs",
    "answered_right",
    "encode_pairs",
    "ioi_pairs",
    "patch_pairs",
    "read_pairs",
]
