"""Checks of a dataset before training; each finding comes with a remedy."""
