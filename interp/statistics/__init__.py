"""Intervals, sign-flip tests and false-discovery rates, for effects of any shape."""
