"""The detector of false premises: its data set, training, calibration, and what it finds."""
