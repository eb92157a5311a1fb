"""The detector of false premises: its data set, training, calibration, and what it finds."""

from interp.moved import old_names

__getattr__ = old_names(__name__)
