"""Training adapters, scoring their answers, and comparing them."""

from interp.moved import old_names

__getattr__ = old_names(__name__)
