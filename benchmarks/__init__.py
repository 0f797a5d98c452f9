"""Measured speed: compile and run time apart, ratios taken in one run."""
