"""How a false object is drawn: a weighted order from hashes, and names that must not be drawn."""

import hashlib
import math
from collections.abc import Mapping

from interp.premises.relation import Fact, names


def shuffled(seed: int, subject: str, weights: Mapping[str, int]) -> list[str]:
    """The keys in random order, each ahead of the rest with probability proportional to its weight.

    Each key draws an exponential time of rate `weight` from a hash, and keys are sorted by their
    times; so adding or removing a key does not change the order of the others.
    """
    times: dict[str, float] = {}
    for name, weight in weights.items():
        digest = hashlib.sha256(f"{seed}\0{subject}\0{name}".encode()).digest()
        uniform = (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 1)
        times[name] = -math.log(uniform) / weight
    return sorted(times, key=lambda name: (times[name], name))


def collides(name: str, fact: Fact) -> bool:
    """Whether an answer that names `name` could be read as the truth.

    That is so when it contains a true name, or a true name contains it, as whole words (Sudan and
    South Sudan), and when the subject contains it.
    """
    return names(fact.subject, name) or any(
        names(true, name) or names(name, true) for true in fact.true_names
    )
