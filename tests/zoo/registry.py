"""All architectures of the zoo, by name, and those that are left out, each with the reason."""

from tests.zoo.dense import DENSE
from tests.zoo.experts import EXPERTS
from tests.zoo.hybrids import HYBRIDS
from tests.zoo.species import Species

ZOO: dict[str, Species] = {one.name: one for one in (*DENSE, *EXPERTS, *HYBRIDS)}
