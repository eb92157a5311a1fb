"""Other methods that act on a false premise, scored as a constraint is."""

from interp.moved import old_names

__getattr__ = old_names(__name__)
