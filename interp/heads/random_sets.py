"""Random head sets matched to a chosen one, layer by layer, for a null."""

from collections import Counter

import torch

from interp.checked import checked
from interp.errors import UserError
from interp.heads.headset import Head, HeadSet


@checked
def random_head_sets(
    heads: HeadSet, *, n_layers: int, n_heads: int, n_sets: int, seed: int = 0
) -> tuple[HeadSet, ...]:
    """Random sets with as many heads in each layer as ``heads`` has, without any of ``heads``.

    Where a layer has too few other heads (more than half of it is chosen), the set takes all of
    them, and the missing number at random from the nearest layers.

    Args:
        n_layers, n_heads: the model's layers, and its heads in each.

    Raises:
        UserError: more than half of all heads are chosen, so that no set can match.
    """
    if 2 * len(heads) > n_layers * n_heads:
        raise UserError(f"no random set can match {len(heads)} of {n_layers * n_heads} heads")
    per_layer = Counter(layer for layer, _ in heads)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Head, ...]:
        free = {
            layer: [(layer, head) for head in range(n_heads) if (layer, head) not in heads]
            for layer in range(n_layers)
        }
        drawn: list[Head] = []
        missing: list[int] = []
        for layer, size in sorted(per_layer.items()):
            found = _take_random(free[layer], size, generator)
            drawn += found
            missing += [layer] * (size - len(found))
        for layer in missing:
            nearest = min((at for at in free if free[at]), key=lambda at: (abs(at - layer), at))
            drawn += _take_random(free[nearest], 1, generator)
        return tuple(drawn)

    return tuple(
        HeadSet(draw(), heads.site, f"random, matched per layer, draw {index}")
        for index in range(n_sets)
    )


def _take_random(free: list[Head], size: int, generator: torch.Generator) -> list[Head]:
    """Up to ``size`` heads drawn from ``free``, which loses them."""
    order = torch.randperm(len(free), generator=generator)[:size].tolist()
    drawn = [free[index] for index in order]
    for head in drawn:
        free.remove(head)
    return drawn
