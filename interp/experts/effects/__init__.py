"""What experts do: effects of ablating and patching them."""

from interp.moved import old_names

__getattr__ = old_names(__name__)
